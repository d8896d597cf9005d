"""Measure serving: the limit, the tutorials' stack and ours; `make bench` runs it with BENCH_ARGS."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.figures import Record
from bench.limit import PRECISIONS
from bench.rounds import Bench
from bench.samples import CACHE, LOGS, RESULTS, WORKLOADS, Workload, find_samples
from bench.servers import BenchError, Contender, make_naive, make_ours
from bench.table import render_results

CALLERS = (1, 4, 16, 64)
#: Our contenders by name with their settings. The last word of a name is its precision.
OURS = {
    "openvino f32": {"BACKEND": "openvino"},
    "openvino bf16": {"BACKEND": "openvino", "PRECISION": "bfloat16"},
    "openvino int8": {"BACKEND": "openvino", "PRECISION": "int8"},
    "tensorflow f32": {"BACKEND": "tensorflow"},
}
#: The only contender of ours for a workload without a network.
PLAIN = {"numpy f32": {"BACKEND": "auto"}}


def main(arguments: Sequence[str]) -> int:
    """Measure, print the tables, and write `results.json` and `results.md`; return 1 if anything failed."""
    options = _parse(arguments)
    started = time.monotonic()
    try:
        samples = find_samples(CACHE)
        contenders = {name: _choose(WORKLOADS[name], options.only) for name in options.workloads}
        precisions = {
            name: sorted({_precision(one) for one in chosen} or {"f32"})
            for name, chosen in contenders.items()
            if WORKLOADS[name].has_limit and (not options.only or "limit" in options.only)
        }
        bench = Bench(options.callers, options.seconds, contenders, precisions, samples, LOGS)
        records: list[Record] = []
        for number in range(options.rounds):
            for name in contenders:
                records += bench.run_round(number, WORKLOADS[name])
    except (BenchError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1
    results = {
        "machine": describe_machine(),
        "rounds": options.rounds,
        "titles": {name: WORKLOADS[name].title for name in contenders},
        "precisions": {one.name: _precision(one) for chosen in contenders.values() for one in chosen},
        "records": records,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.json").write_text(json.dumps(results, indent=1))
    text = render_results(results)
    (options.output / "results.md").write_text(text + "\n")
    print(text)
    print(f"{time.monotonic() - started:.0f} s; {options.output}/results.json and .md", file=sys.stderr)
    return int("ANSWERS DIFFER" in text or any(record.get("errors") for record in records))


def _parse(arguments: Sequence[str]) -> Any:
    parser = argparse.ArgumentParser("make bench BENCH_ARGS=", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round with 1 and 16 callers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of every load (default 2)")
    parser.add_argument("--callers", type=_numbers, default=CALLERS, help="such as 1,16")
    parser.add_argument(
        "--workloads", type=_names, default=tuple(WORKLOADS), help=f"of {','.join(WORKLOADS)}"
    )
    parser.add_argument(
        "--only", type=lambda text: text.split(","), help="parts of names, such as limit,openvino"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="a folder")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.callers, options.seconds = 1, (1, 16), 1.0
    return options


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in WORKLOADS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}; expected some of {', '.join(WORKLOADS)}")
    return names


def _choose(workload: Workload, only: Sequence[str] | None) -> list[Contender]:
    """Return a workload's contenders whose names contain one of the parts in `only`."""
    ours = PLAIN if workload.algorithm == "bench.tabular" else OURS
    contenders = [make_ours(name, **settings) for name, settings in ours.items()]
    if not only or "naive" in only:
        python = Path(sys.prefix, "naive", "bin", "python")
        if not python.exists():
            raise BenchError(f"there is no {python}; `make bench` makes it.")
        contenders.insert(0, make_naive(python))
    return [one for one in contenders if not only or any(part in one.name for part in only)]


def _precision(contender: Contender) -> str:
    word = contender.name.split()[-1]
    return word if word in PRECISIONS else "f32"


def describe_machine() -> str:
    """Return the processor's name, how many of its cores may be used, and how busy they are."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line.partition(": ")[2] for line in text.splitlines() if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {model or os.uname().machine}; load average {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
