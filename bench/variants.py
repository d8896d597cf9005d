"""Our own server in variants, side by side and by turns: `make variants OF=cores`, or `OF=nginx`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bench.contenders import Contender, Server, make_ours
from bench.figures import Record, Spread, group, make_record
from bench.samples import WORKLOADS, find_samples

HERE = Path(__file__).resolve().parent
CALLERS = (1, 16)
WORKLOADS_COMPARED = {"cores": ("picture", "digits"), "nginx": ("picture", "digits", "tabular")}
COLUMNS = (
    *("workload", "callers", "", "requests/s", "times the first", "p50, ms", "p99, ms", "CPU, ms/request"),
)


def main(arguments: Sequence[str]) -> int:
    """Measure and print the table as Markdown."""
    parser = argparse.ArgumentParser("python -m bench.variants", description=__doc__)
    parser.add_argument("of", choices=WORKLOADS_COMPARED)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of every load (default 3)")
    parser.add_argument("--cache", type=Path, default=HERE / ".cache", help="where the sample models lie")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="a folder")
    given = parser.parse_args(arguments)
    samples = find_samples(given.cache)
    (given.cache / "logs").mkdir(exist_ok=True)
    records = []
    contenders = make_cores() if given.of == "cores" else make_nginx()
    for name in WORKLOADS_COMPARED[given.of]:
        with ExitStack() as stack:
            servers = {
                contender.name: stack.enter_context(
                    Server(contender, WORKLOADS[name], samples, given.cache / "logs")
                )
                for contender in contenders
            }
            for server in servers.values():
                server.load(4, 2.0, 0)
            for number in range(given.rounds):
                for callers in CALLERS:
                    for variant, server in servers.items():
                        figures = make_record(server.load(callers, given.seconds, 0.4))
                        place = {"workload": name, "round": number, "callers": callers, "variant": variant}
                        records.append({**place, **figures})
    table = render(records)
    given.output.mkdir(exist_ok=True)
    (given.output / f"{given.of}.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    return 0


def choose_cores(cores: Sequence[int]) -> dict[int, Sequence[int]]:
    """Give the cores of each step by their count: 1, 2, 4 … and all."""
    counts = {1 << step for step in range(len(cores).bit_length())} | {len(cores)}
    return {count: cores[:count] for count in sorted(counts) if count <= len(cores)}


def render(records: Sequence[Record]) -> str:
    """Give the table: medians of the rounds, with the least and the most rate."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for (workload, callers), beside in group(records, "workload", "callers").items():
        by_variant = group(beside, "variant")
        first = Spread.of(record["rate"] for record in next(iter(by_variant.values()))).median
        for (variant,), found in by_variant.items():
            rate, p50, p99, cpu = (
                Spread.of(record[name] for record in found) for name in ("rate", "p50", "p99", "cpu")
            )
            shown = f"{rate.median:.0f} ({rate.least:.0f} to {rate.most:.0f})"
            times = f"{rate.median / first:.2f}"
            figures = (f"{p50.median:.1f}", f"{p99.median:.1f}", f"{cpu.median:.1f}")
            rows.append((workload, str(callers), variant.removeprefix("ours, "), shown, times, *figures))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def make_cores() -> list[Contender]:
    """Give our server on 1, 2, 4 … cores."""
    contenders = []
    for count, cores in choose_cores(sorted(os.sched_getaffinity(0))).items():
        ours = make_ours(f"{count} core(s)", BACKEND="auto")
        bound = ("taskset", "--cpu-list", ",".join(map(str, cores)), *ours.command)
        contenders.append(replace(ours, command=bound))
    return contenders


def make_nginx() -> list[Contender]:
    """Give our server without and with nginx in front."""
    return [make_ours(f"NGINX={flag}", BACKEND="auto", NGINX=flag) for flag in ("false", "true")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
