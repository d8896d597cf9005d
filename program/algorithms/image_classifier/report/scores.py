"""The numbers that the counts of a split come to, as plain JSON values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from algorithms.image_classifier.report.evaluation import AMONG, BINS, Split

#: Labels up to which metrics.json has the whole confusion matrix, a million numbers.
MATRIX_LABELS = 1000

#: Confused pairs that are listed one by one.
PAIRS = 100

#: Standard deviations on either side that hold 95 of 100 results.
SURE = 1.96


def score(split: Split, labels: tuple[str, ...]) -> dict[str, Any]:
    """Give every number of a split with at least one row; None stands where there is nothing to divide by.

    Precision is of the pictures said to be a label, recall of those that are. The macro mean is over the
    labels that have pictures, the weighted mean counts each label as often as it has pictures.
    """
    rows, right = split.rows, int(split.right.sum())
    classes = [_score_class(split, index, label) for index, label in enumerate(labels)]
    present = [entry for entry in classes if entry["support"]]
    confidence = float(split.bin_probability.sum()) / rows
    scores: dict[str, Any] = {
        "rows": rows,
        "right": right,
        "accuracy": right / rows,
        "accuracy_interval": _interval(right, rows),
        "loss": split.loss / rows,
        "mean_probability": confidence,
        "expected_calibration_error": float(np.abs(split.bin_probability - split.bin_right).sum()) / rows,
        "macro": {name: _mean(present, name, weighted=False) for name in MEASURES},
        "weighted": {name: _mean(present, name, weighted=True) for name in MEASURES},
        "classes": classes,
        "calibration": _calibration(split),
        "confused": [
            {"truth": labels[truth], "said": labels[said], "rows": count}
            for (truth, said), count in rank_confused(split)[:PAIRS]
        ],
        "confusion_matrix": fill_matrix(split).tolist() if len(labels) <= MATRIX_LABELS else None,
    }
    if len(labels) > AMONG:
        scores["top_5_accuracy"] = split.top / rows
    return scores


MEASURES = ("precision", "recall", "f1")


def rank_confused(split: Split) -> list[tuple[tuple[int, int], int]]:
    """Give ((truth, said), rows), the most frequent first; equal ones in the order of the labels."""
    return sorted(split.confused.items(), key=lambda pair: (-pair[1], pair[0]))


def fill_matrix(split: Split) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Give the confusion matrix (truth, said)."""
    matrix = np.diag(split.right)
    for (truth, said), count in split.confused.items():
        matrix[truth, said] = count
    return matrix


def _score_class(split: Split, index: int, label: str) -> dict[str, Any]:
    support, said, right = (int(counts[index]) for counts in (split.support, split.said, split.right))
    # A label that has pictures and is never said has found none of them: 0, not unknown.
    return {
        "label": label,
        "support": support,
        "precision": right / said if said else (0.0 if support else None),
        "recall": right / support if support else None,
        "f1": 2 * right / (support + said) if support else None,
    }


def _mean(classes: list[dict[str, Any]], name: str, *, weighted: bool) -> float:
    weights = [entry["support"] if weighted else 1 for entry in classes]
    return float(np.average([entry[name] for entry in classes], weights=weights))


def _interval(right: int, rows: int) -> list[float]:
    """Give Wilson's interval: where the true accuracy is, 95 times of 100, given so few pictures."""
    share, extra = right / rows, SURE**2 / rows
    middle = (share + extra / 2) / (1 + extra)
    half = SURE * math.sqrt(share * (1 - share) / rows + extra / (4 * rows)) / (1 + extra)
    return [max(middle - half, 0.0), min(middle + half, 1.0)]


def _calibration(split: Split) -> list[dict[str, Any]]:
    return [
        {
            "from": place / BINS,
            "to": (place + 1) / BINS,
            "rows": int(rows),
            "probability": float(split.bin_probability[place]) / int(rows) if rows else None,
            "accuracy": int(split.bin_right[place]) / int(rows) if rows else None,
        }
        for place, rows in enumerate(split.bin_rows)
    ]
