"""Decoding of images in training: which were unreadable, and batches decoded in parallel."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tandem.errors import UserError
from tandem.images import codec
from tandem.images.codec import Preprocessing

logger = logging.getLogger(__name__)

#: Unreadable images that the log names; all are counted.
MAX_NAMED = 20

#: Batches that are loaded at the same time, so that threads that finish one begin the next.
CONCURRENT_BATCHES = 2

Pixels = np.ndarray[Any, np.dtype[Any]]


class ImageReader:
    """Decodes images as serving does and counts the unreadable ones; threads may share it."""

    def __init__(self, spec: Preprocessing, listed: int, unreadable_share: float) -> None:
        self.spec = spec
        self.listed = listed
        self.allowed = math.floor(unreadable_share * listed + 1e-9)  # 0.29 * 100 is 28.999…
        self.unreadable: dict[Path, str] = {}
        self.cached_bytes = 0  #: of decoded images that sources keep in memory
        self._lock = threading.Lock()

    @property
    def given_up(self) -> bool:
        """Whether more images were unreadable than the job allows."""
        return len(self.unreadable) > self.allowed

    def read(self, path: Path) -> Pixels | None:
        """Return the image at `path` as the network takes it; None, with a warning, if it is unreadable."""
        return self._preprocess(lambda: path, lambda: codec.read(path))

    def decode(self, body: bytes, name: Callable[[], Path]) -> Pixels | None:
        """Do as `read` does for an image in memory; `name` is called only if it is unreadable."""
        return self._preprocess(name, lambda: codec.decode(body))

    def _preprocess(self, name: Callable[[], Path], load: Callable[[], Pixels]) -> Pixels | None:
        try:
            return codec.preprocess(load(), self.spec)
        except UserError as error:
            self._add_unreadable(name(), str(error))
        except OSError as error:
            self._add_unreadable(name(), error.strerror or str(error))
        return None

    def count_readable(self, items: Sequence[tuple[Path, int]]) -> Counter[int]:
        """Count by label the images that have not failed so far."""
        return Counter(label for path, label in items if path not in self.unreadable)

    def check(self) -> None:
        """Raise `UserError` with the count and the first names if more failed than the job allows."""
        if self.given_up:
            raise UserError(
                f"{len(self.unreadable)} of {self.listed} images were unreadable so far, more than "
                f"unreadable_share allows ({self.allowed}): {self.examples()}. Repair or remove them, or "
                "raise unreadable_share."
            )

    def report(self) -> None:
        """Log how many images were skipped."""
        if self.unreadable:
            logger.warning("Skipped %s of %s images as unreadable.", len(self.unreadable), self.listed)

    def examples(self) -> str:
        """Return the names of the first three unreadable images with their reasons."""
        first = sorted(self.unreadable.items())[:3]
        return "; ".join(f"{path.parent.name}/{path.name} ({reason.rstrip('.')})" for path, reason in first)

    def _add_unreadable(self, path: Path, reason: str) -> None:
        with self._lock:
            if path in self.unreadable:
                return
            self.unreadable[path] = reason
            count = len(self.unreadable)
        if count <= MAX_NAMED:
            logger.warning("Skipped the unreadable image %s: %s", path, reason)
        if count == MAX_NAMED:
            logger.warning("Further unreadable images are counted without being named.")


def stack_images(images: Iterable[Pixels], spec: Preprocessing) -> Pixels:
    """Return preprocessed images as one array (n, h, w, c), which may be empty."""
    return np.array([*images], spec.dtype).reshape(-1, *spec.shape)


def load_batches(shares: Any, load: Callable[..., Any], spec: Preprocessing) -> Any:
    """Return a `tf.data.Dataset` of `load` applied to each element of the dataset `shares`, in their order.

    `load` takes an element's parts as arrays and returns (pixels (n, *spec.shape), labels int64 (n,), weights
    float32 (n,)). The first result without rows ends the dataset.
    """
    import tensorflow as tf

    types = [tf.as_dtype(spec.dtype), tf.int64, tf.float32]

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def call(*share: Any) -> Any:
        return tf.numpy_function(load, share, types)

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def has_rows(_pixels: Any, labels: Any, _weights: Any) -> Any:
        return tf.size(labels) > 0

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def shape(*parts: Any) -> Any:
        shapes = (None, *spec.shape), (None,), (None,)
        return tuple(tf.ensure_shape(part, shape) for part, shape in zip(parts, shapes, strict=True))

    options = tf.data.Options()
    # All numbers are set, so there is nothing to tune. On two cores the tuning took one of them from the
    # step in every other pass, which halved the speed (docs/performance.md).
    options.autotune.enabled = False
    return (
        shares.map(call, num_parallel_calls=CONCURRENT_BATCHES, deterministic=True)
        .take_while(has_rows)
        .map(shape)
        .prefetch(CONCURRENT_BATCHES)
        .with_options(options)
    )
