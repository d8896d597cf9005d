"""Opens channels of records: counts what can be counted beforehand, and makes the sources."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from algorithms.image_classifier.data import order
from algorithms.image_classifier.data.images import ImageReader, Pixels
from algorithms.image_classifier.data.source import Batching, DeclaredCounts, Host, ReadOptions, Sources
from algorithms.image_classifier.records.labels import name_labels
from algorithms.image_classifier.records.source import RecordSource
from algorithms.image_classifier.records.streams import (
    FileStream,
    PipeStream,
    ShardStats,
    Stream,
    find_record_files,
    merge_texts,
)
from tandem.errors import UserError
from tandem.jobs.channels import Channel


@dataclass(frozen=True)
class OpenChannel:
    """A channel's stream and the statistics of each host's shard; one entry if all hosts have the same."""

    stream: Stream
    shards: Sequence[ShardStats]

    @property
    def parts(self) -> list[int]:
        """The number of records of each shard."""
        return [shard.rows for shard in self.shards]

    @property
    def texts(self) -> dict[int, set[str]]:
        """All texts of each label."""
        return merge_texts(self.shards)

    @property
    def labels(self) -> Counter[int] | None:
        """The number of records of each label; None if a host has not counted them."""
        merged: Counter[int] = Counter()
        for shard in self.shards:
            if shard.labels is None:
                return None
            merged.update(shard.labels)
        return merged


def has_records(channel: Channel) -> bool:
    """Return whether a channel brings records: a Pipe channel always does, others if they have such files."""
    return channel.is_pipe or bool(find_record_files(channel))


def open_records(channels: Mapping[str, Channel], options: ReadOptions, host: Host) -> Sources:
    """Open the channels training, validation and test; without validation, hold out a share of the files.

    Raises `UserError` if the counts of a Pipe channel are not declared, there is nothing to hold out, or the
    labels of the channels do not agree.
    """
    declared = options.declared
    names = [name for name in ("training", "validation", "test") if name in channels]
    _check_pipes(channels, names, declared)
    opened = {name: _open(channels[name], declared, host, options.stop) for name in names}
    labels = tuple(map(str, range(declared.classes or 0)))
    if declared.classes is None:
        counts = {name: channel.labels or Counter() for name, channel in opened.items()}
        labels = name_labels(counts, opened["training"].texts)
    wanted: dict[str, Callable[[int], bool]] = {}
    parts = {name: channel.parts for name, channel in opened.items()}
    if "validation" not in opened:
        opened["validation"] = opened["training"]
        all_rows = parts["training"]
        parts["validation"] = [_count_held_out(rows, options.validation_share) for rows in all_rows]
        parts["training"] = [rows - out for rows, out in zip(all_rows, parts["validation"], strict=True)]
        own = host.rank if len(all_rows) > 1 else 0
        generator = random.Random(options.seed)  # noqa: S311  # a split is no secret
        held_out = frozenset(generator.sample(range(all_rows[own]), parts["validation"][own]))
        wanted = {"training": lambda number: number not in held_out, "validation": held_out.__contains__}
    reader = ImageReader(options.spec, sum(map(sum, parts.values())), options.unreadable_share)

    def make(name: str, seed: int | None = None, *, alone: bool = False) -> RecordSource:
        shards = parts[name]
        if alone:
            batching = Batching(shards[host.rank if len(shards) > 1 else 0], options.batch_size, seed)
        else:
            own_parts = shards if len(shards) > 1 else None
            batching = Batching(sum(shards), options.batch_size, seed, host.rank, host.hosts, own_parts)
        return RecordSource(opened[name].stream, labels, reader, batching, wanted.get(name, lambda _: True))

    training, validation = make("training", options.seed), make("validation")
    evaluated = {"validation": validation if host.hosts == 1 else make("validation", alone=True)}
    if "test" in opened:
        evaluated["test"] = make("test", alone=True)

    def sample(count: int) -> Pixels:
        first = validation.sample(count)  # empty before the first pass
        return np.concatenate([first, training.sample(count - len(first))])

    known = {name: [shard.as_json() for shard in channel.shards] for name, channel in opened.items()}
    return Sources(
        options.spec,
        training.labels,
        training,
        validation,
        evaluated,
        _count_labels(opened["training"], labels),
        hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16],
        sample,
        reader.report,
    )


def _check_pipes(channels: Mapping[str, Channel], names: Sequence[str], declared: DeclaredCounts) -> None:
    """Raise `UserError` for a Pipe channel whose counts are not declared or that cannot be used."""
    for name in names:
        if not channels[name].is_pipe:
            continue
        if "validation" not in channels:
            raise UserError(
                f"channel {name} uses Pipe mode, so nothing can be held out of it; add a channel validation."
            )
        if name == "test":
            raise UserError(
                "channel test uses Pipe mode, which does not show how many records there are; set its "
                "TrainingInputMode to File or FastFile."
            )
        required = {"num_classes": declared.classes, f"num_{name}_samples": declared.samples.get(name)}
        for parameter, value in required.items():
            if value is None:
                raise UserError(
                    f"channel {name} uses Pipe mode, which does not show how many records and labels there "
                    f"are; set the hyperparameter {parameter}."
                )


def _open(channel: Channel, declared: DeclaredCounts, host: Host, stop: threading.Event) -> OpenChannel:
    sharded = channel.sharded and host.hosts > 1
    if channel.is_pipe:
        rows = declared.samples[channel.name] or 0
        cuts = [order.cut(rows, rank, host.hosts) for rank in range(host.hosts)]
        shards = [cut.stop - cut.start for cut in cuts] if sharded else [rows]
        return OpenChannel(PipeStream(channel, stop), [ShardStats(shard) for shard in shards])
    stream = FileStream(channel, find_record_files(channel))
    own: Any  # the statistics of this host's shard, or the text of its error
    try:
        own = stream.survey(with_labels=declared.classes is None).as_json()
    except UserError as error:
        own = str(error)
    hosts = host.exchange(own) if sharded else [own]
    for number, found in enumerate(hosts, 1):
        where = "" if len(hosts) == 1 else f"host {number} of {len(hosts)}: "
        if isinstance(found, str):
            raise UserError(where + found)
        if not found[0]:
            raise UserError(
                f"{where}channel {channel.name} has no records; expected RecordIO or TFRecord files, because "
                "its ContentType or another channel declares records."
            )
    return OpenChannel(stream, [ShardStats.from_json(found) for found in hosts])


def _count_labels(training: OpenChannel, labels: Sequence[str]) -> list[int] | None:
    """Count the records of each label; None if they are not counted, or counted only by text."""
    counts = training.labels
    if counts is None or -1 in counts:
        return None
    return [counts[number] for number in range(len(labels))]


def _count_held_out(rows: int, share: float) -> int:
    """Return how many of a host's records are held out: at least one, and not all."""
    if rows < 2:
        raise UserError(
            "a host has one record of channel training, so none can be held out; add a channel validation."
        )
    return min(max(round(rows * share), 1), rows - 1)
