"""Batches of image files, which are decoded in parallel and kept in memory if they all fit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from algorithms.image_classifier.data import order
from algorithms.image_classifier.data.images import ImageReader, Pixels, load_batches
from algorithms.image_classifier.data.order import Indices
from algorithms.image_classifier.data.source import Batching
from algorithms.image_classifier.files.listing import Item
from tandem.runtime import resources

logger = logging.getLogger(__name__)

#: The share of this process's memory that the decoded images of all channels together may take.
MEMORY_SHARE = 0.5

UNKNOWN, READABLE, UNREADABLE = 0, 1, 2

Flags = np.ndarray[Any, np.dtype[np.bool_]]


class FileSource:
    """A `Source` of files.

    `memory` is how many bytes its decoded images may take; see `Decoder` for None.
    """

    def __init__(
        self,
        items: Sequence[Item],
        labels: Sequence[str],
        reader: ImageReader,
        batching: Batching,
        memory: int | None = None,
    ) -> None:
        self.labels = tuple(labels)
        self.rows = batching.rows
        self.steps = batching.steps
        self._label_indices = np.array([label for _, label in items], np.int64)
        self._reader = reader
        self._paths = [path for path, _ in items]
        self._decoder = Decoder(self._paths, reader, memory)
        self._batching = batching

    def name(self, row: int) -> str:
        """Return the folder and the file of a row of an unshuffled pass."""
        path = self._paths[row]
        return f"{path.parent.name}/{path.name}"

    def check(self) -> None:
        """Raise `UserError` if more images were unreadable than the job allows."""
        self._reader.check()

    def batches(self, epoch: int, start: int = 0) -> Any:
        """Return a `tf.data.Dataset` of this host's share of each batch of `epoch`, from batch `start` on."""
        import tensorflow as tf

        indices = order.shuffle(len(self._label_indices), self._batching.seed, epoch)
        steps = tf.data.Dataset.range(start, self.steps)
        return load_batches(steps, lambda step: self._load(indices, int(step)), self._reader.spec)

    def _load(self, indices: Indices, step: int) -> tuple[Pixels, Indices, Any]:
        """Read this host's share of one batch; it is empty once the reader has given up."""
        batching = self._batching
        if batching.parts is not None:
            chosen, counts = order.spread(indices, step, self.steps)
        else:
            chosen, counts = order.share(indices, step, batching.batch_size, batching.rank, batching.hosts)
        pixels, readable = self._decoder.read(chosen)
        kept = slice(0) if self._reader.given_up else slice(None)
        return pixels[kept], self._label_indices[chosen[kept]], (readable[kept] & counts).astype(np.float32)


class Decoder:
    """Decodes files by their index; threads may share it.

    `memory` is how many bytes the decoded images may take. None: a share of the memory of this process,
    without the bytes of the images that the reader's other decoders keep.
    """

    def __init__(self, paths: Sequence[Path], reader: ImageReader, memory: int | None = None) -> None:
        self._paths = paths
        self._reader = reader
        self._states = np.zeros(len(paths), np.uint8)
        self._cores = resources.count_cores()
        self._pool = ThreadPoolExecutor(self._cores, thread_name_prefix="decode")
        self._fallback: Pixels | None = None
        shape, dtype = (len(paths), *reader.spec.shape), np.dtype(reader.spec.dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        if memory is None:
            memory = int(resources.count_memory() * MEMORY_SHARE) - reader.cached_bytes
        fits = size <= memory
        # The system provides the pages of this array only when an image is written to them.
        self._cache: Pixels | None = np.empty(shape, dtype) if fits else None
        reader.cached_bytes += size if fits else 0
        logger.info(
            "%s images take %.1f MB decoded and may take %.1f MB: %s",
            *(len(paths), size / 1e6, memory / 1e6),
            "decoded once and kept in memory" if fits else "decoded again in each epoch",
        )

    def read(self, chosen: Indices) -> tuple[Pixels, Flags]:
        """Return the rows of the chosen files (n, h, w, c), and which of them were readable.

        An unreadable row has the pixels of another one of the chosen files, or of the first readable file.
        """
        if self._cache is not None:
            self._fill(self._cache, chosen, np.flatnonzero(self._states[chosen] == UNKNOWN), chosen)
            pixels = self._cache[chosen]
        else:
            spec = self._reader.spec
            pixels = np.empty((len(chosen), *spec.shape), spec.dtype)
            wanted = np.flatnonzero(self._states[chosen] != UNREADABLE)
            self._fill(pixels, np.arange(len(chosen)), wanted, chosen)
        readable = self._states[chosen] == READABLE
        if not readable.all():
            pixels[~readable] = pixels[readable.argmax()] if readable.any() else self._find_fallback()
        return pixels, readable

    def _fill(self, target: Pixels, rows: Indices, wanted: Indices, chosen: Indices) -> None:
        """Decode the `wanted` ones of the chosen files into their `rows` of `target`, in parallel."""

        def read(piece: Indices) -> None:
            for number in piece.tolist():
                index = chosen[number]
                pixels = None if self._reader.given_up else self._reader.read(self._paths[index])
                if pixels is not None:
                    target[rows[number]] = pixels
                self._states[index] = UNREADABLE if pixels is None else READABLE

        pieces = [piece for piece in np.array_split(wanted, 2 * self._cores) if len(piece)]
        for done in [self._pool.submit(read, piece) for piece in pieces]:
            done.result()

    def _find_fallback(self) -> Pixels:
        """Return the first readable image, or a black one if there is none."""
        if self._fallback is None:
            spec = self._reader.spec
            found = (self._reader.read(path) for path in self._paths if not self._reader.given_up)
            black = np.zeros(spec.shape, spec.dtype)
            self._fallback = next((pixels for pixels in found if pixels is not None), black)
        return self._fallback
