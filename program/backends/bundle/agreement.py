"""How far an engine's answers are from the reference answers, and whether it may serve with them."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

#: A row is timed this often, or until this many seconds have passed.
TIMING_RUNS = 20
TIMING_SECONDS = 0.3


@dataclass(frozen=True)
class Agreement:
    """The result of comparing an engine's answers with the reference answers."""

    rows: int
    largest_difference: float  # of a single probability; infinite where the answers are not comparable
    same_labels: int
    changed_clear_labels: int

    def find_fault(self, tolerance: float) -> str:
        """Return why these answers must not be served, or the empty string if they may be."""
        if not self.largest_difference <= tolerance:  # also true for NaN
            return f"{self}, above {tolerance:.2g}"
        if self.changed_clear_labels:
            return f"{self}, {self.changed_clear_labels} of them clear in the reference answers"
        return ""

    def __str__(self) -> str:
        """Return the figures as part of a log line."""
        changed = self.rows - self.same_labels
        labels = f", {changed} with another label" if changed else ""
        return f"largest difference {self.largest_difference:.2g} over {self.rows} reference answers{labels}"


def compare(answers: npt.NDArray[Any], reference: npt.NDArray[Any], clear_margin: float) -> Agreement:
    """Compare answers with reference answers, both of shape (n, labels).

    A reference label is clear if its probability exceeds the second highest one by more than `clear_margin`.
    Labels that are not clear may differ between any two devices.
    """
    largest = largest_difference(answers, reference)
    if math.isinf(largest):
        return Agreement(len(reference), largest, 0, len(reference))
    same = answers.argmax(axis=1) == reference.argmax(axis=1)
    second, best = np.partition(reference, -2, axis=1)[:, -2:].T
    changed_clear = ~same & (best - second > clear_margin)
    return Agreement(len(reference), largest, int(same.sum()), int(changed_clear.sum()))


def largest_difference(answers: npt.NDArray[Any], reference: npt.NDArray[Any]) -> float:
    """Return the largest absolute difference; infinite if the shapes differ or a value is not finite."""
    if answers.shape != reference.shape or not (np.isfinite(answers).all() and np.isfinite(reference).all()):
        return math.inf
    return float(np.abs(answers - reference).max())


def time_row(predict: Callable[[npt.NDArray[Any]], Any], rows: npt.NDArray[Any]) -> float:
    """Return the shortest measured time of a single row in milliseconds.

    The minimum is the least disturbed by other processes.
    """
    times: list[float] = []
    while len(times) < TIMING_RUNS and sum(times) < TIMING_SECONDS:
        started = time.perf_counter()
        predict(rows[:1])
        times.append(time.perf_counter() - started)
    return 1000 * min(times)
