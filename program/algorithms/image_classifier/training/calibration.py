"""The int8 form of a trained network, calibrated on training images and checked on validation images."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from algorithms.image_classifier.data.images import Pixels
from algorithms.image_classifier.data.source import Source, Sources
from backends.engines import quantization

logger = logging.getLogger(__name__)


def add_int8(model_dir: Path, sources: Sources, stop: threading.Event) -> None:
    """Add an int8 form to the bundle in `model_dir`; a stopped job skips it to end quickly."""
    if stop.is_set():
        logger.warning("The job was stopped, so the bundle has no int8 form.")
        return
    rows = collect_rows(sources.training, quantization.CALIBRATION_ROWS)
    quantization.add_int8(model_dir, rows, read_batches(sources.validation, stop))


def collect_rows(source: Source, count: int) -> Pixels:
    """Return the first `count` readable rows of a pass, or all of them if there are fewer."""
    chosen: list[Pixels] = []
    for pixels, _, weights in source.batches(1):
        chosen.append(pixels.numpy()[weights.numpy() > 0])
        if sum(map(len, chosen)) >= count:
            break
    return np.concatenate(chosen)[:count]


def read_batches(source: Source, stop: threading.Event) -> Iterator[tuple[Pixels, Any]]:
    """Yield the readable rows of a pass with their labels in batches, until `stop` is set."""
    for pixels, labels, weights in source.batches(1):
        if stop.is_set():
            return
        read = weights.numpy() > 0
        if read.any():
            yield pixels.numpy()[read], labels.numpy()[read]
