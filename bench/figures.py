"""Percentiles, medians over the rounds, ratios within a round, and differences between answers."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
#: The last words of the names of those that compute with reduced precision.
REDUCED = {"bf16", "int8"}


@dataclass(frozen=True)
class Spread:
    """A median over the rounds with the minimum and the maximum."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarize at least one value."""
        listed = list(values)
        return cls(statistics.median(listed), min(listed), max(listed))

    def show(self, digits: int | None = None) -> str:
        """Return the median as text, with the minimum and the maximum where they differ from it."""
        if digits is None:
            digits = 0 if self.median >= 20 else 1
        median, least, most = (f"{value:.{digits}f}" for value in (self.median, self.least, self.most))
        return median if least == most else f"{median} ({least} to {most})"


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` (0 to 1) of the values do not exceed; nan for none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def group(records: Iterable[Record], *names: str) -> dict[tuple[Any, ...], list[Record]]:
    """Group records by their values of `names`, in the order of the first of each."""
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        groups[tuple(record[name] for name in names)].append(record)
    return dict(groups)


def find_limit(records: Sequence[Record]) -> tuple[int, Spread]:
    """Return the thread count with the highest median rate, and its rates."""
    rates = {
        threads: Spread.of(record["rate"] for record in found)
        for (threads,), found in group(records, "threads").items()
    }
    best = max(rates, key=lambda threads: rates[threads].median)
    return best, rates[best]


def compare(records: Sequence[Record], others: Sequence[Record], figure: str = "rate") -> Spread | None:
    """Divide a figure by that of others in the same round with the same callers, if any; None without pairs.

    The speed of a shared machine changes from round to round, so that only figures of one round are compared.
    """
    ratios = []
    for record in records:
        beside = (
            other[figure]
            for other in others
            if other["round"] == record["round"]
            and other.get("callers") == record.get("callers")
            and other[figure]
        )
        ratios += [record[figure] / value for value in beside]
    return Spread.of(ratios) if ratios else None


def show_ratio(ratio: Spread | None) -> str:
    """Return a ratio as text; empty without one."""
    return ratio.show(2) if ratio else ""


def read_answer(document: Any) -> dict[str, float]:
    """Return the numbers of an answer's first row by label, best first; plain numbers by their index."""
    row = document["predictions"][0]
    if isinstance(row, dict):
        return {entry["label"]: entry["probability"] for entry in row["probabilities"]}
    return {str(index): value for index, value in enumerate(row)}


def compare_answers(answers: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return each answer's largest difference from the first one at f32; infinite for another best label.

    Only labels that both list are compared: the last of ten may differ by very little.
    """
    first = next((answer for name, answer in answers.items() if name.split()[-1] not in REDUCED), {})
    first = first or next(iter(answers.values()))
    differences = {}
    for name, answer in answers.items():
        common = answer.keys() & first.keys()
        same = bool(common) and next(iter(answer)) == next(iter(first))
        largest = max((abs(answer[label] - first[label]) for label in common), default=math.inf)
        differences[name] = largest if same else math.inf
    return differences


def render_table(rows: Iterable[Sequence[str]]) -> str:
    """Return rows, the first of them the heads, as a table in Markdown with aligned columns."""
    head, *body = rows
    widths = [max(3, *map(len, column)) for column in zip(head, *body, strict=True)]
    rule = ["-" * width for width in widths]
    padded = (
        [cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (head, rule, *body)
    )
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)
