"""What a network said of a set of pictures, kept as counts: a million take no more room than a hundred."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.engines.tensorflow_engine import TensorFlowEngine
from tandem.errors import TandemError

#: Equal steps of probability in which it is counted how often the network is right.
BINS = 15

#: The worst mistakes, whose pixels are kept.
WORST = 12

#: No probability counts as less, as in Keras's loss.
SMALLEST = 1e-7

#: A label is found where it is among so many of the best.
AMONG = 5

Rows = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Mistake:
    """A picture taken for something else: the indices of both labels, their probabilities, and its pixels."""

    row: int
    file: str
    truth: int
    said: int
    probability: float
    truth_probability: float
    pixels: Rows

    @property
    def badness(self) -> tuple[float, int]:
        """What the worst have least of: how much likelier the right label was held than the wrong one."""
        return self.truth_probability - self.probability, self.row


class Split:
    """The counts of one set of pictures, such as `validation`, filled batch by batch.

    `file_of` names the picture of a row, counted from 0 in the order in which rows are added.
    """

    def __init__(self, name: str, classes: int, file_of: Callable[[int], str] = "row {}".format) -> None:
        self.name = name
        self.classes = classes
        self.file_of = file_of
        self.loss = 0.0
        self.top = 0
        self.seen = 0  # rows added, those of weight 0 too
        self.support = np.zeros(classes, np.int64)  # of each label: pictures of it,
        self.said = np.zeros(classes, np.int64)  # pictures said to be it,
        self.right = np.zeros(classes, np.int64)  # and rightly so
        self.confused: Counter[tuple[int, int]] = Counter()  # (truth, said), mistakes only
        self.bin_rows = np.zeros(BINS, np.int64)
        self.bin_right = np.zeros(BINS, np.int64)
        self.bin_probability = np.zeros(BINS)
        self.worst: list[Mistake] = []

    @property
    def rows(self) -> int:
        """Pictures counted."""
        return int(self.support.sum())

    def add(self, pixels: Rows, truth: Rows, probabilities: Rows, weights: Rows | None = None) -> None:
        """Count a batch: pixels (n, h, w, c) of 0…255, truth (n,), probabilities (n, classes).

        Rows of weight 0 are left out, all others count once. Raises `TandemError` for probabilities that are
        no numbers.
        """
        rows = np.arange(self.seen, self.seen + len(truth))
        self.seen += len(truth)
        kept = np.ones(len(truth), bool) if weights is None else np.asarray(weights) > 0
        if not kept.any():
            return
        truth = np.asarray(truth)[kept].astype(np.int64)
        probabilities = np.asarray(probabilities)[kept].astype(np.float64)
        if not np.isfinite(probabilities).all():
            raise TandemError(
                f"the network's probabilities for {self.name} are not all numbers; lower the learning rate."
            )
        said = probabilities.argmax(axis=1)
        every = np.arange(len(truth))
        best, of_truth = probabilities[every, said], probabilities[every, truth]
        right = said == truth
        self.support += np.bincount(truth, minlength=self.classes)
        self.said += np.bincount(said, minlength=self.classes)
        self.right += np.bincount(truth[right], minlength=self.classes)
        self.loss -= float(np.log(np.clip(of_truth, SMALLEST, 1)).sum())
        self.top += int((self._rank(probabilities, truth, of_truth) < AMONG).sum())
        self.confused.update(zip(truth[~right].tolist(), said[~right].tolist(), strict=True))
        self._count_bins(best, right)
        wrong = np.flatnonzero(~right)
        self._keep_worst(
            wrong[np.argsort(of_truth[wrong] - best[wrong], kind="stable")[:WORST]],
            (rows[kept], truth, said, best, of_truth, np.flatnonzero(kept)),
            pixels,
        )

    @staticmethod
    def _rank(probabilities: Rows, truth: Rows, of_truth: Rows) -> Rows:
        """Count the labels ahead of the right one; of equal ones the first in the list is ahead."""
        before = np.arange(probabilities.shape[1]) < truth[:, None]
        ahead = (probabilities > of_truth[:, None]) | ((probabilities == of_truth[:, None]) & before)
        return np.asarray(ahead.sum(axis=1))

    def _count_bins(self, best: Rows, right: Rows) -> None:
        place = np.minimum((best * BINS).astype(np.int64), BINS - 1)
        self.bin_rows += np.bincount(place, minlength=BINS)
        self.bin_right += np.bincount(place[right], minlength=BINS)
        self.bin_probability += np.bincount(place, best, minlength=BINS)

    def _keep_worst(self, places: Rows, columns: tuple[Rows, ...], pixels: Rows) -> None:
        for place in places:
            row, truth, said, best, of_truth, position = (column[place].item() for column in columns)
            if len(self.worst) == WORST and (of_truth - best, row) >= self.worst[-1].badness:
                return
            picture = np.array(pixels[position])  # a copy: a view would keep its whole batch
            found = Mistake(row, self.file_of(row), truth, said, best, of_truth, picture)
            self.worst = sorted([*self.worst, found], key=lambda mistake: mistake.badness)[:WORST]


def measure(network: Any, batches: Any, split: Split, stop: threading.Event) -> bool:
    """Fill `split` with what `network` says of a `tf.data.Dataset` of (pixels, labels, weights).

    False if `stop` was set before the end: what was counted then is not the whole set.
    """
    spec = batches.element_spec[0]
    engine = TensorFlowEngine(network, spec.shape[1:], spec.dtype.name)
    for pixels, truth, weights in batches:
        if stop.is_set():
            return False
        rows = pixels.numpy()
        split.add(rows, truth.numpy(), engine.predict(rows), weights.numpy())
    return not stop.is_set()  # a source that waits for its data ends then
