"""The evaluation of a network on a set of images, kept as counts whose size does not depend on the set's."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.engines.tensorflow_engine import TensorFlowEngine
from tandem.errors import TandemError

#: Intervals of probability in which the accuracy is measured.
BINS = 15

#: The number of worst mistakes, whose pixels are kept.
MAX_MISTAKES = 12

#: The lower limit of probabilities in the loss, as in Keras.
MIN_PROBABILITY = 1e-7

#: The k of top-k accuracy.
TOP = 5

Rows = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Mistake:
    """A misclassified image: the indices of both labels, their probabilities, and the pixels."""

    row: int
    file: str
    truth: int
    predicted: int
    probability: float
    truth_probability: float
    pixels: Rows

    @property
    def rank(self) -> tuple[float, int]:
        """The sort key, worst first: the probability of the true label minus that of the predicted one."""
        return self.truth_probability - self.probability, self.row


class Evaluation:
    """The counts of one set of images, such as `validation`, filled batch by batch.

    `file_of` names the image of a row, counted from 0 in the order in which rows are added.
    """

    def __init__(self, name: str, classes: int, file_of: Callable[[int], str] = "row {}".format) -> None:
        self.name = name
        self.classes = classes
        self.file_of = file_of
        self.loss = 0.0
        self.top = 0  # images whose true label is among the TOP best
        self.seen = 0  # rows added, including those of weight 0
        self.support = np.zeros(classes, np.int64)  # by label: images of it
        self.predicted = np.zeros(classes, np.int64)  # by label: images predicted to be of it
        self.correct = np.zeros(classes, np.int64)  # by label: correct predictions of it
        self.confused: Counter[tuple[int, int]] = Counter()  # (truth, predicted), mistakes only
        self.bin_rows = np.zeros(BINS, np.int64)
        self.bin_correct = np.zeros(BINS, np.int64)
        self.bin_probability = np.zeros(BINS)
        self.worst: list[Mistake] = []

    @property
    def rows(self) -> int:
        """The number of images counted."""
        return int(self.support.sum())

    def add(self, pixels: Rows, truth: Rows, probabilities: Rows, weights: Rows | None = None) -> None:
        """Count a batch: pixels (n, h, w, c) of 0 to 255, truth (n,), probabilities (n, classes).

        Rows of weight 0 are ignored, all others count once. Raises `TandemError` for probabilities that are
        not finite.
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
                f"the network's probabilities for {self.name} are not all finite; lower the learning rate."
            )
        predicted = probabilities.argmax(axis=1)
        every = np.arange(len(truth))
        best, of_truth = probabilities[every, predicted], probabilities[every, truth]
        correct = predicted == truth
        self.support += np.bincount(truth, minlength=self.classes)
        self.predicted += np.bincount(predicted, minlength=self.classes)
        self.correct += np.bincount(truth[correct], minlength=self.classes)
        self.loss -= float(np.log(np.clip(of_truth, MIN_PROBABILITY, 1)).sum())
        self.top += int((self._rank(probabilities, truth, of_truth) < TOP).sum())
        self.confused.update(zip(truth[~correct].tolist(), predicted[~correct].tolist(), strict=True))
        self._count_bins(best, correct)
        wrong = np.flatnonzero(~correct)
        self._keep_worst(
            wrong[np.argsort(of_truth[wrong] - best[wrong], kind="stable")[:MAX_MISTAKES]],
            (rows[kept], truth, predicted, best, of_truth, np.flatnonzero(kept)),
            pixels,
        )

    @staticmethod
    def _rank(probabilities: Rows, truth: Rows, of_truth: Rows) -> Rows:
        """Count the labels ahead of the true one; of equal ones the first in the list is ahead."""
        before = np.arange(probabilities.shape[1]) < truth[:, None]
        ahead = (probabilities > of_truth[:, None]) | ((probabilities == of_truth[:, None]) & before)
        return np.asarray(ahead.sum(axis=1))

    def _count_bins(self, best: Rows, correct: Rows) -> None:
        bins = np.minimum((best * BINS).astype(np.int64), BINS - 1)
        self.bin_rows += np.bincount(bins, minlength=BINS)
        self.bin_correct += np.bincount(bins[correct], minlength=BINS)
        self.bin_probability += np.bincount(bins, best, minlength=BINS)

    def _keep_worst(self, indices: Rows, columns: tuple[Rows, ...], pixels: Rows) -> None:
        for index in indices:
            row, truth, predicted, best, of_truth, position = (column[index].item() for column in columns)
            if len(self.worst) == MAX_MISTAKES and (of_truth - best, row) >= self.worst[-1].rank:
                return
            image = np.array(pixels[position])  # a copy, as a view would keep its whole batch in memory
            found = Mistake(row, self.file_of(row), truth, predicted, best, of_truth, image)
            self.worst = sorted([*self.worst, found], key=lambda mistake: mistake.rank)[:MAX_MISTAKES]


def measure(network: Any, batches: Any, evaluation: Evaluation, stop: threading.Event) -> bool:
    """Evaluate `network` on a `tf.data.Dataset` of (pixels, labels, weights).

    Returns False if `stop` was set before the end, so that the counts are not those of the whole set.
    """
    spec = batches.element_spec[0]
    engine = TensorFlowEngine(network, spec.shape[1:], spec.dtype.name)
    for pixels, truth, weights in batches:
        if stop.is_set():
            return False
        rows = pixels.numpy()
        evaluation.add(rows, truth.numpy(), engine.predict(rows), weights.numpy())
    return not stop.is_set()  # a stop ends a source that waits for its data
