"""Soak: `make soak` holds a server at its saturation point, and watches its memory and every answer."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import processes
from bench.contenders import Server, make_ours
from bench.figures import percentile
from bench.samples import WORKLOADS, find_samples

HERE = Path(__file__).resolve().parent
CALLERS = 16
#: Seconds of one load, between two looks at the memory, and after which memory must be flat.
SLICE = 20.0
LOOK = 2.0
SETTLED = 60.0
#: Flat: what the trend adds over all the time, and the most less the least, as shares of the median.
TREND = 0.02
SPREAD = 0.05


@dataclass
class Soak:
    """What was seen: requests and errors, latencies in ms, and own resident MB (no libraries') by second."""

    seconds: float = 0.0
    answered: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)

    @property
    def settled(self) -> list[tuple[float, float]]:
        """The memory after the first minute."""
        return [(at, megabytes) for at, megabytes in self.memory if at >= SETTLED]

    @property
    def slope(self) -> float:
        """MB a second by which the settled memory grows, by least squares."""
        times, megabytes = zip(*self.settled, strict=True)
        return statistics.linear_regression(times, megabytes).slope

    @property
    def spread(self) -> float:
        """The most less the least of the settled memory, in MB."""
        megabytes = [value for _, value in self.settled]
        return max(megabytes) - min(megabytes)

    @property
    def is_flat(self) -> bool:
        """Whether neither the trend nor the spread is more than a small share of the median."""
        median = statistics.median(value for _, value in self.settled)
        trend = abs(self.slope) * (self.settled[-1][0] - self.settled[0][0])
        return trend <= TREND * median and self.spread <= SPREAD * median


def main(arguments: Sequence[str]) -> int:
    """Soak, print the table, write it with figures and a chart; 1 if memory grew or a request failed."""
    parser = argparse.ArgumentParser("make soak SOAK_ARGS=", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="at least 90 (default 600)")
    parser.add_argument("--cache", type=Path, default=HERE / ".cache", help="where the sample model lies")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="a folder")
    given = parser.parse_args(arguments)
    if given.seconds < SETTLED + 30:
        parser.error("memory is looked at after the first minute: soak for 90 seconds or more")
    samples = find_samples(given.cache)
    (given.cache / "logs").mkdir(exist_ok=True)
    contender = make_ours("soak", BACKEND="openvino")
    with Server(contender, WORKLOADS["picture"], samples, given.cache / "logs") as server:
        found = soak(server, given.seconds)
    given.output.mkdir(exist_ok=True)
    (given.output / "soak.json").write_text(json.dumps(asdict(found)), encoding="utf-8")
    table = render(found)
    (given.output / "soak.md").write_text(table + "\n", encoding="utf-8")
    draw(found, given.output / "soak.png")
    print(table)
    return 0 if found.is_flat and not found.errors else 1


def soak(server: Server, seconds: float) -> Soak:
    """Load `server` without a break, and look at its memory all the while."""
    found = Soak()
    began = time.monotonic()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(LOOK):
            found.memory.append((time.monotonic() - began, processes.measure_tree(server.pid).own))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        while (left := seconds - (time.monotonic() - began)) > 0:
            _add(found, server.load(CALLERS, min(SLICE, max(1.0, left)), warm_up=0))
    finally:
        ended.set()
        watcher.join()
    found.seconds = time.monotonic() - began
    return found


def _add(found: Soak, report: dict[str, Any]) -> None:
    found.answered += report["answered"]
    found.errors.update(report["errors"])
    if report["latencies"]:
        found.p50.append(percentile(report["latencies"], 0.5) / 1000)
        found.p99.append(percentile(report["latencies"], 0.99) / 1000)


def render(found: Soak) -> str:
    """Give the table as Markdown."""
    first = max(value for at, value in found.memory if at < SETTLED)
    settled = [value for _, value in found.settled]
    rows = [
        ("seconds", f"{found.seconds:.0f}"),
        ("callers", str(CALLERS)),
        ("requests answered with 200", str(found.answered)),
        ("failed requests", ", ".join(f"{n} x {kind}" for kind, n in found.errors.items()) or "0"),
        ("requests a second", f"{found.answered / found.seconds:.0f}"),
        (
            "p50, p99, ms (medians of slices)",
            f"{statistics.median(found.p50):.0f}, {statistics.median(found.p99):.0f}",
        ),
        ("own memory in the first minute, at most, MB", f"{first:.1f}"),
        (
            "memory after it, least, median, most, MB",
            f"{min(settled):.1f}, {statistics.median(settled):.1f}, {max(settled):.1f}",
        ),
        ("its trend, MB an hour", f"{found.slope * 3600:+.1f}"),
        ("flat", "yes" if found.is_flat else "NO"),
    ]
    lines = ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines)


def draw(found: Soak, path: Path) -> None:
    """Draw memory over time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, chart = plt.subplots(figsize=(8, 3), layout="constrained")
    chart.plot(*zip(*found.memory, strict=True), color="#0072b2", linewidth=1.5)
    chart.axvline(SETTLED, color="#8c8c8c", linestyle="--", linewidth=1)
    chart.set_ylim(0, 1.15 * max(value for _, value in found.memory))
    chart.set_xlabel("seconds")
    chart.set_ylabel("own resident memory, MB")
    title = f"{CALLERS} callers, {found.answered} requests, {sum(found.errors.values())} failed"
    chart.set_title(title, loc="left", fontsize=10)
    chart.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
