"""The names of labels that records give as numbers or texts, and the limits of these numbers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping

from tandem.errors import UserError

logger = logging.getLogger(__name__)

#: The maximum number of labels, which is also the maximum of num_classes.
MAX_LABELS = 100_000

#: Labels that a message names; it counts all of them.
MAX_NAMED = 10


def name_labels(counts: Mapping[str, Counter[int]], texts: Mapping[int, Collection[str]]) -> tuple[str, ...]:
    """Return the labels' names by number: their texts if each label has one of its own, else the numbers.

    `counts` are the records of each label, by channel; -1 stands for records with a text only. `texts` are
    all texts of each label of channel training. Unused numbers below the highest one are labels too, and the
    log names them. Raises `UserError` if there are too few or too many labels, or another channel has more.
    """
    numbers = sorted(counts["training"])
    if -1 in numbers:
        if len(numbers) > 1:
            raise UserError(
                "some records have a number as label and some only a text; add both to each record."
            )
        labels = present = tuple(sorted(texts[-1]))
        if len(labels) > MAX_LABELS:
            raise UserError(
                f"channel training has {len(labels)} texts as labels, expected {MAX_LABELS} at most; give "
                "all records of a class the same text."
            )
    else:
        labels = _name_numbers(numbers, texts)
        present = tuple(labels[number] for number in numbers)
    if len(present) < 2:
        raise UserError(
            f"channel training has only images of the label {', '.join(present)}; expected two or more "
            "labels."
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
        first = ", ".join(map(str, sorted(missing)[:MAX_NAMED]))
        logger.warning(
            "channel training has no image of %s of its %s labels: %s%s; number the classes from 0 without "
            "gaps unless these labels are intended.",
            *(len(missing), len(labels), first, ", …" if len(missing) > MAX_NAMED else ""),
        )
    return labels


def _name_numbers(numbers: list[int], texts: Mapping[int, Collection[str]]) -> tuple[str, ...]:
    """Return the names of the labels from 0 to the highest of the sorted numbers."""
    highest = numbers[-1] if numbers else 0
    if highest >= MAX_LABELS:
        raise UserError(
            f"channel training has the label {highest}, expected numbers from 0 to {MAX_LABELS - 1} at most; "
            "if the labels are ids or timestamps, pack the records again with the classes numbered from 0."
        )
    labels = tuple(map(str, range(highest + 1)))
    names = [texts.get(number, ()) for number in range(len(labels))]
    if all(len(own) == 1 for own in names) and len({min(own) for own in names}) == len(names):
        return tuple(min(own) for own in names)
    return labels
