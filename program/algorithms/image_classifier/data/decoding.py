"""Picture files to rows: many at once, and kept in memory where they all fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from algorithms.image_classifier.data.dataset import Pixels, Reader
from algorithms.image_classifier.data.order import Indices
from tandem.images.codec import Preprocessing
from tandem.runtime import resources

logger = logging.getLogger(__name__)

#: The share of this process's memory that decoded pictures may stay in, those of all channels together.
MEMORY_SHARE = 0.5

#: Batches that are loaded at once: threads that are done with one begin the next.
AT_ONCE = 2

UNKNOWN, READABLE, UNREADABLE = 0, 1, 2

Flags = np.ndarray[Any, np.dtype[np.bool_]]


def load_batches(shares: Any, load: Callable[..., Any], spec: Preprocessing) -> Any:
    """Give a `tf.data.Dataset` of what `load` makes of each element of the dataset `shares`, in their order.

    `load` takes an element's parts as arrays and gives (pixels (n, *spec.shape), labels int64 (n,), weights
    float32 (n,)); the first that it gives without a row ends the dataset.
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
    # All numbers are set, so there is nothing to tune; and on two cores the tuning took one of them from the
    # step in every other pass, which halved the speed (docs/performance.md).
    options.autotune.enabled = False
    return (
        shares.map(call, num_parallel_calls=AT_ONCE, deterministic=True)
        .take_while(has_rows)
        .map(shape)
        .prefetch(AT_ONCE)
        .with_options(options)
    )


class Decoder:
    """Reads files by their index; threads may share it.

    `memory` is how many bytes these pictures may stay in once decoded; None: what the reader's other pictures
    leave of a share of what this process may use.
    """

    def __init__(self, paths: Sequence[Path], reader: Reader, memory: int | None = None) -> None:
        self._paths = paths
        self._reader = reader
        self._states = np.zeros(len(paths), np.uint8)
        self._cores = resources.count_cores()
        self._pool = ThreadPoolExecutor(self._cores, thread_name_prefix="decode")
        self._stand_in: Pixels | None = None
        shape, dtype = (len(paths), *reader.spec.shape), np.dtype(reader.spec.dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        allowed = memory
        if allowed is None:
            allowed = int(resources.count_memory() * MEMORY_SHARE) - reader.kept_bytes
        #: pages of this array are the system's until a picture is written to them
        self._kept: Pixels | None = np.empty(shape, dtype) if size <= allowed else None
        reader.kept_bytes += size if size <= allowed else 0
        logger.info(
            "%s pictures take %.1f MB decoded and may take %.1f MB: %s",
            *(len(paths), size / 1e6, allowed / 1e6),
            "read once and kept in memory" if size <= allowed else "read anew each epoch",
        )

    def read(self, chosen: Indices) -> tuple[Pixels, Flags]:
        """Give the rows of the chosen files (n, h, w, c), and which of them could be read.

        Where one could not, the pixels of another of them stand, or of the first file that can be read.
        """
        if self._kept is not None:
            self._fill(self._kept, chosen, np.flatnonzero(self._states[chosen] == UNKNOWN), chosen)
            pixels = self._kept[chosen]
        else:
            spec = self._reader.spec
            pixels = np.empty((len(chosen), *spec.shape), spec.dtype)
            wanted = np.flatnonzero(self._states[chosen] != UNREADABLE)
            self._fill(pixels, np.arange(len(chosen)), wanted, chosen)
        readable = self._states[chosen] == READABLE
        if not readable.all():
            pixels[~readable] = pixels[readable.argmax()] if readable.any() else self._find_stand_in()
        return pixels, readable

    def _fill(self, target: Pixels, places: Indices, wanted: Indices, chosen: Indices) -> None:
        """Read the wanted ones of the chosen files into their places, a piece of them a thread."""

        def read(piece: Indices) -> None:
            for number in piece.tolist():
                index = chosen[number]
                pixels = None if self._reader.given_up else self._reader.read(self._paths[index])
                if pixels is not None:
                    target[places[number]] = pixels
                self._states[index] = UNREADABLE if pixels is None else READABLE

        pieces = [piece for piece in np.array_split(wanted, 2 * self._cores) if len(piece)]
        for done in [self._pool.submit(read, piece) for piece in pieces]:
            done.result()

    def _find_stand_in(self) -> Pixels:
        """Give the first picture that can be read, or black where none can."""
        if self._stand_in is None:
            spec = self._reader.spec
            found = (self._reader.read(path) for path in self._paths if not self._reader.given_up)
            black = np.zeros(spec.shape, spec.dtype)
            self._stand_in = next((pixels for pixels in found if pixels is not None), black)
        return self._stand_in
