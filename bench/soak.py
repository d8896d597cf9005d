"""Soak: `make soak` keeps a server at its saturation point and checks its memory and every answer."""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import processes
from bench.figures import render_table
from bench.samples import CACHE, LOGS, RESULTS, WORKLOADS, find_samples
from bench.servers import Server, make_ours

CALLERS = 16
#: Seconds of one load, between two readings of the memory, and after which memory must be flat.
SLICE = 20.0
INTERVAL = 2.0
SETTLED = 60.0
#: Flat: the trend over the whole time, and the maximum minus the minimum, as shares of the median.
TREND = 0.02
SPREAD = 0.05


@dataclass
class Soak:
    """What was found: requests, errors, (p50, p99) in ms by slice, and (seconds, own resident MB) pairs."""

    seconds: float = 0.0
    answered: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    waits: list[tuple[float, float]] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)

    @property
    def settled(self) -> list[tuple[float, float]]:
        """The memory after the first minute."""
        return [(at, megabytes) for at, megabytes in self.memory if at >= SETTLED]

    @property
    def slope(self) -> float:
        """MB per second by which the settled memory grows, by least squares."""
        times, megabytes = zip(*self.settled, strict=True)
        return statistics.linear_regression(times, megabytes).slope

    @property
    def is_flat(self) -> bool:
        """Whether the trend and the spread are small shares of the median."""
        megabytes = [value for _, value in self.settled]
        median = statistics.median(megabytes)
        trend = abs(self.slope) * (self.settled[-1][0] - self.settled[0][0])
        return trend <= TREND * median and max(megabytes) - min(megabytes) <= SPREAD * median


def main(arguments: Sequence[str]) -> int:
    """Soak, print the table and write it; return 1 if memory grew or a request failed."""
    parser = argparse.ArgumentParser("make soak SOAK_ARGS=", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="at least 90 (default 600)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="a folder")
    options = parser.parse_args(arguments)
    if options.seconds < SETTLED + 30:
        parser.error("memory is judged after the first minute: soak for 90 seconds or more")
    with Server(
        make_ours("soak", BACKEND="openvino"), WORKLOADS["picture"], find_samples(CACHE), LOGS
    ) as server:
        found = soak(server, options.seconds)
    options.output.mkdir(exist_ok=True)
    table = render(found)
    (options.output / "soak.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    return 0 if found.is_flat and not found.errors else 1


def soak(server: Server, seconds: float) -> Soak:
    """Load `server` in slices for `seconds`, and read its memory all the time."""
    found = Soak()
    began = time.monotonic()
    ended = threading.Event()

    def read_memory() -> None:
        while not ended.wait(INTERVAL):
            found.memory.append((time.monotonic() - began, processes.measure_tree(server.pid).own))

    reader = threading.Thread(target=read_memory)
    reader.start()
    try:
        while (left := seconds - (time.monotonic() - began)) > 0:
            report = server.load(CALLERS, min(SLICE, max(1.0, left)))
            found.answered += report["answered"]
            found.errors.update(report["errors"])
            found.waits.append((report["p50"], report["p99"]))
    finally:
        ended.set()
        reader.join()
    found.seconds = time.monotonic() - began
    return found


def render(found: Soak) -> str:
    """Return the table in Markdown."""
    first = max(value for at, value in found.memory if at < SETTLED)
    settled = [value for _, value in found.settled]
    rows = [
        ("", ""),
        ("seconds, callers", f"{found.seconds:.0f}, {CALLERS}"),
        ("requests answered with 200", str(found.answered)),
        ("failed requests", ", ".join(f"{n} x {kind}" for kind, n in found.errors.items()) or "0"),
        ("requests/s", f"{found.answered / found.seconds:.0f}"),
        (
            "p50, p99, ms (medians of slices)",
            ", ".join(f"{statistics.median(one):.0f}" for one in zip(*found.waits, strict=True)),
        ),
        ("own memory in the first minute, maximum, MB", f"{first:.1f}"),
        (
            "memory after it, minimum, median, maximum, MB",
            ", ".join(f"{one(settled):.1f}" for one in (min, statistics.median, max)),
        ),
        ("its trend, MB an hour", f"{found.slope * 3600:+.1f}"),
        ("flat", "yes" if found.is_flat else "NO"),
    ]
    return render_table(rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
