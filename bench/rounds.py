"""The order of things: all contenders side by side, level by level and round by round, and what was found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contenders import BenchError, Contender, Server
from bench.figures import Record, make_record
from bench.limit import PRECISIONS, THREADS
from bench.samples import ROOT, Workload

LIMIT = Path(__file__).resolve().with_name("limit.py")
WARM_UP = 0.4
#: The first load after a start, which is not counted: every worker has loaded and traced its model then.
START_SECONDS = 2.0
REDUCED = PRECISIONS.keys() - {"f32"}

MeasureLimit = Callable[[int, float], Record]


@dataclass(frozen=True)
class Schedule:
    """How much is measured: rounds, callers, and seconds of each load; a third of them for each limit."""

    rounds: int
    callers: Sequence[int]
    seconds: float


@dataclass(frozen=True)
class Bench:
    """What all rounds share; `precisions` are those of which the limit is measured, by workload."""

    schedule: Schedule
    contenders: Mapping[str, Sequence[Contender]]
    precisions: Mapping[str, Sequence[str]]
    samples: Path
    logs: Path
    say: Callable[[str], None]

    def run_round(self, number: int, workload: Workload) -> Iterator[Record]:
        """Measure one workload once; gives records whose `kind` is start, answers, limit or load.

        All contenders stay up, and every number of callers is measured with one after the other: what the
        machine's speed does meanwhile, it does to all.
        """
        contenders = self.contenders[workload.name]
        shift = number % max(1, len(contenders))
        where = {"round": number, "workload": workload.name}
        with ExitStack() as stack:
            servers, answers = [], {}
            for contender in [*contenders[shift:], *contenders[:shift]]:
                server = stack.enter_context(Server(contender, workload, self.samples, self.logs))
                servers.append(server)
                answers[contender.name] = _read_answer(server.ask())
                server.load(4, START_SECONDS, 0)
                yield {**where, "kind": "start", "contender": contender.name, "ready": server.ready_seconds}
            limits = {}
            for precision in self.precisions.get(workload.name, ()):
                limits[precision], answers[f"limit, {precision}"] = stack.enter_context(
                    open_limit(workload, self.samples, precision)
                )
            yield {**where, "kind": "answers", "differences": compare_answers(answers)}
            for callers in self.schedule.callers:
                here = {**where, "callers": callers}
                for precision, limit in limits.items():
                    for threads in THREADS:
                        found = limit(threads, self.schedule.seconds / 3)
                        yield {**here, "kind": "limit", "precision": precision, "threads": threads, **found}
                for server in servers:
                    yield {**here, "kind": "load", **self._load(server, number, callers)}

    def _load(self, server: Server, number: int, callers: int) -> Record:
        # Where a second brings thousands of requests, half of it counts them as well.
        seconds = self.schedule.seconds / (1 if server.workload.has_limit else 2)
        record = make_record(server.load(callers, seconds, WARM_UP))
        name = server.contender.name
        self.say(
            f"round {number + 1}, {server.workload.name}, {callers} callers, {name}: "
            f"{record['rate']:.0f} requests/s, p50 {record['p50']:.1f} ms"
        )
        return {"contender": name, **record}


def compare_answers(answers: dict[str, dict[str, float]]) -> dict[str, float]:
    """Give each one's largest difference from the first at f32; infinite where another label is best.

    Beyond the best label only those that both list are compared: the last of ten may differ by a hair.
    """
    first = next((answers[name] for name in answers if name.split()[-1] not in REDUCED), {})
    first = first or next(iter(answers.values()))
    differences = {}
    for name, answer in answers.items():
        same = next(iter(answer)) == next(iter(first))
        common = answer.keys() & first.keys()
        largest = max(abs(answer[label] - first[label]) for label in common) if common else float("inf")
        differences[name] = largest if same else float("inf")
    return differences


@contextmanager
def open_limit(
    workload: Workload, samples: Path, precision: str
) -> Iterator[tuple[MeasureLimit, dict[str, float]]]:
    """Start the process that measures the limit; gives the function that asks it, and its answer."""
    root = samples / workload.name
    cores = len(os.sched_getaffinity(0))
    process = subprocess.Popen(
        [sys.executable, str(LIMIT), root / "model", root / workload.body, str(cores), precision],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'program'}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def read() -> Any:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise BenchError(f"the limit's process ended with {process.wait(10)}")
        return json.loads(line)

    def measure(threads: int, seconds: float) -> Record:
        assert process.stdin is not None  # noqa: S101
        process.stdin.write(json.dumps({"threads": threads, "seconds": seconds}) + "\n")
        process.stdin.flush()
        found: Record = read()
        return found

    try:
        yield measure, read()
    finally:
        process.kill()
        process.wait(10)


def _read_answer(document: Any) -> dict[str, float]:
    """Give an answer's numbers by label, best first; rows of numbers are labelled by their place."""
    row = document["predictions"][0]
    if isinstance(row, dict):
        return {entry["label"]: entry["probability"] for entry in row["probabilities"]}
    return {str(place): value for place, value in enumerate(row)}
