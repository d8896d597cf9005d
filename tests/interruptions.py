"""Start the real `train` on one job, interrupt it, start it again, and compare with an uninterrupted run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from conftest import ROOT

#: All that could make two runs differ is on.
HYPERPARAMETERS = {
    "deterministic": "true",
    "checkpoint_minutes": "0.0005",
    "augmentation": "light",
}
ENVIRONMENT = {
    "ALGORITHM": "algorithms.image_classifier",
    "SAGEMAKER_CONTAINER_LOG_LEVEL": "10",
    "TANDEM_DEVICE": "cpu",
}
#: The prefix of a checkpoint that is being written.
INCOMPLETE = ".incomplete-"
#: Seconds that one run of `train` may take.
LIMIT = 300
#: The log lines of a step, at level DEBUG, and of a finished epoch.
STEP = re.compile(r"epoch (\d+): step (\d+)")
EPOCH = re.compile(r"(?:^|\s)(epoch=(\d+) .*?)(?: images_per_second=\S+)?$")


@dataclass
class Run:
    """One run of `train`, to its end or to the signal: exit status, (epoch, step) pairs, epoch lines, log."""

    status: int = 0
    steps: list = field(default_factory=list)
    curve: dict = field(default_factory=dict)
    log: str = ""

    def read_line(self, line):
        """Record a line of the log."""
        self.log += line
        if found := STEP.search(line):
            self.steps.append((int(found[1]), int(found[2])))
        elif found := EPOCH.search(line):
            self.curve[int(found[2])] = found[1]


class Interrupt:
    """A signal, sent once: after `steps` steps, or while checkpoint number `saves` is being written."""

    def __init__(self, number, *, steps=0, saves=0):
        self._number = number
        self._steps = steps
        self._saves = saves
        self._process = None
        self.sent = False

    @property
    def status(self):
        """The exit status that `train` must have after it: a requested stop is not a failure."""
        return 0 if self._number == signal.SIGTERM else -self._number

    def attach(self, process, folder):
        """Begin to watch a process that writes its checkpoints to `folder`."""
        self._process = process
        if self._saves:
            threading.Thread(target=self._watch, args=(folder,), daemon=True).start()

    def read_line(self, line):
        """Count a step that the log reports, and send the signal at the chosen one."""
        if STEP.search(line):
            self._steps -= 1
            if self._steps == 0:
                self._send()

    def _send(self):
        if not self.sent:
            self.sent = True
            self._process.send_signal(self._number)

    def _watch(self, folder):
        seen = set()
        while self._process.poll() is None and len(seen) < self._saves:
            with suppress(FileNotFoundError):
                seen.update(path.name for path in folder.glob(f"{INCOMPLETE}*"))
        self._send()


@dataclass(frozen=True)
class Job:
    """A miniature /opt/ml with checkpoints, in which one job is started several times."""

    root: Path

    @classmethod
    def make(cls, root, images, **hyperparameters):
        """Write the job's files below `root`; its images are a link."""
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
        (root / "input" / "data" / "training").symlink_to(images)
        return cls(root)

    @property
    def checkpoints(self):
        """The finished checkpoints, oldest first."""
        return sorted((self.root / "checkpoints").glob("checkpoint-*.npz"))

    @property
    def leftovers(self):
        """The incomplete checkpoints that a killed run has left."""
        return list((self.root / "checkpoints").glob(f"{INCOMPLETE}*"))

    @property
    def failure(self):
        """The content of output/failure."""
        return (self.root / "output" / "failure").read_text()

    def start(self, interrupt=None):
        """Run `train` with empty `model` and `output` folders, as in a new container."""
        for folder in ("model", "output"):
            shutil.rmtree(self.root / folder, ignore_errors=True)
            (self.root / folder).mkdir()
        run = Run()
        with subprocess.Popen(
            [sys.executable, ROOT / "program" / "train"],
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
                    interrupt.attach(process, self.root / "checkpoints")
                for line in process.stdout:
                    run.read_line(line)
                    if interrupt:
                        interrupt.read_line(line)
                run.status = process.wait()
            finally:
                limit.cancel()
                process.kill()
        return run

    def read_weights(self):
        """Return every array of model.h5 and of the last checkpoint, optimizer and random states included."""
        with np.load(self.checkpoints[-1], allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files if name != "head"}

        def visit(name, item):
            if isinstance(item, h5py.Dataset):
                found[f"model.h5/{name}"] = np.asarray(item)

        with h5py.File(self.root / "model" / "model.h5") as file:
            file.visititems(visit)
        return found

    def read_history(self):
        """Return each epoch's numbers, in full precision, from the last checkpoint."""
        with np.load(self.checkpoints[-1], allow_pickle=False) as archive:
            return json.loads(archive["head"].tobytes())["state"]["history"]


class Reference:
    """The results of a job that nothing interrupted."""

    def __init__(self, job):
        run = job.start()
        assert run.status == 0, run.log
        self.weights = job.read_weights()
        self.history = job.read_history()
        self.curve = run.curve
        self.steps = len(run.steps)

    def has_weights_of(self, job):
        """Return whether the finished job has the same arrays, bit by bit."""
        arrays = job.read_weights()
        return arrays.keys() == self.weights.keys() and all(
            _is_same(arrays[name], array) for name, array in self.weights.items()
        )

    def has_curve_of(self, job, runs):
        """Return whether the finished job has exactly the same numbers, and its runs logged them."""
        lines = {line for run in runs for line in run.curve.items()}
        return job.read_history() == self.history and lines == set(self.curve.items())


def _is_same(one, other):
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


@dataclass(frozen=True)
class Comparison:
    """An interrupted job against its reference: signals that ended a run, steps taken twice, and equality."""

    kills: int
    repeated: int
    same_weights: bool
    same_curve: bool


def run_interrupted(job, reference, interrupts, between=lambda job: None):
    """Start the job once for each interrupt and once more to its end; call `between` after each kill.

    A signal that comes too late ends nothing.
    """
    kills, runs = 0, []
    for interrupt in (*interrupts, None):
        run = job.start(interrupt)
        assert run.status in {0, interrupt.status if interrupt else 0}, run.log
        runs.append(run)
        if interrupt and interrupt.sent and run.status == interrupt.status:
            kills += 1
            between(job)
    return compare(job, reference, runs, kills)


def compare(job, reference, runs, kills):
    """Compare a finished job and all its runs with the reference."""
    repeated = sum(len(run.steps) for run in runs) - reference.steps
    return Comparison(kills, repeated, reference.has_weights_of(job), reference.has_curve_of(job, runs))


def cut_newest(job):
    """Truncate the newest checkpoint to half its size, as an incomplete upload does."""
    for path in job.checkpoints[-1:]:
        os.truncate(path, path.stat().st_size // 2)


def choose_interrupts(rng, kills, steps, numbers):
    """Return interrupts at random steps, for runs that each continue at the step where the last one ended."""
    points = [0, *sorted(rng.sample(range(1, steps), kills))]
    return [Interrupt(rng.choice(numbers), steps=point - before) for before, point in pairwise(points)]


@contextmanager
def small_disk(folder, size):
    """Mount a file system of `size` bytes at `folder`, which needs root; yield a function that resizes it."""
    folder.mkdir(exist_ok=True)

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PermissionError(f"only root can mount a file system: {done.stderr.strip()}")

    mount(f"size={size}")
    try:
        yield lambda larger: mount(f"remount,size={larger}")
    finally:
        subprocess.run(["umount", folder], check=True)
