"""The names of the labels that records bear as numbers or texts, and what numbers can be no classes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping

from tandem.errors import UserError

logger = logging.getLogger(__name__)

#: Labels that a network may tell apart: as many as num_classes may say.
MOST = 100_000

#: Labels that a message names; it counts all.
NAMED = 10


def name_labels(counts: Mapping[str, Counter[int]], texts: Mapping[int, Collection[str]]) -> tuple[str, ...]:
    """Give the labels' names, by their numbers: their texts if each has one of its own, else the numbers.

    `counts` are the records of each label, by channel; -1 is of those with a text only. `texts` are all texts
    of each label of channel training. Numbers between others that no record bears are labels too, and the log
    names them. Raises `UserError` where there are too few or too many, or another channel has further ones.
    """
    numbers = sorted(counts["training"])
    if -1 in numbers:
        if len(numbers) > 1:
            raise UserError("some records have a number as label and some only a text; give all both.")
        labels = only = tuple(sorted(texts[-1]))
        if len(labels) > MOST:
            raise UserError(
                f"channel training has {len(labels)} texts as labels, expected {MOST} at most; give the "
                "records of a class one text."
            )
    else:
        labels = _name_numbers(numbers, texts)
        only = tuple(labels[number] for number in numbers)
    if len(only) < 2:
        raise UserError(
            f"channel training has pictures of the label {', '.join(only)} only; expected two labels or more."
        )
    for name, other in counts.items():
        highest = max(other, default=0)
        if highest >= len(labels):
            raise UserError(
                f"channel {name} has the label {highest}, but the highest of channel training is "
                f"{len(labels) - 1}."
            )
    missing = set(range(len(labels))).difference(numbers) if numbers != [-1] else set()
    if missing:
        first = ", ".join(map(str, sorted(missing)[:NAMED]))
        logger.warning(
            "channel training has no picture of %s of its %s labels: %s%s; number the classes from 0 without "
            "gaps unless these are meant to be there.",
            *(len(missing), len(labels), first, ", …" if len(missing) > NAMED else ""),
        )
    return labels


def _name_numbers(numbers: list[int], texts: Mapping[int, Collection[str]]) -> tuple[str, ...]:
    """Name the labels from 0 to the highest of these, which are sorted."""
    highest = numbers[-1] if numbers else 0
    if highest >= MOST:
        raise UserError(
            f"channel training has the label {highest}, expected numbers from 0 to {MOST - 1} at most; if "
            "the labels are ids or times, pack the records anew with the classes numbered from 0."
        )
    labels = tuple(map(str, range(highest + 1)))
    own = [texts.get(number, ()) for number in range(len(labels))]
    if all(len(some) == 1 for some in own) and len({min(some) for some in own}) == len(own):
        return tuple(min(some) for some in own)
    return labels
