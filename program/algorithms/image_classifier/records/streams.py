"""Where records come from, pass by pass: the files of a channel, or its FIFOs."""

from __future__ import annotations

import functools
import io
import logging
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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

#: Endings of files that are records whatever the channel's content type says, each also with .gz.
SUFFIXES = (".rec", ".tfrecord", ".tfrecords", ".tfrec")

#: Endings of what MXNet's tools and others lay beside files of records.
BESIDE = (".idx", ".lst", ".index", ".json", ".txt", ".md")

#: Files that are surveyed at once: a mount of S3 makes each wait.
AT_ONCE = 16

#: How many records, and how many bytes of them, wait to be drawn from; the same on every machine.
BUFFERED_RECORDS = 10_000
BUFFERED_BYTES = 256_000_000

#: A record and its number in the channel, from 0.
Numbered = tuple[int, Record]


T = TypeVar("T")


class Stream(Protocol):
    """A channel's records, of which each pass gives all."""

    name: str
    #: whether a record has the same number in every pass
    steady: bool

    def read(self, epoch: int, seed: int | None) -> Iterator[Numbered]:
        """Yield the records of one pass; with a seed, in an order of the epoch's where that costs nothing."""
        ...


class PipeStream:
    """The FIFOs of a Pipe channel: the first pass of this job reads the first one, whichever epoch it is."""

    steady = False  # the platform may give each FIFO an order of its own

    def __init__(self, channel: Channel, stop: threading.Event, patience: float = pipes.TIMEOUT) -> None:
        self.name = channel.name
        self._channel = channel
        self._stop = stop
        self._patience = patience
        self._passes = 0

    def read(self, epoch: int, seed: int | None) -> Iterator[Numbered]:  # noqa: ARG002  # the platform's order
        """Yield the records of the next FIFO, in its order; raises as `pipes.open_pipe` and `records` do."""
        number, self._passes = self._passes, self._passes + 1
        name = f"channel {self.name}, {self._channel.directory.name}_{number}"
        with pipes.open_pipe(self._channel.directory, number, self._stop, self._patience) as stream:
            yield from enumerate(parsing.read_pictures(stream, name, self._channel.content_type))


@dataclass(frozen=True)
class Holding:
    """What a host has of a channel: its records, how many of each label (None: not known), and their texts.

    The label -1 is of records that have a text only.
    """

    rows: int
    labels: Counter[int] | None = None
    texts: dict[int, set[str]] = field(default_factory=dict)

    def as_json(self) -> list[Any]:
        """Give it as other hosts are told."""
        labels = None if self.labels is None else sorted(self.labels.items())
        return [self.rows, labels, [[label, sorted(texts)] for label, texts in sorted(self.texts.items())]]

    @classmethod
    def from_json(cls, said: Any) -> Holding:
        """Take what `as_json` gave."""
        rows, labels, texts = said
        counted = None if labels is None else Counter(dict(labels))
        return cls(rows, counted, {label: set(some) for label, some in texts})


class FileStream:
    """The record files of a File or FastFile channel."""

    steady = True

    def __init__(self, channel: Channel, paths: Sequence[Path]) -> None:
        self.name = channel.name
        self._channel = channel
        self._paths = paths
        self._firsts: list[int] = []

    def read(self, epoch: int, seed: int | None) -> Iterator[Numbered]:
        """Yield all records, with a seed the files in an order of the epoch's; after `survey`."""
        for place in order.shuffle(len(self._paths), seed, epoch).tolist():
            with self._open(place, 1 << 18) as stream:
                pictures = parsing.read_pictures(stream, self._name(place), self._channel.content_type)
                yield from enumerate(pictures, start=self._firsts[place])

    def survey(self, *, with_labels: bool = True) -> Holding:
        """Count the records. Only headers are read, but of TFRecord all where labels are asked for."""
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="survey") as pool:
            look = functools.partial(self._look, with_labels=with_labels)
            found = list(pool.map(look, range(len(self._paths))))
        rows = [some.rows for some in found]
        self._firsts = [0, *accumulate(rows)][:-1]
        logger.info("channel %s: %s records in %s files", self.name, sum(rows), len(rows))
        labels: Counter[int] = Counter()
        texts: dict[int, set[str]] = {}
        for some in found:
            labels.update(some.labels or {})
            for label, names in some.texts.items():
                texts.setdefault(label, set()).update(names)
        return Holding(sum(rows), labels if with_labels else None, texts)

    def _look(self, place: int, *, with_labels: bool) -> Holding:
        """Survey one file."""
        labels: Counter[int] = Counter()
        texts: dict[int, set[str]] = {}
        name, kind = self._name(place), self._channel.content_type
        with self._open(place, 1 << 13) as stream:
            if not with_labels:
                return Holding(parsing.count_pictures(stream, name, kind))
            for record in parsing.read_pictures(stream, name, kind, head=parsing.LABEL_BYTES):
                labels[record.label] += 1
                if record.text:
                    texts.setdefault(record.label, set()).add(record.text)
        return Holding(labels.total(), labels, texts)

    def _open(self, place: int, buffered: int) -> io.BufferedReader:
        try:
            return decompress(io.BufferedReader(io.FileIO(self._paths[place]), buffered), self._name(place))
        except OSError as error:
            raise UserError(f"{self._name(place)} cannot be read: {error.strerror}.") from error

    def _name(self, place: int) -> str:
        return f"channel {self.name}, {self._paths[place].name}"


def find_record_files(channel: Channel) -> list[Path]:
    """Find a channel's files of records, sorted.

    Where its content type says records, they are all its files but lists beside them; else those at its top
    level that are named so. Without either there are none, and no folder has been looked through.
    """
    folder = channel.directory
    if channel.content_type in parsing.CONTENT_TYPES:
        found = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
        return sorted(path for path in found if path.name[0] != "." and not _plain(path).endswith(BESIDE))
    names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208  # names are enough
    return sorted(folder / name for name in names if name[0] != "." and _plain(Path(name)).endswith(SUFFIXES))


def draw(items: Iterator[T], key: str, measure: Callable[[T], int]) -> Iterator[T]:
    """Yield the items in another order, the same for the same key: each drawn from those that wait.

    As many wait as BUFFERED_RECORDS and, by the bytes that `measure` gives, BUFFERED_BYTES allow.
    """
    generator = random.Random(key)  # noqa: S311  # an order is no secret
    waiting: list[T] = []
    size = 0
    for item in items:
        waiting.append(item)
        size += measure(item)
        while len(waiting) > BUFFERED_RECORDS or size > BUFFERED_BYTES:
            place = generator.randrange(len(waiting))
            waiting[place], waiting[-1] = waiting[-1], waiting[place]
            drawn = waiting.pop()
            size -= measure(drawn)
            yield drawn
    generator.shuffle(waiting)
    yield from waiting


def _plain(path: Path) -> str:
    return path.name.lower().removesuffix(".gz")
