"""The row rule: a request's data is rows, in an array or a list, and a prediction has one result per row.

Other data is computed on its own and never split.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tandem.errors import ModelError


def count_rows(rows: Any) -> int:
    """Return the number of rows; 1 for data that is neither an array nor a list, which is never split."""
    return len(rows) if _has_rows(rows) else 1


def get_batch_key(rows: Any) -> object:
    """Return a key that is equal for rows that can be merged; data without rows has a key of its own."""
    if isinstance(rows, np.ndarray):
        return rows.dtype, rows.shape[1:]
    return list if isinstance(rows, list) else object()


def split_rows(rows: Any, limit: int) -> list[Any]:
    """Split rows into parts of at most `limit` rows; no rows give no parts."""
    if not _has_rows(rows):
        return [rows]
    return [rows[start : start + limit] for start in range(0, len(rows), limit)]


def merge_rows(parts: Sequence[Any]) -> Any:
    """Concatenate parts of equal batch keys: arrays along the first axis, lists end to end."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return [row for part in parts for row in part]


def split_prediction(prediction: Any, parts: Sequence[Any]) -> list[Any]:
    """Return the rows of the prediction that belong to each of the merged `parts`.

    Raises `ModelError` where the prediction does not hold one result a row, in an array or a list.
    """
    if not _has_rows(parts[0]):
        return [prediction]
    counts = [len(part) for part in parts]
    rows = sum(counts)
    if isinstance(prediction, tuple):
        prediction = list(prediction)
    if not _has_rows(prediction):
        got = f"a {type(prediction).__name__}"
    elif len(prediction) != rows:
        got = f"{len(prediction)} results"
    else:
        ends = list(itertools.accumulate(counts))
        return [prediction[end - count : end] for count, end in zip(counts, ends, strict=True)]
    raise ModelError(
        f"predict_fn returned {got} for {rows} rows; expected one result per row, in an array or list."
    )


def _has_rows(data: Any) -> bool:
    return isinstance(data, list) or (isinstance(data, np.ndarray) and data.ndim > 0)
