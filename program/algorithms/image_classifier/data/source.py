"""The sources that training reads: batches in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from algorithms.image_classifier.data.images import Pixels
from tandem.errors import UserError
from tandem.images.codec import Preprocessing

#: Takes this host's value, which JSON can represent, and returns the values of all hosts in rank order.
Exchange = Callable[[Any], list[Any]]


class Source(Protocol):
    """One pass over a channel's images, cut into global batches, of which each host gets its share."""

    labels: tuple[str, ...]
    #: images per pass, of all hosts together
    rows: int

    @property
    def steps(self) -> int:
        """Global batches per pass; the same on every host."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Any:
        """Return a `tf.data.Dataset` of this host's share of each batch of `epoch`, from batch `start` on.

        Its elements are (pixels (n, h, w, c), labels int64 (n,), weights float32 (n,)). The same epoch always
        has the same order, and skipped batches are not decoded. An unreadable image has weight 0 and the
        pixels of a readable image in its batch, so the number of batches never changes. Every host's share
        has at least one row. The dataset ends early once the reader has given up on the channel.
        """
        ...

    def name(self, row: int) -> str:
        """Return a readable name for a row of a whole unshuffled pass."""
        ...

    def check(self) -> None:
        """Raise `UserError` if more of the images read so far were unreadable than the job allows."""
        ...


@dataclass(frozen=True)
class Batching:
    """How the rows of one pass are cut into global batches, and which of them this host reads.

    Without a seed every pass keeps the order of the source. Without `parts` all hosts read the same rows, and
    each global batch is cut among them. With `parts`, the number of rows that each host has for itself, every
    host spreads its own rows evenly over the steps.
    """

    rows: int
    batch_size: int  # of all hosts together
    seed: int | None = None
    rank: int = 0
    hosts: int = 1
    parts: Sequence[int] | None = None

    @property
    def steps(self) -> int:
        """Global batches per pass."""
        return -(-self.rows // self.batch_size)

    @property
    def own_rows(self) -> int:
        """Rows that this host reads from its source in one pass."""
        return self.rows if self.parts is None else self.parts[self.rank]


@dataclass(frozen=True)
class DeclaredCounts:
    """Counts that hyperparameters declare because FIFOs do not show them beforehand.

    `classes` is num_classes, and `samples` has num_<channel>_samples by channel.
    """

    classes: int | None = None
    samples: Mapping[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True)
class ReadOptions:
    """How a job's images are read."""

    spec: Preprocessing
    batch_size: int  # of all hosts together
    seed: int
    validation_share: float
    unreadable_share: float
    declared: DeclaredCounts = field(default_factory=DeclaredCounts)
    #: ends waiting for a FIFO
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Host:
    """This host's rank among all hosts, and how it exchanges values with them."""

    rank: int
    hosts: int
    exchange: Exchange


@dataclass(frozen=True)
class Sources:
    """All sources of a job.

    `evaluated` are whole sets in order, as far as this host has them, on which the finished network is
    measured. `label_counts` counts the training images of each label on all hosts; None if unknown. `sample`
    returns up to that many images (n, h, w, c), spread over the labels.
    """

    spec: Preprocessing
    labels: tuple[str, ...]
    training: Source
    validation: Source
    evaluated: Mapping[str, Source]
    label_counts: Sequence[int] | None
    #: differs between different sets of images
    digest: str
    sample: Callable[[int], Pixels]
    #: logs how many images were unreadable
    report: Callable[[], None]

    def count_labels(self) -> Sequence[int]:
        """Return `label_counts`, or raise `UserError` if they are unknown."""
        if self.label_counts is None:
            raise UserError(
                "class_weights is balanced, which needs the number of images per label before training, and "
                "channel training does not show it; use File or FastFile mode, leave num_classes out and "
                "label records by numbers, or set class_weights to none."
            )
        return self.label_counts
