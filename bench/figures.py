"""From what was measured to the figures that are shown: percentiles, and medians over the rounds."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """A median over the rounds, with the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Sum up values, at least one."""
        listed = list(values)
        return cls(statistics.median(listed), min(listed), max(listed))


def percentile(values: Sequence[float], share: float) -> float:
    """Give the least value that at least `share` (0 to 1) of the values do not exceed; nan for none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def make_record(report: Record) -> Record:
    """Give one load's figures: requests a second, milliseconds, errors, CPU ms a request, MB."""
    latencies = report["latencies"]
    return {
        "rate": len(latencies) / report["seconds"],
        "p50": percentile(latencies, 0.5) / 1000,
        "p99": percentile(latencies, 0.99) / 1000,
        "requests": len(latencies),
        "errors": sum(report["errors"].values()),
        "error_kinds": report["errors"],
        "cpu": report["cpu"] * 1000,
        "pss": report["pss"],
        "rss": report["rss"],
        "generator": report["share"],
    }


def group(records: Iterable[Record], *names: str) -> dict[tuple[Any, ...], list[Record]]:
    """Put records with equal values of `names` together, in the order in which they first came."""
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        groups[tuple(record[name] for name in names)].append(record)
    return dict(groups)


def find_limit(records: Sequence[Record]) -> tuple[int, Spread]:
    """Give the thread count whose median rate is highest, and its rates."""
    rates = {
        threads: Spread.of(record["rate"] for record in group_)
        for (threads,), group_ in group(records, "threads").items()
    }
    best = max(rates, key=lambda threads: rates[threads].median)
    return best, rates[best]


def compare(records: Sequence[Record], others: Sequence[Record], figure: str = "rate") -> Spread | None:
    """Divide a figure by the same of others in the same round (and beside the same callers, if they say).

    What lies minutes apart is not compared: the machine's speed changes meanwhile. None without pairs.
    """
    ratios = []
    for record in records:
        beside = [
            other[figure]
            for other in others
            if other["round"] == record["round"] and other["callers"] == record["callers"] and other[figure]
        ]
        ratios += [record[figure] / other for other in beside]
    return Spread.of(ratios) if ratios else None
