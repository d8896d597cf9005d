"""The ways in which batches come to the step that fits: each gives passes, which are iterables of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from algorithms.image_classifier.data.images import ImageReader
from algorithms.image_classifier.data.source import Batching
from algorithms.image_classifier.files import listing
from algorithms.image_classifier.files.source import FileSource
from tandem.images.codec import Preprocessing
from tandem.jobs.channels import Channel

SEED = 0

#: One pass over the pictures: an epoch's number to its batches of (pixels, labels int64, weights float32).
Pass = Callable[[int], Iterable[Any]]


@dataclass(frozen=True)
class Feed:
    """What is fed: the pictures, how they are read, and how many at once."""

    folder: Path
    size: int
    batch_size: int

    @property
    def spec(self) -> Preprocessing:
        """How pictures are read."""
        return Preprocessing(height=self.size, width=self.size)

    def make_source(self, memory: int | None) -> FileSource:
        """Give our source, with so many bytes to keep decoded pictures in; None: as many as it likes."""
        items, labels = self._list()
        reader = ImageReader(self.spec, len(items), 0)
        return FileSource(items, labels, reader, Batching(len(items), self.batch_size, SEED), memory)

    def _list(self) -> tuple[list[listing.Item], tuple[str, ...]]:
        labels = listing.sort_labels(path.name for path in self.folder.iterdir() if path.is_dir())
        return listing.list_labelled(Channel("training", self.folder), labels), labels


def keep_tensors(feed: Feed) -> Pass:
    """The limit: batches that are tensors already, so that feeding costs nothing."""
    batches = list(feed.make_source(memory=0).batches(1))
    return lambda _epoch: batches


def read_files(feed: Feed, memory: int | None) -> Pass:
    """Ours: each epoch in another order, from files or from what was kept of them."""
    return feed.make_source(memory).batches


def use_keras(feed: Feed, *, cached: bool) -> Pass:
    """Keras's own: `image_dataset_from_directory`, which shuffles, reads ahead and gives float32 pixels."""
    import keras
    import tensorflow as tf

    dataset = keras.utils.image_dataset_from_directory(
        feed.folder,
        image_size=(feed.size, feed.size),
        batch_size=None if cached else feed.batch_size,
        seed=SEED,
        verbose=False,
    )
    if cached:  # as Keras's guides do it: what is kept is single pictures, so that each epoch has its order
        dataset = dataset.cache().shuffle(1000, seed=SEED).batch(feed.batch_size)

    def weigh(pixels: Any, labels: Any) -> Any:
        return pixels, tf.cast(labels, tf.int64), tf.ones(tf.shape(labels)[:1])

    dataset = dataset.map(weigh, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    return lambda _epoch: dataset
