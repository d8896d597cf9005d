"""Batches of pictures that lie in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from algorithms.image_classifier.data import order
from algorithms.image_classifier.data.dataset import Pixels, Reader
from algorithms.image_classifier.data.decoding import Decoder, load_batches


class FileSource:
    """A `Source` of files; with a seed in another order each epoch, with None in that of `items`.

    Without `parts` all hosts list the same items, and each global batch is cut among them. With `parts`, the
    number of items that each host has for itself, every host spreads its own evenly over the steps.
    `memory` is how many bytes its decoded pictures may stay in; None: see `Decoder`.
    """

    def __init__(
        self,
        items: Sequence[tuple[Path, int]],
        labels: Sequence[str],
        reader: Reader,
        batch_size: int,
        seed: int | None = None,
        *,
        rank: int = 0,
        hosts: int = 1,
        parts: Sequence[int] | None = None,
        memory: int | None = None,
    ) -> None:
        self.labels = tuple(labels)
        self.rows = len(items) if parts is None else sum(parts)
        self._indices = np.array([label for _, label in items], np.int64)
        self._reader = reader
        self._paths = [path for path, _ in items]
        self._decoder = Decoder(self._paths, reader, memory)
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._hosts = hosts
        self._has_own = parts is not None

    @property
    def steps(self) -> int:
        """Global batches of one pass."""
        return -(-self.rows // self._batch_size)

    def name(self, row: int) -> str:
        """Name a row of a pass in order: its label's folder and its file."""
        path = self._paths[row]
        return f"{path.parent.name}/{path.name}"

    def check(self) -> None:
        """Raise `UserError` if more pictures were unreadable than the job allows."""
        self._reader.check()

    def batches(self, epoch: int, start: int = 0) -> Any:
        """Give a `tf.data.Dataset` of this host's share of each batch of `epoch`, from batch `start` on."""
        import tensorflow as tf

        indices = order.shuffle(len(self._indices), self._seed, epoch)
        steps = tf.data.Dataset.range(start, self.steps)
        return load_batches(steps, lambda step: self._load(indices, int(step)), self._reader.spec)

    def _load(self, indices: order.Indices, step: int) -> tuple[Pixels, order.Indices, Any]:
        """Read this host's share of one batch; it is empty once the reader has given up."""
        if self._has_own:
            chosen, counts = order.spread(indices, step, self.steps)
        else:
            chosen, counts = order.share(indices, step, self._batch_size, self._rank, self._hosts)
        pixels, readable = self._decoder.read(chosen)
        kept = slice(0) if self._reader.given_up else slice(None)
        return pixels[kept], self._indices[chosen[kept]], (readable[kept] & counts).astype(np.float32)
