"""The interruption experiment: the real `train`, killed and started again, against one never interrupted.

Prints, and writes to bench/results/interruption.md, a table of signals, starts, steps taken twice, and
whether the weights and the loss curves are equal, bit by bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.attempts import ROOT, Attempt, Interrupt, Job, Weights

RESULTS = ROOT / "bench" / "results" / "interruption.md"
DIGITS = ROOT / "local_test" / "test_dir" / "input" / "data" / "training"


class ExperimentError(Exception):
    """What the experiment shows nothing without has failed."""


@dataclass(frozen=True)
class Reference:
    """What a job that nothing interrupted comes to."""

    weights: Weights
    history: list[dict[str, float]]
    curve: dict[int, str]
    steps: int

    @classmethod
    def make(cls, job: Job) -> Reference:
        """Run the job to its end."""
        attempt = job.start()
        _expect(attempt, 0)
        return cls(job.read_weights(), job.read_history(), attempt.curve, len(attempt.steps))

    def has_weights_of(self, job: Job) -> bool:
        """Whether the finished job has the same arrays, bit by bit."""
        ours = job.read_weights()
        return ours.keys() == self.weights.keys() and all(
            _same(ours[name], array) for name, array in self.weights.items()
        )

    def has_curve_of(self, job: Job, attempts: Sequence[Attempt]) -> bool:
        """Whether the finished job has the same numbers in all digits, and all its starts said the same."""
        lines = [line for attempt in attempts for line in attempt.curve.items()]
        return job.read_history() == self.history and set(lines) == set(self.curve.items())


@dataclass
class Row:
    """What one way to interrupt came to."""

    name: str
    kills: int = 0
    half_written: int = 0
    starts: int = 0
    taken: int = 0
    repeated: int = 0
    leaving: float | None = None
    same_weights: bool = False
    same_curve: bool = False

    def compare(self, job: Job, attempts: Sequence[Attempt], reference: Reference) -> None:
        """Fill in what the finished job and all its starts came to."""
        self.starts = len(attempts)
        self.taken = sum(len(attempt.steps) for attempt in attempts)
        self.repeated = self.taken - reference.steps
        self.same_weights = reference.has_weights_of(job)
        self.same_curve = reference.has_curve_of(job, attempts)

    def cells(self) -> Iterator[str]:
        """Give what the table's row says."""
        yield self.name
        yield from map(str, (self.kills, self.half_written, self.starts, self.taken, self.repeated))
        yield "-" if self.leaving is None else f"{self.leaving:.1f}"
        yield from ("equal" if same else "DIFFERENT" for same in (self.same_weights, self.same_curve))


HEADS = (
    *("interrupted by", "signals", "saves cut short", "starts", "steps taken", "of them again"),
    *("longest end, s", "weights", "loss curve"),
)


def interrupt(
    name: str,
    job: Job,
    reference: Reference,
    interrupts: Iterable[Interrupt],
    between: Callable[[Job], object],
) -> Row:
    """Start the job once for each interrupt, then once more to its end, and compare with the reference.

    A signal that comes too late ends nothing. Raises `ExperimentError` where a start ends as it must not.
    """
    row = Row(name)
    attempts = []
    for each in (*interrupts, None):
        attempt = job.start(each)
        _expect(attempt, *{0, each.status if each else 0})
        attempts.append(attempt)
        row.half_written += bool(job.leftovers)
        if each and attempt.leaving is not None and attempt.status == each.status:
            row.kills += 1
            if attempt.status == 0:
                row.leaving = max(row.leaving or 0, attempt.leaving)
            between(job)
    row.compare(job, attempts, reference)
    return row


def cut_newest(job: Job) -> None:
    """Leave half of the newest checkpoint, as half an upload does."""
    for path in job.checkpoints[-1:]:
        os.truncate(path, path.stat().st_size // 2)


def choose(rng: random.Random, kills: int, steps: int, numbers: Sequence[signal.Signals]) -> list[Interrupt]:
    """Give interrupts at random steps, if each start goes on from the very step of the last one's end."""
    points = [0, *sorted(rng.sample(range(1, steps), kills))]
    return [Interrupt(rng.choice(numbers), steps=point - before) for before, point in pairwise(points)]


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """Mount a file system of `size` bytes at `folder`, which needs root; gives what makes it larger."""
    folder.mkdir(exist_ok=True)

    def mount(options: str) -> None:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise PermissionError(f"a file system can be mounted by root only: {done.stderr.strip()}")

    mount(f"size={size}")
    try:
        yield lambda larger: mount(f"remount,size={larger}")
    finally:
        subprocess.run(["umount", folder], check=True)


def fill_disk(job: Job, reference: Reference, size: int) -> tuple[Row, str]:
    """Run the job where one checkpoint of `size` bytes has room, but not two, then again with more room.

    Gives the failure as the platform would show it, too.
    """
    row = Row("a full disk", kills=1)
    # The first one is smaller: it has no weights of a best epoch yet.
    with small_disk(job.root / "checkpoints", size * 5 // 4) as enlarge:
        failed = job.start()
        _expect(failed, 1)
        failure = (job.root / "output" / "failure").read_text()
        if len(job.checkpoints) != 1 or job.leftovers:
            raise ExperimentError(f"the full disk left {job.checkpoints} and {job.leftovers}")
        enlarge(size * 8)
        resumed = job.start()
        _expect(resumed, 0)
        row.compare(job, [failed, resumed], reference)
    return row, failure


def _expect(attempt: Attempt, *statuses: int) -> None:
    if attempt.status not in statuses:
        raise ExperimentError(
            f"train ended with {attempt.status}, expected {statuses}:\n{attempt.log[-4000:]}"
        )


def _same(one: npt.NDArray[np.generic], other: npt.NDArray[np.generic]) -> bool:
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def main() -> int:
    """Run the experiment; give 0 if every weight and every number was equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the random steps")
    parser.add_argument("--kills", type=int, default=5, help="signals of each kind")
    parser.add_argument("--pictures", type=Path, default=DIGITS, help="a folder a label")
    arguments = parser.parse_args()
    if not any(arguments.pictures.glob("*/*")):
        parser.error(f"no pictures are in {arguments.pictures}; make sample-data writes the digits")
    rng = random.Random(arguments.seed)  # noqa: S311  # decides when to kill
    with tempfile.TemporaryDirectory(prefix="interruption-") as folder:
        text, equal = experiment(Path(folder), arguments.pictures, rng, arguments.kills)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text)
    print(f"\n{text}\n{RESULTS} has it")
    return 0 if equal else 1


def experiment(folder: Path, pictures: Path, rng: random.Random, kills: int) -> tuple[str, bool]:
    """Interrupt the job in every way; give the table as Markdown, and whether all was equal."""

    def make(name: str) -> Job:
        return Job.make(folder / name.replace(" ", "-"), pictures)

    first = make("reference")
    reference = Reference.make(first)
    size = first.checkpoints[-1].stat().st_size
    term, kill = signal.SIGTERM, signal.SIGKILL
    writing = [Interrupt(kill, saves=rng.randint(1, 3), delay=rng.uniform(0, 0.01)) for _ in range(2 * kills)]
    ways: dict[str, tuple[list[Interrupt], Callable[[Job], object]]] = {
        "nothing, a second time": ([], leave),
        "SIGTERM": (choose(rng, kills, reference.steps, [term]), leave),
        "SIGKILL": (choose(rng, kills, reference.steps, [kill]), leave),
        "either": (choose(rng, kills, reference.steps, [term, kill]), leave),
        "SIGTERM before the first step": ([Interrupt(term, text="device: ")], leave),
        "SIGKILL while a checkpoint is written": (writing, leave),
        "SIGKILL, and the newest checkpoint cut in half": (
            choose(rng, kills, reference.steps, [kill]),
            cut_newest,
        ),
    }
    rows = []
    for name, (interrupts, between) in ways.items():
        rows.append(interrupt(name, make(name), reference, interrupts, between))
        print(" | ".join(rows[-1].cells()), flush=True)
    notes = []
    try:
        row, failure = fill_disk(make("a full disk"), reference, size)
        rows.append(row)
        notes.append(f"The full disk ended the job with: {failure}")
    except PermissionError as error:
        notes.append(f"Not shown, a full disk: {error}")
    return render(rows, notes, reference, size), all(row.same_weights and row.same_curve for row in rows)


def render(rows: Sequence[Row], notes: Sequence[str], reference: Reference, size: int) -> str:
    """Give the table as Markdown."""
    numbers = sum(array.size for array in reference.weights.values())
    told = (
        f"One job of {reference.steps} steps in {len(reference.curve)} epochs, on the CPU, with "
        "`deterministic=true`; compared with one that nothing interrupted. Weights are model.h5 and the last "
        f"checkpoint, which holds the optimizer's and the random states too: {len(reference.weights)} arrays "
        f"of {numbers} numbers, bit by bit. Loss curves are all numbers of all epochs, in all digits. A "
        f"checkpoint has {size} bytes. Under a full disk, the signal is the job's own end."
    )
    lines = [
        told,
        "",
        f"| {' | '.join(HEADS)} |",
        f"|{'---|' * len(HEADS)}",
        *(f"| {' | '.join(row.cells())} |" for row in rows),
        *(line for note in notes for line in ("", note)),
    ]
    return "\n".join(lines) + "\n"


def leave(_job: Job) -> None:
    """Do nothing between two starts."""


if __name__ == "__main__":
    sys.exit(main())
