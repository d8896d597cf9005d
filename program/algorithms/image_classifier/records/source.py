"""Batches of images that come as records: one pass through a stream per epoch, never all in memory."""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from algorithms.image_classifier.data import order
from algorithms.image_classifier.data.images import ImageReader, Pixels, load_batches, stack_images
from algorithms.image_classifier.data.source import Batching
from algorithms.image_classifier.records.parsing import Record
from algorithms.image_classifier.records.streams import Stream, shuffle_buffered
from tandem.errors import TandemError, UserError
from tandem.records.pipes import PipeStopped
from tandem.runtime import resources

logger = logging.getLogger(__name__)

Row = tuple[int, bytes, int]  # number in the channel, image, label's index
T = TypeVar("T")

#: Stands in while no record has been read.
EMPTY_ROW: Row = (-1, b"", 0)

#: Records that a sample keeps in all, and of each label.
SAMPLE_SIZE = 256
SAMPLE_SIZE_PER_LABEL = 8


class RecordSource:
    """A `Source` of records; with a seed it draws them from a buffer, without one it keeps their order.

    The number of rows is declared, because a FIFO does not show it: further records are ignored, and rows
    that do not count replace missing ones. `wanted` selects records by their number in the stream.
    """

    def __init__(
        self,
        stream: Stream,
        labels: Sequence[str],
        reader: ImageReader,
        batching: Batching,
        wanted: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self.labels = tuple(labels)
        self.rows = batching.rows
        self.steps = batching.steps
        self._stream = stream
        self._reader = reader
        self._batching = batching
        self._wanted = wanted
        self._label_indices = {label: index for index, label in enumerate(labels)}
        self._pool = ThreadPoolExecutor(resources.count_cores(), thread_name_prefix="decode")
        self._names = RecordNames(stream.name, steady=stream.steady)
        self._passes = 0
        self._sample: Sample[Row] = Sample()
        self._numbers: list[int] = []
        self._failure: TandemError | None = None
        self._warned = False

    def check(self) -> None:
        """Raise the error that ended the stream, or `UserError` if too many images were unreadable."""
        if self._failure is not None:
            raise self._failure
        self._reader.check()

    def name(self, row: int) -> str:
        """Return a readable name for a row of the last unshuffled pass."""
        return f"{self._stream.name}/record {self._numbers[row]}"

    def sample(self, count: int) -> Pixels:
        """Return up to `count` images of the passes so far, one of each label in turn; (n, h, w, c)."""
        decoded = map(self._decode_one, self._sample)
        found = (pixels for pixels in decoded if pixels is not None)
        return stack_images(itertools.islice(found, count), self._reader.spec)

    def batches(self, epoch: int, start: int = 0) -> Any:
        """Return a `tf.data.Dataset` of this host's share of each batch of `epoch`, from batch `start` on.

        Each iteration reads one pass of the stream. If the stream fails, it ends early and `check` raises the
        error. A stop while it waits also ends it, but with several hosts it goes on with rows that do not
        count, because the other hosts wait for this one in every step.
        """
        import tensorflow as tf

        rows, images = (tf.TensorSpec((None,), kind) for kind in (tf.int64, tf.string))
        shares = tf.data.Dataset.from_generator(
            lambda: self._read(epoch, start),
            output_signature=(tf.TensorSpec((), tf.int64), rows, images, rows, rows),
        )
        return load_batches(shares, self._decode, self._reader.spec)

    def _read(self, epoch: int, start: int) -> Iterator[tuple[Any, ...]]:
        """Yield each share as the pass's number and its rows' numbers, images, labels, and which count."""
        if start >= self.steps:
            return
        step, number = start, self._passes
        self._passes += 1
        try:
            for share, count in itertools.islice(self._cut(self._order(epoch)), start, None):
                step += 1
                yield number, *_as_arrays(share, count)
        except PipeStopped as stopped:
            logger.info("%s", stopped)
            if self._batching.hosts > 1:  # all hosts leave after the same step
                row = next(iter(self._sample), EMPTY_ROW)
                yield from itertools.repeat((number, *_as_arrays([row], 0)), self.steps - step)
        except TandemError as error:
            self._failure = error
        except OSError as error:
            self._failure = TandemError(f"channel {self._stream.name} cannot be read: {error}.")

    def _cut(self, rows: Iterator[Row]) -> Iterator[tuple[list[Row], int]]:
        """Yield this host's share of each batch, padded with the first row, and how many rows count."""
        batching = self._batching
        first: Row | None = None
        for step in range(self.steps):
            if batching.parts is None:
                size = min(batching.batch_size, self.rows - step * batching.batch_size)
                own = order.cut(size, batching.rank, batching.hosts)
            else:
                part = order.cut(batching.own_rows, step, self.steps)
                size = part.stop - part.start
                own = slice(0, size)
            read = list(itertools.islice(rows, size))
            first = first or (read[0] if read else None)
            if first is None:
                raise UserError(f"channel {self._stream.name} has no record in this pass; expected images.")
            share = read[own]
            yield share + [first] * (max(own.stop - own.start, 1) - len(share)), len(share)

    def _order(self, epoch: int) -> Iterator[Row]:
        """Yield the rows of one pass in the order in which they are batched."""
        rows = self._read_rows(epoch)
        if self._batching.seed is None:
            return rows
        return shuffle_buffered(rows, f"{self._batching.seed} {epoch}", lambda row: len(row[1]))

    def _read_rows(self, epoch: int) -> Iterator[Row]:
        """Yield the rows of one pass in the stream's order, as many as expected, and sample some."""
        expected, seed = self._batching.own_rows, self._batching.seed
        stream = self._stream.read(epoch, seed)
        self._numbers.clear()
        taken = 0
        for number, record in stream:
            if not self._wanted(number):
                continue
            if taken == expected:
                self._warn_of_count("more than")
                return
            taken += 1
            row = number, record.image, self._find_label(number, record)
            self._sample.add(row[2], row)
            if seed is None:
                self._numbers.append(number)
            yield row
        if taken < expected:
            self._warn_of_count(f"only {taken} of")

    def _find_label(self, number: int, record: Record) -> int:
        label = self._label_indices.get(record.text, -1) if record.label < 0 else record.label
        if 0 <= label < len(self.labels):
            return label
        got = repr(record.text) if record.label < 0 else str(record.label)
        raise UserError(
            f"channel {self._stream.name}: record {number} has the label {got}; expected one of "
            f"{len(self.labels)}: {', '.join(self.labels[:10])}{', …' if len(self.labels) > 10 else ''}."
        )

    def _warn_of_count(self, found: str) -> None:
        """Warn once that the stream does not have the declared number of records."""
        if not self._warned:
            self._warned = True
            logger.warning(
                "channel %s: a pass had %s the %s records expected; correct num_%s_samples.",
                *(self._stream.name, found, self._batching.own_rows, self._stream.name),
            )

    def _decode(
        self, pass_number: Any, numbers: Any, images: Any, labels: Any, flags: Any
    ) -> tuple[Pixels, Any, Any]:
        """Decode one share; unreadable images do not count. It is empty once the reader has given up."""
        rows = list(zip(numbers.tolist(), images.tolist(), labels.tolist(), strict=True))
        decode = functools.partial(self._decode_one, pass_number=int(pass_number))
        decoded = list(self._pool.map(decode, rows))
        readable = np.array([pixels is not None for pixels in decoded])
        black = np.zeros(self._reader.spec.shape, self._reader.spec.dtype)
        fallback = next((pixels for pixels in decoded if pixels is not None), black)
        pixels = np.stack([fallback if found is None else found for found in decoded])
        kept = slice(0) if self._reader.given_up else slice(None)
        return pixels[kept], labels[kept], (readable & flags.astype(bool)).astype(np.float32)[kept]

    def _decode_one(self, row: Row, pass_number: int | None = None) -> Pixels | None:
        """Decode one image; return None for an unreadable one, which the reader counts."""
        if row == EMPTY_ROW or self._reader.given_up:
            return None
        number, image, _ = row
        return self._reader.decode(image, lambda: self._names.find(number, image, pass_number))


class Sample(Generic[T]):
    """The first records of each label, up to a limit."""

    def __init__(self) -> None:
        self._kept: dict[int, list[T]] = {}

    def add(self, label: int, record: T) -> None:
        """Keep the record unless the limits are reached."""
        kept = self._kept.setdefault(label, [])
        if len(kept) < SAMPLE_SIZE_PER_LABEL and sum(map(len, self._kept.values())) < SAMPLE_SIZE:
            kept.append(record)

    def __iter__(self) -> Iterator[T]:
        """Yield the records, one of each label in turn."""
        for index in range(SAMPLE_SIZE_PER_LABEL):
            yield from [kept[index] for kept in self._kept.values() if index < len(kept)]


class RecordNames:
    """The names of a channel's unreadable records, one per record over all passes; threads may share them.

    With `steady` a record has the same number in each pass, which names it. Otherwise its name depends on its
    content and on how many unreadable records with the same content came before it in the pass. So there are
    as many names as records failed in the worst pass, even if several have the same bytes.
    """

    def __init__(self, channel: str, *, steady: bool) -> None:
        self._channel = channel
        self._steady = steady
        self._names: dict[tuple[int, int], Path] = {}
        # pass → content → number in the stream → rank among the failed records of that content
        self._failed: dict[int, dict[int, dict[int, int]]] = {}
        self._lock = threading.Lock()

    def find(self, number: int, image: bytes, pass_number: int | None) -> Path:
        """Return the name of a record; without a pass number, the name of any record with its content."""
        if self._steady:
            return Path(self._channel, f"record {number}")
        content = zlib.crc32(image)
        with self._lock:
            rank = 0
            if pass_number is not None:
                same = self._failed.setdefault(pass_number, {}).setdefault(content, {})
                rank = same.setdefault(number, len(same))  # a record that pads a batch fails repeatedly
                recent = {kept: failed for kept, failed in self._failed.items() if kept >= pass_number - 1}
                self._failed = recent
            where = f" of pass {pass_number + 1}" if pass_number else ""
            return self._names.setdefault((content, rank), Path(self._channel, f"record {number}{where}"))


def _as_arrays(share: Sequence[Row], count: int) -> tuple[Any, ...]:
    """Return a share as its rows' numbers, images, labels, and flags; the first `count` rows count."""
    numbers, images, labels = zip(*share, strict=True)
    flags = np.arange(len(share)) < count
    return np.array(numbers), np.array(images, object), np.array(labels), flags.astype(np.int64)
