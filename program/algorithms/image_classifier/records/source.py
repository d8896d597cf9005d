"""Batches of pictures that come as records: one pass through a stream an epoch, never all in memory."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from algorithms.image_classifier.data import order
from algorithms.image_classifier.data.dataset import Pixels, Reader
from algorithms.image_classifier.data.decoding import load_batches
from algorithms.image_classifier.records.names import Names
from algorithms.image_classifier.records.parsing import Record
from algorithms.image_classifier.records.sample import Sample
from algorithms.image_classifier.records.streams import Stream, draw
from tandem.errors import TandemError, UserError
from tandem.records.pipes import PipeStopped
from tandem.runtime import resources

logger = logging.getLogger(__name__)

Row = tuple[int, bytes, int]  # number in the channel, picture, label's index

#: Stands in where no record has come yet.
NOTHING: Row = (-1, b"", 0)


class RecordSource:
    """A `Source` of records; with a seed it draws them from a buffer, with None it keeps their order.

    `rows` is told, since a FIFO shows nothing beforehand: more are left out, and for fewer, rows that do not
    count stand in. Without `parts` all hosts read the same stream, and each global batch is cut among them.
    With `parts`, how many records each host has for itself, every host spreads its own over the steps.
    `wanted` picks records by their number in the stream.
    """

    def __init__(
        self,
        stream: Stream,
        labels: Sequence[str],
        rows: int,
        reader: Reader,
        *,
        batch_size: int,
        seed: int | None = None,
        rank: int = 0,
        hosts: int = 1,
        parts: Sequence[int] | None = None,
        wanted: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self.labels = tuple(labels)
        self.rows = rows
        self._stream = stream
        self._reader = reader
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._hosts = hosts
        self._parts = parts
        self._wanted = wanted
        self._places = {label: place for place, label in enumerate(labels)}
        self._pool = ThreadPoolExecutor(resources.count_cores(), thread_name_prefix="decode")
        self._names = Names(stream.name, steady=stream.steady)
        self._turns = 0
        self._kept: Sample[Row] = Sample()
        self._numbers: list[int] = []
        self._failure: TandemError | None = None
        self._told = False

    @property
    def steps(self) -> int:
        """Global batches of one pass."""
        return -(-self.rows // self._batch_size)

    def check(self) -> None:
        """Raise what ended the stream, or `UserError` if more were unreadable than the job allows."""
        if self._failure is not None:
            raise self._failure
        self._reader.check()

    def name(self, row: int) -> str:
        """Name a row of the last pass in order, for people."""
        return f"{self._stream.name}/record {self._numbers[row]}"

    def sample(self, count: int) -> Pixels:
        """Give up to `count` pictures of the passes so far, one of each label in turn; (n, h, w, c)."""
        decoded = map(self._decode_one, self._kept)
        chosen = list(itertools.islice((pixels for pixels in decoded if pixels is not None), count))
        spec = self._reader.spec
        return np.stack(chosen) if chosen else np.zeros((0, *spec.shape), spec.dtype)

    def batches(self, epoch: int, start: int = 0) -> Any:
        """Give a `tf.data.Dataset` of this host's share of each batch of `epoch`, from batch `start` on.

        Each time it is iterated it reads one pass of the stream. It ends early where the stream fails, which
        `check` then tells. A stop while it waits ends it too, but of several hosts none leaves the others
        alone: it goes on with rows that do not count.
        """
        import tensorflow as tf

        rows, pictures = (tf.TensorSpec((None,), kind) for kind in (tf.int64, tf.string))
        shares = tf.data.Dataset.from_generator(
            lambda: self._read(epoch, start),
            output_signature=(tf.TensorSpec((), tf.int64), rows, pictures, rows, rows),
        )
        return load_batches(shares, self._decode, self._reader.spec)

    def _read(self, epoch: int, start: int) -> Iterator[tuple[Any, ...]]:
        """Yield each share as the pass's number and its rows' numbers, pictures, labels, and which count."""
        if start >= self.steps:
            return
        step, turn = start, self._turns
        self._turns += 1
        try:
            for share, counts in itertools.islice(self._cut(self._order(epoch)), start, None):
                step += 1
                yield turn, *_as_arrays(share, counts)
        except PipeStopped as stopped:
            logger.info("%s", stopped)
            if self._hosts > 1:  # the others may wait for this one's step; all leave after the same one
                row = next(iter(self._kept), NOTHING)
                yield from itertools.repeat((turn, *_as_arrays([row], 0)), self.steps - step)
        except TandemError as error:
            self._failure = error
        except OSError as error:
            self._failure = TandemError(f"channel {self._stream.name} cannot be read: {error}.")

    def _cut(self, rows: Iterator[Row]) -> Iterator[tuple[list[Row], int]]:
        """Yield this host's share of each batch, and how many rows of it count; the first row fills it up."""
        first: Row | None = None
        for step in range(self.steps):
            if self._parts is None:
                size = min(self._batch_size, self.rows - step * self._batch_size)
                own = order.cut(size, self._rank, self._hosts)
            else:
                mine = order.cut(self._parts[self._rank], step, self.steps)
                size = mine.stop - mine.start
                own = slice(0, size)
            read = list(itertools.islice(rows, size))
            first = first or (read[0] if read else None)
            if first is None:
                raise UserError(f"channel {self._stream.name} has no record in this pass; expected pictures.")
            share = read[own]
            yield share + [first] * (max(own.stop - own.start, 1) - len(share)), len(share)

    def _order(self, epoch: int) -> Iterator[Row]:
        """Yield the rows of one pass in the order in which they are batched."""
        rows = self._take(epoch)
        if self._seed is None:
            return rows
        return draw(rows, f"{self._seed} {epoch}", lambda row: len(row[1]))

    def _take(self, epoch: int) -> Iterator[Row]:
        """Yield the rows of one pass in the stream's order, as many as expected; keep some as a sample."""
        expected = self.rows if self._parts is None else self._parts[self._rank]
        stream = self._stream.read(epoch, self._seed)
        self._numbers.clear()
        taken = 0
        for number, record in stream:
            if not self._wanted(number):
                continue
            if taken == expected:
                self._tell("more than")
                return
            taken += 1
            row = number, record.picture, self._find_label(number, record)
            self._kept.add(row[2], row)
            if self._seed is None:
                self._numbers.append(number)
            yield row
        if taken < expected:
            self._tell(f"only {taken} of")

    def _find_label(self, number: int, record: Record) -> int:
        label = self._places.get(record.text, -1) if record.label < 0 else record.label
        if 0 <= label < len(self.labels):
            return label
        got = repr(record.text) if record.label < 0 else str(record.label)
        raise UserError(
            f"channel {self._stream.name}: record {number} has the label {got}; expected one of "
            f"{len(self.labels)}: {', '.join(self.labels[:10])}{', …' if len(self.labels) > 10 else ''}."
        )

    def _tell(self, what: str) -> None:
        """Say once that the stream does not hold what was told."""
        if not self._told:
            self._told = True
            expected = self.rows if self._parts is None else self._parts[self._rank]
            logger.warning(
                "channel %s: a pass held %s the %s records expected; correct num_%s_samples.",
                *(self._stream.name, what, expected, self._stream.name),
            )

    def _decode(
        self, turn: Any, numbers: Any, pictures: Any, labels: Any, flags: Any
    ) -> tuple[Pixels, Any, Any]:
        """Decode one share, in which unreadable pictures do not count; empty once the reader has given up."""
        rows = list(zip(numbers.tolist(), pictures.tolist(), labels.tolist(), strict=True))
        decoded = list(self._pool.map(functools.partial(self._decode_one, turn=int(turn)), rows))
        readable = np.array([pixels is not None for pixels in decoded])
        spec = self._reader.spec
        stand_in = next(
            (pixels for pixels in decoded if pixels is not None), np.zeros(spec.shape, spec.dtype)
        )
        pixels = np.stack([stand_in if found is None else found for found in decoded])
        kept = slice(0) if self._reader.given_up else slice(None)
        return pixels[kept], labels[kept], (readable & flags.astype(bool)).astype(np.float32)[kept]

    def _decode_one(self, row: Row, turn: int | None = None) -> Pixels | None:
        """Decode a picture of pass `turn`; None for an unreadable one, which the reader counts."""
        if row == NOTHING or self._reader.given_up:
            return None
        number, picture, _ = row
        return self._reader.decode(picture, lambda: self._names.find(number, picture, turn))


def _as_arrays(share: Sequence[Row], counts: int) -> tuple[Any, ...]:
    """Give a share as its rows' numbers, pictures, labels, and which of them count: the first ones."""
    numbers, pictures, labels = zip(*share, strict=True)
    flags = np.arange(len(share)) < counts
    return np.array(numbers), np.array(pictures, object), np.array(labels), flags.astype(np.int64)
