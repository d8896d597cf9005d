"""The scores that follow from the counts of an evaluation, as plain JSON values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from algorithms.image_classifier.report.evaluation import BINS, TOP, Evaluation

#: The maximum number of labels for the confusion matrix in metrics.json, which is then a million numbers.
MAX_MATRIX_LABELS = 1000

#: The number of confused pairs that are listed.
MAX_PAIRS = 100

#: The z-score of a 95 % confidence interval.
Z_SCORE = 1.96


def score(evaluation: Evaluation, labels: tuple[str, ...]) -> dict[str, Any]:
    """Return all scores of an evaluation with at least one row; a score that would divide by 0 is None.

    The macro mean is over the labels that have images; the weighted mean weights each label by its images.
    """
    rows, correct = evaluation.rows, int(evaluation.correct.sum())
    classes = [_score_class(evaluation, index, label) for index, label in enumerate(labels)]
    present = [entry for entry in classes if entry["support"]]
    distance = np.abs(evaluation.bin_probability - evaluation.bin_correct).sum()
    scores: dict[str, Any] = {
        "rows": rows,
        "right": correct,
        "accuracy": correct / rows,
        "accuracy_interval": _interval(correct, rows),
        "loss": evaluation.loss / rows,
        "mean_probability": float(evaluation.bin_probability.sum()) / rows,
        "expected_calibration_error": float(distance) / rows,
        "macro": {name: _mean(present, name, weighted=False) for name in MEASURES},
        "weighted": {name: _mean(present, name, weighted=True) for name in MEASURES},
        "classes": classes,
        "calibration": _calibration(evaluation),
        "confused": [
            {"truth": labels[truth], "said": labels[predicted], "rows": count}
            for (truth, predicted), count in rank_confused(evaluation)[:MAX_PAIRS]
        ],
        "confusion_matrix": fill_matrix(evaluation).tolist() if len(labels) <= MAX_MATRIX_LABELS else None,
    }
    if len(labels) > TOP:
        scores["top_5_accuracy"] = evaluation.top / rows
    return scores


MEASURES = ("precision", "recall", "f1")


def rank_confused(evaluation: Evaluation) -> list[tuple[tuple[int, int], int]]:
    """Return ((truth, predicted), rows), the most frequent first; equal ones in the order of the labels."""
    return sorted(evaluation.confused.items(), key=lambda pair: (-pair[1], pair[0]))


def fill_matrix(evaluation: Evaluation) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the confusion matrix (truth, predicted)."""
    matrix = np.diag(evaluation.correct)
    for (truth, predicted), count in evaluation.confused.items():
        matrix[truth, predicted] = count
    return matrix


def _score_class(evaluation: Evaluation, index: int, label: str) -> dict[str, Any]:
    support, predicted, correct = (
        int(counts[index]) for counts in (evaluation.support, evaluation.predicted, evaluation.correct)
    )
    # The precision of a label that has images but is never predicted is 0, not undefined.
    return {
        "label": label,
        "support": support,
        "precision": correct / predicted if predicted else (0.0 if support else None),
        "recall": correct / support if support else None,
        "f1": 2 * correct / (support + predicted) if support else None,
    }


def _mean(classes: list[dict[str, Any]], name: str, *, weighted: bool) -> float:
    weights = [entry["support"] if weighted else 1 for entry in classes]
    return float(np.average([entry[name] for entry in classes], weights=weights))


def _interval(correct: int, rows: int) -> list[float]:
    """Return Wilson's 95 % confidence interval of the accuracy."""
    share, extra = correct / rows, Z_SCORE**2 / rows
    middle = (share + extra / 2) / (1 + extra)
    half = Z_SCORE * math.sqrt(share * (1 - share) / rows + extra / (4 * rows)) / (1 + extra)
    # Rounding must not put the accuracy itself outside.
    return [max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0)]


def _calibration(evaluation: Evaluation) -> list[dict[str, Any]]:
    return [
        {
            "from": index / BINS,
            "to": (index + 1) / BINS,
            "rows": int(rows),
            "probability": float(evaluation.bin_probability[index]) / int(rows) if rows else None,
            "accuracy": int(evaluation.bin_correct[index]) / int(rows) if rows else None,
        }
        for index, rows in enumerate(evaluation.bin_rows)
    ]
