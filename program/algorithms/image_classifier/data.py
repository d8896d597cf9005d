"""The pictures of a job: listed, split, and streamed from the disk through the code that serving uses."""

from __future__ import annotations

import logging
import math
import random
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tandem import channels, images
from tandem.channels import Channel
from tandem.errors import UserError
from tandem.images import Preprocessing

logger = logging.getLogger(__name__)

#: Unreadable pictures that the log names; all are counted.
NAMED = 20

#: What `Reader.fetch` says of a picture: use it, leave it out, or stop reading.
READ, SKIPPED, GIVEN_UP = np.int64(0), np.int64(1), np.int64(2)

Pixels = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Pictures:
    """Each picture's path and the index of its label, for training and for validation."""

    labels: tuple[str, ...]
    training: Sequence[tuple[Path, int]]
    validation: Sequence[tuple[Path, int]]


def list_pictures(folders: Mapping[str, Channel], validation_share: float, seed: int) -> Pictures:
    """List the channel `training`, and `validation` or else a share of every class held out of `training`.

    The same pictures are held out for the same files and seed. Raises `UserError` where there is nothing to
    learn or to validate.
    """
    found = channels.labelled_files(folders["training"].directory, images.SUFFIXES, "training")
    labels = tuple(sorted({label for _, label in found}))
    place = {label: index for index, label in enumerate(labels)}
    if "validation" not in folders:
        training, validation = _split([(path, place[label]) for path, label in found], validation_share, seed)
        return Pictures(labels, training, validation)
    held = channels.labelled_files(
        folders["validation"].directory, images.SUFFIXES, "validation", minimum_classes=1
    )
    strange = sorted({label for _, label in held} - set(labels))
    if strange:
        raise UserError(
            f"channel validation has labels that channel training has not: {', '.join(strange[:10])}; "
            f"expected some of: {', '.join(labels[:20])}."
        )
    return Pictures(
        labels,
        [(path, place[label]) for path, label in found],
        [(path, place[label]) for path, label in held],
    )


def _split(
    items: Sequence[tuple[Path, int]], share: float, seed: int
) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """Hold out `share` of each class: at least one picture where there are two, never the last one."""
    classes: dict[int, list[tuple[Path, int]]] = {}
    for item in items:
        classes.setdefault(item[1], []).append(item)
    generator = random.Random(seed)  # noqa: S311  # a split is no secret
    training: list[tuple[Path, int]] = []
    validation: list[tuple[Path, int]] = []
    for members in classes.values():
        count = min(max(round(len(members) * share), 1), len(members) - 1)
        chosen = set(generator.sample(range(len(members)), count))
        for index, item in enumerate(members):
            (validation if index in chosen else training).append(item)
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
        self._lock = threading.Lock()

    @property
    def given_up(self) -> bool:
        """Whether more pictures were unreadable than the job allows."""
        return len(self.unreadable) > self.allowed

    def read(self, path: Path) -> Pixels | None:
        """Read one picture as the network takes it; None, and the reason in the log, if it cannot be."""
        try:
            return images.preprocess(images.read(path), self.spec)
        except UserError as error:
            self._note(path, str(error))
        except OSError as error:
            self._note(path, error.strerror or str(error))
        return None

    def fetch(self, path: Path) -> tuple[Pixels, np.int64]:
        """Read one picture for the stream: its pixels, or black, and READ, SKIPPED or GIVEN_UP."""
        pixels = None if self.given_up else self.read(path)
        if pixels is not None:
            return pixels, READ
        return np.zeros(self.spec.shape, self.spec.dtype), GIVEN_UP if self.given_up else SKIPPED

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


def stream(items: Sequence[tuple[Path, int]], reader: Reader, batch_size: int, seed: int | None) -> Any:
    """Give a `tf.data.Dataset` of (pixels (n, h, w, c), label indices int64 (n,)), never all in memory.

    With a seed each pass has another order, the same for the same seed; with None it is that of `items`.
    Unreadable pictures are left out; it ends early once the reader has given up.
    """
    import tensorflow as tf

    labels = [label for _, label in items]

    def fetch(index: int) -> tuple[Pixels, np.int64, np.int64]:
        pixels, outcome = reader.fetch(items[index][0])
        return pixels, np.int64(labels[index]), outcome

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def load(index: Any) -> Any:
        return tf.numpy_function(fetch, [index], [tf.as_dtype(reader.spec.dtype), tf.int64, tf.int64])

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def shape(pixels: Any, label: Any, _: Any) -> Any:
        return tf.ensure_shape(pixels, reader.spec.shape), tf.ensure_shape(label, ())

    indices = tf.data.Dataset.range(len(items))
    if seed is not None:
        indices = indices.shuffle(len(items), seed=seed, reshuffle_each_iteration=True)
    return (
        indices.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .take_while(lambda _pixels, _label, outcome: outcome != GIVEN_UP)
        .filter(lambda _pixels, _label, outcome: outcome == READ)
        .map(shape)
        .batch(batch_size)
        .prefetch(tf.data.AUTOTUNE)
    )


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
