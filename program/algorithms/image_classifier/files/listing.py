"""The image files of a job: listed, labelled, and split into training and validation."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from algorithms.image_classifier.data.images import ImageReader, Pixels, stack_images
from algorithms.image_classifier.data.source import Exchange
from algorithms.image_classifier.files import index
from tandem.errors import UserError
from tandem.images import codec
from tandem.jobs import channels
from tandem.jobs.channels import Channel

logger = logging.getLogger(__name__)

#: An image and its label's index, or its label's name.
Item = tuple[Path, int]
NamedItem = tuple[Path, str]

Label = TypeVar("Label", int, str)


@dataclass(frozen=True)
class ListedImages:
    """Each image's path and the index of its label, for training and for validation.

    `training_parts` and `validation_parts` are the numbers of images that each host has for itself, in rank
    order; None if all hosts have the same images.
    """

    labels: tuple[str, ...]
    training: Sequence[Item]
    validation: Sequence[Item]
    training_parts: tuple[int, ...] | None = None
    validation_parts: tuple[int, ...] | None = None


def list_images(
    folders: Mapping[str, Channel], validation_share: float, seed: int, exchange: Exchange = lambda own: [own]
) -> ListedImages:
    """List the channel `training`, and `validation` or else a share of every class held out of `training`.

    An index in the channel (see `index`) decides on images and labels; without one each folder is a label.
    The same files and seed give the same split. `exchange` is called if a channel is sharded, so that all
    hosts get the same labels or raise the same error. Raises `UserError` if there is nothing to learn or to
    validate on.
    """
    sharded = {name: channel.sharded for name, channel in folders.items()}
    validation_sharded = sharded.get("validation", sharded["training"])
    training: list[NamedItem] = []
    validation: list[NamedItem] = []
    own: Any  # labels and counts of this host, or the text of its error
    try:
        training = _list_channel(folders["training"], minimum_classes=1 if sharded["training"] else 2)
        if "validation" in folders:
            validation = _list_channel(folders["validation"], minimum_classes=1)
        else:
            training, validation = _split(training, validation_share, seed)
        own = [sorted({label for _, label in items}) for items in (training, validation)]
        own += [len(training), len(validation)]
    except UserError as error:
        own = str(error)
    hosts = exchange(own) if sharded["training"] or validation_sharded else [own]
    labels = _merge_labels(hosts)
    return ListedImages(
        labels,
        _number_labels(training, labels),
        _number_labels(validation, labels),
        tuple(host[2] for host in hosts) if sharded["training"] and len(hosts) > 1 else None,
        tuple(host[3] for host in hosts) if validation_sharded and len(hosts) > 1 else None,
    )


def list_labelled(channel: Channel, labels: Sequence[str]) -> list[Item]:
    """List another channel, of which this host may have a part; raises `UserError` for other labels."""
    named = _list_channel(channel, minimum_classes=1)
    _check_known(channel.name, {label for _, label in named}, labels)
    return _number_labels(named, labels)


def sort_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Return each label once, in the order of their indices: integers by value, other labels as texts."""
    found = set(labels)
    numbers = all(label.isdecimal() and label.isascii() for label in found)
    return tuple(sorted(found, key=lambda label: (int(label) if numbers else 0, label)))


def read_spread(items: Sequence[Item], count: int, reader: ImageReader) -> Pixels:
    """Read up to `count` images, one of each class in turn; (n, h, w, c)."""
    chosen: list[Pixels] = []
    for path in _alternate_classes(items):
        if len(chosen) == count:
            break
        pixels = reader.read(path)
        if pixels is not None:
            chosen.append(pixels)
    return stack_images(chosen, reader.spec)


def report_unreadable(images: ListedImages, reader: ImageReader) -> None:
    """Log how many images were skipped, and which labels the network has therefore never seen."""
    reader.report()
    if not reader.unreadable:
        return
    readable = reader.count_readable(images.training)
    unseen = [label for number, label in enumerate(images.labels) if not readable[number]]
    if unseen and images.training_parts is None:
        logger.warning("No training image was readable for: %s.", ", ".join(unseen))


def _list_channel(channel: Channel, minimum_classes: int) -> list[NamedItem]:
    """List a channel's images and their labels' names, by its index or else by its folders."""
    listing = index.find_index(channel.directory)
    if listing is None:
        return channels.list_labelled_files(
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


def _merge_labels(hosts: Sequence[Any]) -> tuple[str, ...]:
    """Return the labels of all hosts' training images, or raise the same error on every host."""
    for number, host in enumerate(hosts, 1):
        if isinstance(host, str):
            raise UserError(host if len(hosts) == 1 else f"host {number} of {len(hosts)}: {host}")
    labels = sort_labels(label for host in hosts for label in host[0])
    if len(labels) < 2:
        raise UserError(
            f"channel training has only images of the label {', '.join(labels)}; expected two or more labels."
        )
    _check_known("validation", {label for host in hosts for label in host[1]}, labels)
    return labels


def _check_known(channel: str, found: Collection[str], labels: Sequence[str]) -> None:
    unknown = sort_labels(set(found) - set(labels))
    if unknown:
        raise UserError(
            f"channel {channel} has labels that channel training does not have: {', '.join(unknown[:10])}; "
            f"expected some of: {', '.join(labels[:20])}."
        )


def _number_labels(items: Iterable[NamedItem], labels: Sequence[str]) -> list[Item]:
    numbers = {label: number for number, label in enumerate(labels)}
    return [(path, numbers[label]) for path, label in items]


def _group(items: Iterable[tuple[Path, Label]]) -> dict[Label, list[tuple[Path, Label]]]:
    classes: dict[Label, list[tuple[Path, Label]]] = {}
    for item in items:
        classes.setdefault(item[1], []).append(item)
    return classes


def _alternate_classes(items: Iterable[Item]) -> Iterator[Path]:
    """Yield the paths, one of each class in turn."""
    classes = list(_group(items).values())
    for turn in range(max(map(len, classes), default=0)):
        yield from (members[turn][0] for members in classes if turn < len(members))


def _split(items: Sequence[tuple[Path, Label]], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Hold out `share` of each class: at least one image of a class of two or more, and never all of it."""
    generator = random.Random(seed)  # noqa: S311  # a split is no secret
    training: list[tuple[Path, Label]] = []
    validation: list[tuple[Path, Label]] = []
    for members in _group(items).values():
        count = min(max(round(len(members) * share), 1), len(members) - 1)
        chosen = set(generator.sample(range(len(members)), count))
        for number, item in enumerate(members):
            (validation if number in chosen else training).append(item)
    if not validation:
        raise UserError(
            "channel training has one image per class, so none can be held out for validation; "
            "add images or a channel validation."
        )
    return training, validation
