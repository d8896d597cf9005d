"""Run the benchmark: `python -m bench`, which `make bench` does with BENCH_ARGS."""

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

from bench.contenders import BenchError, Contender, make_naive, make_ours
from bench.figures import Record
from bench.limit import PRECISIONS
from bench.rounds import Bench, Schedule
from bench.samples import WORKLOADS, Workload, find_samples
from bench.table import render_results

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache"
CALLERS = (1, 4, 16, 64)
#: Our contenders: their name, and the settings that make them. The precision is the name's last word.
OURS = {
    "openvino f32": {"BACKEND": "openvino"},
    "openvino bf16": {"BACKEND": "openvino", "PRECISION": "bfloat16"},
    "openvino int8": {"BACKEND": "openvino", "PRECISION": "int8"},
    "tensorflow f32": {"BACKEND": "tensorflow"},
}
#: A workload without a network has one contender of ours.
PLAIN = {"numpy f32": {"BACKEND": "auto"}}


def main(arguments: Sequence[str]) -> int:
    """Measure, print the table, and write `results.json` and `results.png`; 1 if a contender failed."""
    given = _parse(arguments)
    schedule = Schedule(
        rounds=1 if given.quick else given.rounds,
        callers=(1, 16) if given.quick else given.callers,
        seconds=1.0 if given.quick else given.seconds,
    )
    CACHE.mkdir(exist_ok=True)
    (CACHE / "logs").mkdir(exist_ok=True)
    started = time.monotonic()
    try:
        samples = find_samples(CACHE)
        contenders = {name: _choose(WORKLOADS[name], given.only) for name in given.workloads}
        precisions = {
            name: sorted({_precision(one) for one in chosen} or {"f32"})
            for name, chosen in contenders.items()
            if WORKLOADS[name].has_limit and (not given.only or "limit" in given.only)
        }
        bench = Bench(schedule, contenders, precisions, samples, CACHE / "logs", _say)
        records: list[Record] = []
        for number in range(schedule.rounds):
            for name in contenders:
                records += bench.run_round(number, WORKLOADS[name])
    except (BenchError, subprocess.CalledProcessError) as error:
        _say(str(error))
        return 1
    results = {
        "machine": describe_machine(),
        "rounds": schedule.rounds,
        "titles": {name: WORKLOADS[name].title for name in contenders},
        "precisions": {one.name: _precision(one) for chosen in contenders.values() for one in chosen},
        "records": records,
    }
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "results.json").write_text(json.dumps(results, indent=1))
    text = render_results(results)
    (given.output / "results.txt").write_text(text + "\n")
    print(text)
    command = [_find_python("bench"), HERE / "chart.py", given.output / "results.json"]
    subprocess.run([*command, given.output / "results.png"], check=True, timeout=120)
    _say(f"{time.monotonic() - started:.0f} s; {given.output}/results.json, .txt and .png")
    return 0


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
    parser.add_argument("--output", type=Path, default=HERE / "results", help="a folder")
    return parser.parse_args(arguments)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in WORKLOADS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}; expected some of {', '.join(WORKLOADS)}")
    return names


def _choose(workload: Workload, only: Sequence[str] | None) -> list[Contender]:
    """Give a workload's contenders whose names have one of the parts in `only`."""
    ours = PLAIN if workload.algorithm == "bench.tabular" else OURS
    listed = [make_naive(_find_python("naive")) if not only or "naive" in only else None]
    listed += [make_ours(name, **settings) for name, settings in ours.items()]
    return [one for one in listed if one and (not only or any(part in one.name for part in only))]


def _precision(contender: Contender) -> str:
    word = contender.name.split()[-1]
    return word if word in PRECISIONS else "f32"


def _find_python(name: str) -> Path:
    """Give the interpreter of an environment below ours, which `make bench` makes."""
    python = Path(sys.prefix, name, "bin", "python")
    if not python.exists():
        raise BenchError(f"there is no {python}; `make bench` makes it.")
    return python


def describe_machine() -> str:
    """Name the processor, how many of its cores may be used, and how busy they are."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line.partition(": ")[2] for line in text.splitlines() if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {model or os.uname().machine}; load average {os.getloadavg()[0]:.1f}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
