"""The image classifier, whose `predict_fn` does what the file FAULT says, if it is there: raise, or die."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from algorithms.image_classifier import (
    ACCEPTS,
    CONTENT_TYPES,
    input_fn,
    model_fn,
    output_fn,
)
from algorithms.image_classifier import predict_fn as _predict
from tandem.algorithm import Context

__all__ = ["ACCEPTS", "CONTENT_TYPES", "input_fn", "model_fn", "output_fn", "predict_fn"]


def predict_fn(data: Any, model: Any, context: Context) -> Any:
    """Compute, unless told otherwise; the file is removed by the batch that it befalls."""
    del context
    order = Path(os.environ["FAULT"])
    try:
        what = order.read_text(encoding="utf-8")
        order.unlink()
    except FileNotFoundError:
        return _predict(data, model)
    raise SystemExit(what) if what == "die" else RuntimeError(what)
