"""A few records of each label, kept while passes go by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

#: Records that are kept, and how many of them have one label.
KEPT = 256
KEPT_A_LABEL = 8


class Sample(Generic[T]):
    """The first records of each label that came, up to a number."""

    def __init__(self) -> None:
        self._kept: dict[int, list[T]] = {}

    def add(self, label: int, record: T) -> None:
        """Keep the record if there is room for it."""
        some = self._kept.setdefault(label, [])
        if len(some) < KEPT_A_LABEL and sum(map(len, self._kept.values())) < KEPT:
            some.append(record)

    def __iter__(self) -> Iterator[T]:
        """Yield them, one of each label in turn."""
        for place in range(KEPT_A_LABEL):
            yield from [some[place] for some in self._kept.values() if place < len(some)]
