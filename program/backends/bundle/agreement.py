"""How near an engine's answers are to the golden ones, and whether that is near enough to serve with."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

#: A row is timed this often, or for this many seconds, whichever ends first.
TIMES = 20
SECONDS = 0.3


@dataclass(frozen=True)
class Agreement:
    """What a comparison found: `overturned` counts the clear golden labels that came out differently."""

    rows: int
    largest_difference: float  # of one probability; infinite where an answer is none
    same_labels: int
    overturned: int

    def find_fault(self, tolerance: float) -> str:
        """Say why these answers are not to be served; empty where they may be."""
        if not self.largest_difference <= tolerance:  # also where it is no number
            return f"{self}, above {tolerance:.2g}"
        if self.overturned:
            return f"{self}, {self.overturned} of them clear in the golden answers"
        return ""

    def __str__(self) -> str:
        """Give the figures as a part of a sentence."""
        differ = self.rows - self.same_labels
        labels = f", {differ} with another label" if differ else ""
        return f"largest difference {self.largest_difference:.2g} over {self.rows} golden rows{labels}"


def compare(answers: npt.NDArray[Any], golden: npt.NDArray[Any], clear: float) -> Agreement:
    """Compare answers (n, labels) with golden ones.

    A golden label is clear where its probability is more than `clear` above the next one's: nearer ones may
    change places between any two devices.
    """
    largest = largest_difference(answers, golden)
    if math.isinf(largest):
        return Agreement(len(golden), largest, 0, len(golden))
    same = answers.argmax(axis=1) == golden.argmax(axis=1)
    second, best = np.partition(golden, -2, axis=1)[:, -2:].T
    overturned = ~same & (best - second > clear)
    return Agreement(len(golden), largest, int(same.sum()), int(overturned.sum()))


def largest_difference(answers: npt.NDArray[Any], golden: npt.NDArray[Any]) -> float:
    """Give the largest absolute difference; infinite where the shape differs or a number is not finite."""
    if answers.shape != golden.shape or not (np.isfinite(answers).all() and np.isfinite(golden).all()):
        return math.inf
    return float(np.abs(answers - golden).max())


def time_row(predict: Callable[[npt.NDArray[Any]], Any], rows: npt.NDArray[Any]) -> float:
    """Give the milliseconds that one row alone takes, at best: what else the machine does only adds."""
    times: list[float] = []
    while len(times) < TIMES and sum(times) < SECONDS:
        started = time.perf_counter()
        predict(rows[:1])
        times.append(time.perf_counter() - started)
    return 1000 * min(times)
