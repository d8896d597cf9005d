"""What the fit loop reads from: batches in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from algorithms.image_classifier.data import dataset
from algorithms.image_classifier.data.dataset import Pixels
from algorithms.image_classifier.data.file_source import FileSource
from algorithms.image_classifier.records.channels import Place, Told, are_records, open_records
from tandem.errors import UserError
from tandem.images.codec import Preprocessing
from tandem.jobs.channels import Channel


class Source(Protocol):
    """One pass over a channel's pictures, cut into global batches, of which each host gets its share."""

    labels: tuple[str, ...]
    #: pictures of one pass, of all hosts together
    rows: int

    @property
    def steps(self) -> int:
        """Global batches of one pass; the same on every host."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Any:
        """Give a `tf.data.Dataset` of this host's share of each batch of `epoch`, without the first `start`.

        Its elements are (pixels (n, h, w, c), labels int64 (n,), weights float32 (n,)). The order is the same
        each time it is asked for, and what is left out is not decoded. A picture that cannot be read has
        weight 0 and the pixels of one in its batch that can be, so that the number of batches never changes.
        Every host's share has at least one row. It ends early once the reader has given up on the channel.
        """
        ...

    def name(self, row: int) -> str:
        """Name a row of a whole pass in order, for people."""
        ...

    def check(self) -> None:
        """Raise `UserError` if more of the pictures read so far were unreadable than the job allows."""
        ...


@dataclass(frozen=True)
class Reading:
    """How a job's pictures are read."""

    spec: Preprocessing
    batch_size: int  # of all hosts together
    seed: int
    validation_share: float
    unreadable_share: float
    told: Told = field(default_factory=Told)
    #: ends waiting for a FIFO
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Sources:
    """All that a job reads from.

    `evaluated` are whole sets in order, as far as this host has them: what a finished network is judged by.
    `label_counts` counts the training pictures of each label on all hosts; None where nobody knows. `sample`
    gives up to so many pictures (n, h, w, c), spread over the labels.
    """

    spec: Preprocessing
    labels: tuple[str, ...]
    training: Source
    validation: Source
    evaluated: Mapping[str, Source]
    label_counts: Sequence[int] | None
    #: tells one set of pictures from another
    digest: str
    sample: Callable[[int], Pixels]
    #: says in the log what was left out as unreadable
    report: Callable[[], None]

    def count_labels(self) -> Sequence[int]:
        """Give `label_counts`, or raise `UserError` where they are not known."""
        if self.label_counts is None:
            raise UserError(
                "class_weights balanced needs the pictures of each label to be counted beforehand, and those "
                "of channel training are not; use File or FastFile mode, leave num_classes out and give "
                "records numbers as labels, or set class_weights none."
            )
        return self.label_counts


def open_sources(
    channels: Mapping[str, Channel], reading: Reading, rank: int, exchange: dataset.Exchange
) -> Sources:
    """Find what the channels hold, agree on it with the other hosts, and give what reads it.

    Raises `UserError` saying what was found instead of pictures.
    """
    if any(are_records(channels[name]) for name in ("training", "validation") if name in channels):
        return _open_records(channels, reading, rank, exchange)
    pictures = dataset.list_pictures(channels, reading.validation_share, reading.seed, exchange)
    listed = len(pictures.training) + len(pictures.validation)
    reader = dataset.Reader(reading.spec, listed, reading.unreadable_share)
    hosts = len(exchange(None))

    def share(items: Sequence[dataset.Item], parts: Sequence[int] | None, seed: int | None) -> FileSource:
        return FileSource(
            items, pictures.labels, reader, reading.batch_size, seed, rank=rank, hosts=hosts, parts=parts
        )

    def read_once(items: Sequence[dataset.Item]) -> FileSource:
        return FileSource(items, pictures.labels, reader, reading.batch_size, memory=0)

    training = share(pictures.training, pictures.training_parts, reading.seed)
    validation = share(pictures.validation, pictures.validation_parts, None)
    evaluated = {"validation": validation if hosts == 1 else read_once(pictures.validation)}
    if "test" in channels:
        evaluated["test"] = read_once(dataset.list_labelled(channels["test"], pictures.labels))
    counted = Counter(label for _, label in pictures.training)
    everyone = exchange([counted[label] for label in range(len(pictures.labels))])
    counts = (
        everyone[0] if pictures.training_parts is None else [sum(one) for one in zip(*everyone, strict=True)]
    )
    named = [[str(path.relative_to(path.parents[1])), label] for path, label in pictures.training]
    digest = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]
    return Sources(
        reading.spec,
        pictures.labels,
        training,
        validation,
        evaluated,
        counts,
        " ".join(exchange(digest) if pictures.training_parts else [digest]),
        lambda count: dataset.choose_spread([*pictures.validation, *pictures.training], count, reader),
        lambda: dataset.report_unreadable(pictures, reader),
    )


def _open_records(
    channels: Mapping[str, Channel], reading: Reading, rank: int, exchange: dataset.Exchange
) -> Sources:
    place = Place(rank, len(exchange(None)), exchange)
    records = open_records(channels, reading, reading.told, place, reading.stop)

    def sample(count: int) -> Pixels:
        held = records.validation.sample(count)  # empty until a pass has gone through it
        return np.concatenate([held, records.training.sample(count - len(held))])

    return Sources(
        reading.spec,
        records.training.labels,
        records.training,
        records.validation,
        records.evaluated,
        records.label_counts,
        records.digest,
        sample,
        records.reader.report,
    )
