"""Measure how fast pictures are fitted and what feeding them takes; `make bench-train` with BENCH_ARGS."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.__main__ import CACHE, HERE, describe_machine
from bench.training.photographs import find_photographs
from bench.training.report import draw, render

ROOT = HERE.parent
#: A process that measures ends by then, seconds.
LIMIT = 600


@dataclass(frozen=True)
class Workload:
    """A network and the pictures it is fitted to."""

    architecture: str
    size: int
    pictures: int
    many: int  # ten times as many as for the memory's lower figure
    batch_size: int = 32

    @property
    def title(self) -> str:
        """Name it for a reader."""
        return (
            f"{self.architecture}, {self.pictures} JPEGs of {self.size} x {self.size}, "
            f"batches of {self.batch_size}"
        )


WORKLOADS = {
    "32": Workload("SmallCNN", 32, 1024, 20_000),
    "224": Workload("MobileNetV2", 224, 96, 5000),
}
MEMORY_WAYS = ("ours, not kept", "ours, kept", "keras")


def main(arguments: Sequence[str]) -> int:
    """Measure, print the table, and write `training.md`, `.json` and `.png`."""
    parser = argparse.ArgumentParser("make bench-train BENCH_ARGS=", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--only", choices=(*WORKLOADS, "memory"), help="one part; the others stay as they are"
    )
    parser.add_argument("--output", type=Path, default=HERE / "results", help="a folder")
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    file = given.output / "training.json"
    results: dict[str, Any] = {"titles": {}, "speed": [], "memory": []}
    if given.only and file.exists():
        results = json.loads(file.read_text())
    results |= {"machine": describe_machine(), "rounds": given.rounds}
    for name, workload in WORKLOADS.items():
        if given.only in (None, name):
            kept = [record for record in results["speed"] if record["workload"] != name]
            found = [{"workload": name, **record} for record in measure_speed(workload, given.rounds)]
            results["speed"] = sorted(kept + found, key=lambda record: int(record["workload"]))
            results["titles"][name] = workload.title
    if given.only in (None, "memory"):
        results["memory"] = list(measure_memory())
    results["titles"] = {name: results["titles"][name] for name in WORKLOADS if name in results["titles"]}
    file.write_text(json.dumps(results, indent=1))
    text = render(results)
    (given.output / "training.md").write_text(text)
    print(text)
    draw(results, given.output / "training.png")
    return 0


def measure_speed(workload: Workload, rounds: int) -> list[dict[str, Any]]:
    """Measure every way of feeding, in turns, in a process of its own."""
    folder = find_photographs(CACHE, workload.size, workload.pictures)
    numbers = (workload.size, workload.batch_size, rounds)
    return _run("speed", folder, workload.architecture, *numbers)


def measure_memory() -> Iterator[dict[str, Any]]:
    """Measure the peak of each way, over pictures and over ten times as many."""
    for workload in WORKLOADS.values():
        for count in (workload.many // 10, workload.many):
            folder = find_photographs(CACHE, workload.size, count)
            for way in MEMORY_WAYS:
                (found,) = _run("memory", way, folder, workload.size, workload.batch_size)
                yield {"size": workload.size, "pictures": count, **found}


def _run(module: str, *arguments: object) -> list[dict[str, Any]]:
    """Run one of the modules that measure and give what it wrote."""
    command = [sys.executable, "-m", f"bench.training.{module}", *map(str, arguments)]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'program'}",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, timeout=LIMIT, stdout=subprocess.PIPE, text=True
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
