"""Starts of the real `train` on one job, each to its end or to a signal at a chosen moment."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

import h5py
import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / "program" / "train"

#: What is trained: everything that could make two runs differ is on, but for the arithmetic.
HYPERPARAMETERS = {
    "deterministic": "true",
    "checkpoint_minutes": "0.0005",
    "epochs": "4",
    "batch_size": "32",
    "image_size": "16",
    "augmentation": "light",
    "early_stopping": "2",
    "seed": "7",
}
ENVIRONMENT = {
    "ALGORITHM": "algorithms.image_classifier",
    "SAGEMAKER_CONTAINER_LOG_LEVEL": "10",
    "TANDEM_DEVICE": "cpu",
}
#: How the name of a checkpoint begins that is being written.
INCOMPLETE = ".incomplete-"
#: Seconds that one start of `train` may take.
LIMIT = 300
#: Steps taken, as the log tells them at level DEBUG, and the line of an epoch that is done.
STEP = re.compile(r"epoch (\d+): step (\d+)")
EPOCH = re.compile(r"(?:^|\s)(epoch=(\d+) .*?)(?: images_per_second=\S+)?$")

Step = tuple[int, int]
Weights = dict[str, npt.NDArray[np.generic]]


@dataclass
class Attempt:
    """One start of `train`, to its end or to the signal."""

    status: int = 0
    steps: list[Step] = field(default_factory=list)
    #: epoch → its line, without the images a second
    curve: dict[int, str] = field(default_factory=dict)
    log: str = ""
    #: from the signal to the end of the process; None where there was none
    leaving: float | None = None

    def take(self, line: str) -> None:
        """Read one line of the log."""
        self.log += line
        if found := STEP.search(line):
            self.steps.append((int(found[1]), int(found[2])))
        elif found := EPOCH.search(line):
            self.curve[int(found[2])] = found[1]


class Interrupt:
    """A signal, once: after `steps` steps, at a line with `text`, or while a checkpoint is being written."""

    def __init__(
        self, number: signal.Signals, *, steps: int = 0, text: str = "", saves: int = 0, delay: float = 0
    ) -> None:
        self._number = number
        self._text = text
        self._steps = steps
        self._saves = saves
        self._delay = delay
        self._process: subprocess.Popen[str] | None = None
        self._sent: float | None = None

    @property
    def status(self) -> int:
        """How `train` must end by it: a stop that is asked for is no failure."""
        return 0 if self._number == signal.SIGTERM else -self._number

    def arm(self, process: subprocess.Popen[str], folder: Path) -> None:
        """Aim at a process that has just started."""
        self._process = process
        if self._saves:
            threading.Thread(target=self._watch, args=(process, folder), daemon=True).start()

    def see(self, line: str) -> None:
        """Look at a line of the log, and strike if it is the one."""
        if STEP.search(line):
            self._steps -= 1
            if self._steps == 0:
                self._strike()
        elif self._text and self._text in line:
            self._strike()

    def seconds(self) -> float | None:
        """Give the time since the signal; None where there was none."""
        return None if self._sent is None else monotonic() - self._sent

    def _strike(self) -> None:
        if self._process and self._sent is None:
            self._sent = monotonic()
            self._process.send_signal(self._number)

    def _watch(self, process: subprocess.Popen[str], folder: Path) -> None:
        """Strike `delay` seconds after the file of the save in question has appeared."""
        seen: set[str] = set()
        while process.poll() is None:
            with suppress(FileNotFoundError):
                seen.update(path.name for path in folder.glob(f"{INCOMPLETE}*"))
            if len(seen) >= self._saves:
                sleep(self._delay)  # a moment of the writing, not a wait for anything
                self._strike()
                return


@dataclass(frozen=True)
class Job:
    """A miniature /opt/ml with checkpoints, where one job is started as often as it takes."""

    root: Path

    @classmethod
    def make(cls, root: Path, pictures: Path, **hyperparameters: str) -> Job:
        """Lay the job out at `root`, its pictures a link."""
        contents = {
            "hyperparameters": {**HYPERPARAMETERS, **hyperparameters},
            "inputdataconfig": {"training": {"TrainingInputMode": "File"}},
            "resourceconfig": {"current_host": "algo-1", "hosts": ["algo-1"]},
            "checkpointconfig": {"LocalPath": "/opt/ml/checkpoints", "S3Uri": "s3://bucket/prefix"},
        }
        config = root / "input" / "config"
        config.mkdir(parents=True)
        for name, content in contents.items():
            (config / f"{name}.json").write_text(json.dumps(content))
        (root / "input" / "data").mkdir()
        (root / "input" / "data" / "training").symlink_to(pictures)
        return cls(root)

    @property
    def checkpoints(self) -> list[Path]:
        """The finished checkpoints, the newest last."""
        return sorted((self.root / "checkpoints").glob("checkpoint-*.npz"))

    @property
    def leftovers(self) -> list[Path]:
        """What a killed save has left."""
        return list((self.root / "checkpoints").glob(f"{INCOMPLETE}*"))

    def start(self, interrupt: Interrupt | None = None) -> Attempt:
        """Run `train` in a container as fresh as the platform's: only the checkpoints are there."""
        for folder in ("model", "output"):
            shutil.rmtree(self.root / folder, ignore_errors=True)
            (self.root / folder).mkdir()
        attempt = Attempt()
        with subprocess.Popen(
            [sys.executable, TRAIN],
            env={**os.environ, **ENVIRONMENT, "SAGEMAKER_BASE_DIR": str(self.root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            limit = threading.Timer(LIMIT, process.kill)
            limit.start()
            try:
                if interrupt:
                    interrupt.arm(process, self.root / "checkpoints")
                for line in process.stdout or ():
                    attempt.take(line)
                    if interrupt:
                        interrupt.see(line)
                attempt.status = process.wait()
            finally:
                limit.cancel()
                process.kill()
        attempt.leaving = interrupt.seconds() if interrupt else None
        return attempt

    def read_weights(self) -> Weights:
        """Read every array of model.h5, and of the last checkpoint: the optimizer and random states too."""
        with np.load(self.checkpoints[-1], allow_pickle=False) as archive:
            found: Weights = {name: archive[name] for name in archive.files if name != "head"}

        def visit(name: str, item: h5py.HLObject) -> None:
            if isinstance(item, h5py.Dataset):
                found[f"model.h5/{name}"] = np.asarray(item)

        with h5py.File(self.root / "model" / "model.h5") as file:
            file.visititems(visit)
        return found

    def read_history(self) -> list[dict[str, float]]:
        """Read each epoch's numbers, in all digits, from the last checkpoint."""
        with np.load(self.checkpoints[-1], allow_pickle=False) as archive:
            history: list[dict[str, float]] = json.loads(archive["head"].tobytes())["state"]["history"]
        return history
