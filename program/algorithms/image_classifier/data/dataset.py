"""The pictures of a job: listed, split, and streamed from the disk through the code that serving uses."""

from __future__ import annotations

import logging
import math
import random
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from algorithms.image_classifier.data import index
from tandem.errors import UserError
from tandem.images import codec
from tandem.images.codec import Preprocessing
from tandem.jobs import channels
from tandem.jobs.channels import Channel

logger = logging.getLogger(__name__)

#: Unreadable pictures that the log names; all are counted.
NAMED = 20

Pixels = np.ndarray[Any, np.dtype[Any]]

#: A picture and its label's index, or its label's name.
Item = tuple[Path, int]
Named = tuple[Path, str]

#: Gives every host's value, which JSON can hold, in rank order.
Exchange = Callable[[Any], list[Any]]

Label = TypeVar("Label", int, str)


@dataclass(frozen=True)
class Pictures:
    """Each picture's path and the index of its label, for training and for validation.

    `training_parts` and `validation_parts` are how many pictures each host has for itself, in rank order;
    None where all hosts have the same ones.
    """

    labels: tuple[str, ...]
    training: Sequence[Item]
    validation: Sequence[Item]
    training_parts: tuple[int, ...] | None = None
    validation_parts: tuple[int, ...] | None = None


def list_pictures(
    folders: Mapping[str, Channel], validation_share: float, seed: int, exchange: Exchange = lambda own: [own]
) -> Pictures:
    """List the channel `training`, and `validation` or else a share of every class held out of `training`.

    An index in the channel (see `index`) decides on pictures and labels; without one each folder is a label.
    The same pictures are held out for the same files and seed. `exchange` gives every host's value in rank
    order; it is asked where a channel is sharded, so that all hosts have the same labels or raise the same
    error. Raises `UserError` where there is nothing to learn or to validate.
    """
    sharded = {name: channel.sharded for name, channel in folders.items()}
    held_apart = sharded.get("validation", sharded["training"])
    training: list[Named] = []
    validation: list[Named] = []
    said: Any
    try:
        training = _list_channel(folders["training"], minimum_classes=1 if sharded["training"] else 2)
        if "validation" in folders:
            validation = _list_channel(folders["validation"], minimum_classes=1)
        else:
            training, validation = _split(training, validation_share, seed)
        said = [sorted({label for _, label in items}) for items in (training, validation)]
        said += [len(training), len(validation)]
    except UserError as error:
        said = str(error)
    everyone = exchange(said) if sharded["training"] or held_apart else [said]
    labels = _agree(everyone)
    place = {label: number for number, label in enumerate(labels)}
    return Pictures(
        labels,
        [(path, place[label]) for path, label in training],
        [(path, place[label]) for path, label in validation],
        tuple(one[2] for one in everyone) if sharded["training"] and len(everyone) > 1 else None,
        tuple(one[3] for one in everyone) if held_apart and len(everyone) > 1 else None,
    )


def list_labelled(channel: Channel, labels: Sequence[str]) -> list[Item]:
    """List a further channel, of which this host may have a part; raises `UserError` for other labels."""
    named = _list_channel(channel, minimum_classes=1)
    _check_known(channel.name, {label for _, label in named}, labels)
    place = {label: number for number, label in enumerate(labels)}
    return [(path, place[label]) for path, label in named]


def sort_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Give each label once, in the order of their indices: whole numbers by their value, else as texts."""
    found = set(labels)
    numbers = all(label.isdecimal() and label.isascii() for label in found)
    return tuple(sorted(found, key=lambda label: (int(label) if numbers else 0, label)))


def _list_channel(channel: Channel, minimum_classes: int) -> list[Named]:
    """List a channel's pictures and their labels' names, by its index or else by its folders."""
    listing = index.find_index(channel.directory)
    if listing is None:
        return channels.labelled_files(
            channel.directory, codec.SUFFIXES, channel.name, minimum_classes=minimum_classes
        )
    try:
        return index.read_index(listing)
    except UserError as error:
        if not channel.sharded:
            raise
        raise UserError(
            f"{error} The channel {channel.name} is ShardedByS3Key, so each host has only a part of what an "
            "index lists; use FullyReplicated, or folders."
        ) from error


def _agree(everyone: Sequence[Any]) -> tuple[str, ...]:
    """Give the labels of all hosts' training pictures; raise the same error on every host."""
    for number, said in enumerate(everyone, 1):
        if isinstance(said, str):
            raise UserError(said if len(everyone) == 1 else f"host {number} of {len(everyone)}: {said}")
    labels = sort_labels(label for said in everyone for label in said[0])
    if len(labels) < 2:
        raise UserError(
            f"channel training has only pictures of the label {', '.join(labels)}; expected two or more."
        )
    _check_known("validation", {label for said in everyone for label in said[1]}, labels)
    return labels


def _check_known(channel: str, found: Collection[str], labels: Sequence[str]) -> None:
    strange = sort_labels(set(found) - set(labels))
    if strange:
        raise UserError(
            f"channel {channel} has labels that channel training has not: {', '.join(strange[:10])}; "
            f"expected some of: {', '.join(labels[:20])}."
        )


def _split(items: Sequence[tuple[Path, Label]], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Hold out `share` of each class: at least one picture where there are two, never the last one."""
    classes: dict[Label, list[tuple[Path, Label]]] = {}
    for item in items:
        classes.setdefault(item[1], []).append(item)
    generator = random.Random(seed)  # noqa: S311  # a split is no secret
    training: list[tuple[Path, Label]] = []
    validation: list[tuple[Path, Label]] = []
    for members in classes.values():
        count = min(max(round(len(members) * share), 1), len(members) - 1)
        chosen = set(generator.sample(range(len(members)), count))
        for place, item in enumerate(members):
            (validation if place in chosen else training).append(item)
    if not validation:
        raise UserError(
            "channel training has one picture a class, so none can be held out for validation; "
            "add pictures or a channel validation."
        )
    return training, validation


class Reader:
    """Reads pictures as serving does and keeps account of the unreadable ones; threads may share it."""

    def __init__(self, spec: Preprocessing, listed: int, unreadable_share: float) -> None:
        self.spec = spec
        self.listed = listed
        self.allowed = math.floor(unreadable_share * listed + 1e-9)  # 0.29 * 100 is 28.999…
        self.unreadable: dict[Path, str] = {}
        self.kept_bytes = 0  #: of decoded pictures that stay in memory, whoever keeps them
        self._lock = threading.Lock()

    @property
    def given_up(self) -> bool:
        """Whether more pictures were unreadable than the job allows."""
        return len(self.unreadable) > self.allowed

    def read(self, path: Path) -> Pixels | None:
        """Read one picture as the network takes it; None, and the reason in the log, if it cannot be."""
        return self._take(lambda: path, lambda: codec.read(path))

    def decode(self, body: bytes, name: Callable[[], Path]) -> Pixels | None:
        """Read one picture that is in memory already, as `read` does; `name` is asked if it cannot be."""
        return self._take(name, lambda: codec.decode(body))

    def _take(self, name: Callable[[], Path], load: Callable[[], Pixels]) -> Pixels | None:
        try:
            return codec.preprocess(load(), self.spec)
        except UserError as error:
            self._note(name(), str(error))
        except OSError as error:
            self._note(name(), error.strerror or str(error))
        return None

    def readable(self, items: Sequence[tuple[Path, int]]) -> Counter[int]:
        """Count by label the pictures that have not failed so far."""
        return Counter(label for path, label in items if path not in self.unreadable)

    def check(self) -> None:
        """Raise `UserError` with the count and the first names if more failed than the job allows."""
        if self.given_up:
            raise UserError(
                f"{len(self.unreadable)} of {self.listed} pictures were unreadable so far, more than "
                f"unreadable_share allows ({self.allowed}): {self.examples()}. Repair or remove them, or "
                "raise unreadable_share."
            )

    def report(self) -> None:
        """Say in the log how many pictures were left out."""
        if self.unreadable:
            logger.warning(
                "%s of %s pictures were left out as unreadable.", len(self.unreadable), self.listed
            )

    def examples(self) -> str:
        """Name the first three unreadable pictures with their reasons."""
        first = sorted(self.unreadable.items())[:3]
        return "; ".join(f"{path.parent.name}/{path.name} ({reason.rstrip('.')})" for path, reason in first)

    def _note(self, path: Path, reason: str) -> None:
        with self._lock:
            if path in self.unreadable:
                return
            self.unreadable[path] = reason
            count = len(self.unreadable)
        if count <= NAMED:
            logger.warning("Left out the picture %s: %s", path, reason)
        if count == NAMED:
            logger.warning("Further unreadable pictures are counted, not named.")


def choose_spread(items: Sequence[tuple[Path, int]], count: int, reader: Reader) -> Pixels:
    """Read up to `count` pictures, one of each class in turn; (n, h, w, c)."""
    classes: dict[int, list[Path]] = {}
    for path, label in items:
        classes.setdefault(label, []).append(path)
    rounds = max((len(paths) for paths in classes.values()), default=0)
    in_turn = [paths[turn] for turn in range(rounds) for paths in classes.values() if turn < len(paths)]
    chosen: list[Pixels] = []
    for path in in_turn:
        if len(chosen) == count:
            break
        pixels = reader.read(path)
        if pixels is not None:
            chosen.append(pixels)
    return np.stack(chosen) if chosen else np.zeros((0, *reader.spec.shape), reader.spec.dtype)


def report_unreadable(pictures: Pictures, reader: Reader) -> None:
    """Say how many pictures were left out, and which labels the network has therefore never seen."""
    reader.report()
    if not reader.unreadable:
        return
    readable = reader.readable(pictures.training)
    unseen = [label for place, label in enumerate(pictures.labels) if not readable[place]]
    if unseen and pictures.training_parts is None:
        logger.warning("No picture for training could be read of: %s.", ", ".join(unseen))
