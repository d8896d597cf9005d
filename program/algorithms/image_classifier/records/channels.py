"""Channels of records: what they hold as far as can be known beforehand, and the sources that read them."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from algorithms.image_classifier.data.dataset import Exchange, Reader
from algorithms.image_classifier.records.labels import name_labels
from algorithms.image_classifier.records.source import RecordSource
from algorithms.image_classifier.records.streams import (
    FileStream,
    Holding,
    PipeStream,
    Stream,
    find_record_files,
)
from tandem.errors import UserError
from tandem.jobs.channels import Channel

if TYPE_CHECKING:
    from algorithms.image_classifier.data.sources import Reading


@dataclass(frozen=True)
class Opened:
    """A channel's stream, and what each host has of it; one holding where all hosts have the same."""

    stream: Stream
    holdings: Sequence[Holding]

    @property
    def parts(self) -> list[int]:
        """How many records each holding has."""
        return [holding.rows for holding in self.holdings]

    @property
    def texts(self) -> dict[int, set[str]]:
        """All texts of each label."""
        merged: dict[int, set[str]] = {}
        for holding in self.holdings:
            for label, texts in holding.texts.items():
                merged.setdefault(label, set()).update(texts)
        return merged

    @property
    def labels(self) -> Counter[int] | None:
        """The records by label; None where a host has not counted them."""
        merged: Counter[int] = Counter()
        for holding in self.holdings:
            if holding.labels is None:
                return None
            merged.update(holding.labels)
        return merged


@dataclass(frozen=True)
class Told:
    """What hyperparameters say that FIFOs do not show: num_classes, and num_<channel>_samples by channel."""

    classes: int | None = None
    samples: Mapping[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Records:
    """The sources of channels that bring records.

    `evaluated` are whole sets in order, as far as this host has them. `label_counts`, of training, is None if
    not counted.
    """

    training: RecordSource
    validation: RecordSource
    evaluated: dict[str, RecordSource]
    reader: Reader
    label_counts: list[int] | None
    #: tells what the channels hold from what others do, as far as is known
    digest: str


@dataclass(frozen=True)
class Place:
    """This host among all, and how it hears of the others."""

    rank: int
    hosts: int
    exchange: Exchange


def are_records(channel: Channel) -> bool:
    """Whether a channel brings records: through FIFOs always, else if there are files of them."""
    return channel.is_pipe or bool(find_record_files(channel))


def open_records(
    channels: Mapping[str, Channel], reading: Reading, told: Told, place: Place, stop: threading.Event
) -> Records:
    """Open the channels training, validation and test; without validation, hold out a share of the files.

    Raises `UserError` where nothing tells what a Pipe channel holds, there is nothing to hold out, or the
    labels of the channels do not agree.
    """
    names = [name for name in ("training", "validation", "test") if name in channels]
    _check_pipes(channels, names, told)
    opened = {name: _open(channels[name], told, place, stop) for name in names}
    labels = tuple(map(str, range(told.classes or 0)))
    if told.classes is None:
        counts = {name: some.labels or Counter() for name, some in opened.items()}
        labels = name_labels(counts, opened["training"].texts)
    wanted: dict[str, Callable[[int], bool]] = {}
    parts = {name: some.parts for name, some in opened.items()}
    if "validation" not in opened:
        opened["validation"] = opened["training"]
        parts["validation"] = [_count_held(rows, reading.validation_share) for rows in parts["training"]]
        own = place.rank if len(parts["training"]) > 1 else 0
        generator = random.Random(reading.seed)  # noqa: S311  # a split is no secret
        held = frozenset(generator.sample(range(parts["training"][own]), parts["validation"][own]))
        parts["training"] = [
            rows - some for rows, some in zip(parts["training"], parts["validation"], strict=True)
        ]
        wanted = {"training": lambda number: number not in held, "validation": held.__contains__}
    reader = Reader(reading.spec, sum(map(sum, parts.values())), reading.unreadable_share)

    def make(name: str, seed: int | None = None, *, alone: bool = False) -> RecordSource:
        some = parts[name]
        if alone:
            some = [some[place.rank if len(some) > 1 else 0]]
        return RecordSource(
            opened[name].stream,
            labels,
            sum(some),
            reader,
            batch_size=reading.batch_size,
            seed=seed,
            rank=0 if alone else place.rank,
            hosts=1 if alone else place.hosts,
            parts=some if len(some) > 1 else None,
            wanted=wanted.get(name, _take_all),
        )

    validation = make("validation")
    evaluated = {"validation": validation if place.hosts == 1 else make("validation", alone=True)}
    if "test" in opened:
        evaluated["test"] = make("test", alone=True)
    label_counts = _count_labels(opened["training"], labels)
    known = {name: [holding.as_json() for holding in some.holdings] for name, some in opened.items()}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
    return Records(make("training", reading.seed), validation, evaluated, reader, label_counts, digest)


def _check_pipes(channels: Mapping[str, Channel], names: Sequence[str], told: Told) -> None:
    """Raise `UserError` for what must be told of a Pipe channel and is not."""
    for name in names:
        if not channels[name].is_pipe:
            continue
        if "validation" not in channels:
            raise UserError(
                f"channel {name} comes through pipes, and nothing can be held out of them; add a channel "
                "validation."
            )
        if name == "test":
            raise UserError(
                "channel test comes through pipes, which do not show what they hold; set its "
                "TrainingInputMode to File or FastFile."
            )
        missing = {"num_classes": told.classes, f"num_{name}_samples": told.samples.get(name)}
        for parameter, value in missing.items():
            if value is None:
                raise UserError(
                    f"channel {name} comes through pipes, which do not show what they hold; set the "
                    f"hyperparameter {parameter}."
                )


def _open(channel: Channel, told: Told, place: Place, stop: threading.Event) -> Opened:
    apart = channel.sharded and place.hosts > 1
    if channel.is_pipe:
        rows, hosts = told.samples[channel.name] or 0, place.hosts
        shares = [rows * (rank + 1) // hosts - rows * rank // hosts for rank in range(hosts)]
        return Opened(PipeStream(channel, stop), [Holding(some) for some in (shares if apart else [rows])])
    stream = FileStream(channel, find_record_files(channel))
    said: Any
    try:
        said = stream.survey(with_labels=told.classes is None).as_json()
    except UserError as error:
        said = str(error)
    everyone = place.exchange(said) if apart else [said]
    for number, one in enumerate(everyone, 1):
        where = "" if len(everyone) == 1 else f"host {number} of {len(everyone)}: "
        if isinstance(one, str):
            raise UserError(where + one)
        if not one[0]:
            raise UserError(
                f"{where}channel {channel.name} holds no record; expected files of RecordIO or TFRecord, as "
                "its ContentType or another channel says."
            )
    return Opened(stream, [Holding.from_json(one) for one in everyone])


def _count_labels(training: Opened, labels: Sequence[str]) -> list[int] | None:
    """Count the records of each label; None where nobody has, or only by text."""
    counts = training.labels
    if counts is None or -1 in counts:
        return None
    return [counts[number] for number in range(len(labels))]


def _count_held(rows: int, share: float) -> int:
    """Say how many of a host's records are held out: at least one, and not all."""
    if rows < 2:
        raise UserError(
            "a host has one record of channel training, so none can be held out; add a channel validation."
        )
    return min(max(round(rows * share), 1), rows - 1)


def _take_all(_: int) -> bool:
    return True
