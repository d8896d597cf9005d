"""Streams of records, pass by pass: the files of a channel, or its FIFOs."""

from __future__ import annotations

import functools
import io
import logging
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, TypeVar

from algorithms.image_classifier.data import order
from algorithms.image_classifier.records import parsing
from algorithms.image_classifier.records.parsing import Record
from tandem.errors import UserError
from tandem.jobs.channels import Channel
from tandem.records import pipes
from tandem.records.compression import decompress

logger = logging.getLogger(__name__)

#: Suffixes of files that have records whatever the channel's content type is, also with .gz.
RECORD_SUFFIXES = (".rec", ".tfrecord", ".tfrecords", ".tfrec")

#: Suffixes of the lists that MXNet's and other tools write beside record files.
IGNORED_SUFFIXES = (".idx", ".lst", ".index", ".json", ".txt", ".md")

#: Files that are surveyed at the same time, because each access to an S3 mount has to wait.
CONCURRENT_FILES = 16

#: The size of the shuffle buffer in records and bytes; constants, so that the order is the same everywhere.
BUFFERED_RECORDS = 10_000
BUFFERED_BYTES = 256_000_000

#: A record and its number in the channel, from 0.
NumberedRecord = tuple[int, Record]

T = TypeVar("T")


class Stream(Protocol):
    """A channel's records; each pass reads all of them."""

    name: str
    #: whether a record has the same number in every pass
    steady: bool

    def read(self, epoch: int, seed: int | None) -> Iterator[NumberedRecord]:
        """Yield the records of one pass; with a seed, in an order of the epoch's where that costs nothing."""
        ...


class PipeStream:
    """The FIFOs of a Pipe channel; a job's first pass reads the first FIFO, whichever epoch it is."""

    steady = False  # the platform may give each FIFO an order of its own

    def __init__(self, channel: Channel, stop: threading.Event, timeout: float = pipes.TIMEOUT) -> None:
        self.name = channel.name
        self._channel = channel
        self._stop = stop
        self._timeout = timeout
        self._passes = 0

    def read(self, epoch: int, seed: int | None) -> Iterator[NumberedRecord]:  # noqa: ARG002  # the platform's order
        """Yield the records of the next FIFO in its order; raises as `open_pipe` and `read_images` do."""
        number, self._passes = self._passes, self._passes + 1
        name = f"channel {self.name}, {self._channel.directory.name}_{number}"
        with pipes.open_pipe(self._channel.directory, number, self._stop, self._timeout) as stream:
            yield from enumerate(parsing.read_images(stream, name, self._channel.content_type))


@dataclass(frozen=True)
class ShardStats:
    """A host's part of a channel: its number of records, their labels (None: unknown), and the labels' texts.

    The label -1 stands for records that only have a text.
    """

    rows: int
    labels: Counter[int] | None = None
    texts: dict[int, set[str]] = field(default_factory=dict)

    def as_json(self) -> list[Any]:
        """Return the value that hosts exchange."""
        labels = None if self.labels is None else sorted(self.labels.items())
        return [self.rows, labels, [[label, sorted(texts)] for label, texts in sorted(self.texts.items())]]

    @classmethod
    def from_json(cls, value: Any) -> ShardStats:
        """Return the statistics that `as_json` wrote."""
        rows, labels, texts = value
        counted = None if labels is None else Counter(dict(labels))
        return cls(rows, counted, {label: set(names) for label, names in texts})


def merge_texts(shards: Iterable[ShardStats]) -> dict[int, set[str]]:
    """Return all texts of each label."""
    merged: dict[int, set[str]] = {}
    for shard in shards:
        for label, texts in shard.texts.items():
            merged.setdefault(label, set()).update(texts)
    return merged


class FileStream:
    """The record files of a File or FastFile channel."""

    steady = True

    def __init__(self, channel: Channel, paths: Sequence[Path]) -> None:
        self.name = channel.name
        self._channel = channel
        self._paths = paths
        self._first_numbers: list[int] = []

    def read(self, epoch: int, seed: int | None) -> Iterator[NumberedRecord]:
        """Yield all records; a seed shuffles the files for the epoch. `survey` must have been called."""
        for index in order.shuffle(len(self._paths), seed, epoch).tolist():
            with self._open(index, 1 << 18) as stream:
                images = parsing.read_images(stream, self._name(index), self._channel.content_type)
                yield from enumerate(images, start=self._first_numbers[index])

    def survey(self, *, with_labels: bool = True) -> ShardStats:
        """Count the records; it reads only headers, except of TFRecord files if labels are wanted."""
        with ThreadPoolExecutor(CONCURRENT_FILES, thread_name_prefix="survey") as pool:
            survey = functools.partial(self._survey_file, with_labels=with_labels)
            files = list(pool.map(survey, range(len(self._paths))))
        rows = [file.rows for file in files]
        self._first_numbers = [0, *accumulate(rows)][:-1]
        logger.info("channel %s: %s records in %s files", self.name, sum(rows), len(rows))
        labels: Counter[int] = Counter()
        for file in files:
            labels.update(file.labels or {})
        return ShardStats(sum(rows), labels if with_labels else None, merge_texts(files))

    def _survey_file(self, index: int, *, with_labels: bool) -> ShardStats:
        labels: Counter[int] = Counter()
        texts: dict[int, set[str]] = {}
        name, content_type = self._name(index), self._channel.content_type
        with self._open(index, 1 << 13) as stream:
            if not with_labels:
                return ShardStats(parsing.count_images(stream, name, content_type))
            for record in parsing.read_images(stream, name, content_type, head=parsing.LABEL_BYTES):
                labels[record.label] += 1
                if record.text:
                    texts.setdefault(record.label, set()).add(record.text)
        return ShardStats(labels.total(), labels, texts)

    def _open(self, index: int, buffer_size: int) -> io.BufferedReader:
        try:
            return decompress(
                io.BufferedReader(io.FileIO(self._paths[index]), buffer_size), self._name(index)
            )
        except OSError as error:
            raise UserError(f"{self._name(index)} cannot be read: {error.strerror}.") from error

    def _name(self, index: int) -> str:
        return f"channel {self.name}, {self._paths[index].name}"


def find_record_files(channel: Channel) -> list[Path]:
    """Return the paths of a channel's record files, sorted.

    If its content type declares records, these are all its files except lists; otherwise the files at its top
    level with the suffixes of records. The folders of a channel of image files are not read.
    """
    folder = channel.directory
    if channel.content_type in parsing.CONTENT_TYPES:
        found = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
        return sorted(
            path for path in found if path.name[0] != "." and not _has_suffix(path, IGNORED_SUFFIXES)
        )
    names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208  # names are enough
    paths = (folder / name for name in names if name[0] != ".")
    return sorted(path for path in paths if _has_suffix(path, RECORD_SUFFIXES))


def shuffle_buffered(items: Iterator[T], key: str, measure: Callable[[T], int]) -> Iterator[T]:
    """Yield the items in a random order that depends on `key`, drawing each from a buffer.

    The buffer is limited to BUFFERED_RECORDS and, by the sizes that `measure` returns, to BUFFERED_BYTES.
    """
    generator = random.Random(key)  # noqa: S311  # an order is no secret
    buffer: list[T] = []
    size = 0
    for item in items:
        buffer.append(item)
        size += measure(item)
        while len(buffer) > BUFFERED_RECORDS or size > BUFFERED_BYTES:
            index = generator.randrange(len(buffer))
            buffer[index], buffer[-1] = buffer[-1], buffer[index]
            drawn = buffer.pop()
            size -= measure(drawn)
            yield drawn
    generator.shuffle(buffer)
    yield from buffer


def _has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(suffixes)
