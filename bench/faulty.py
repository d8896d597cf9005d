"""The image classifier with a `predict_fn` that once raises or ends its thread, as the file FAULT says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from algorithms import image_classifier
from algorithms.image_classifier import ACCEPTS, CONTENT_TYPES, input_fn, model_fn, output_fn
from tandem.algorithm import Context

__all__ = ["ACCEPTS", "CONTENT_TYPES", "input_fn", "model_fn", "output_fn", "predict_fn"]


def predict_fn(data: Any, model: Any, context: Context) -> Any:
    """Predict, or remove the file and do what it says."""
    del context
    path = Path(os.environ["FAULT"])
    try:
        fault = path.read_text(encoding="utf-8")
        path.unlink()
    except FileNotFoundError:
        return image_classifier.predict_fn(data, model)
    raise SystemExit(fault) if fault == "die" else RuntimeError(fault)
