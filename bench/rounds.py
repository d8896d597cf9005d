"""The measurement: all contenders run side by side and take turns, callers by callers and round by round."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.figures import Record, compare_answers
from bench.limit import THREADS, open_limit
from bench.samples import Workload
from bench.servers import Contender, Server

WARM_UP = 0.4
#: The first load after a start, in which every worker loads and traces its model; it is not counted.
FIRST_SECONDS = 2.0


@dataclass(frozen=True)
class Bench:
    """What all rounds share. `seconds` is the time of each load; a limit gets a third of it.

    `contenders` and `precisions` (those of the limit) are by workload.
    """

    callers: Sequence[int]
    seconds: float
    contenders: Mapping[str, Sequence[Contender]]
    precisions: Mapping[str, Sequence[str]]
    samples: Path
    logs: Path

    def run_round(self, number: int, workload: Workload) -> Iterator[Record]:
        """Measure one workload once; yield records whose `kind` is start, answers, limit or load.

        All contenders keep running, and each number of callers is measured with one after the other: a change
        of the machine's speed affects all of them.
        """
        contenders = self.contenders[workload.name]
        shift = number % max(1, len(contenders))
        base = {"round": number, "workload": workload.name}
        with ExitStack() as stack:
            servers, limits, answers = [], {}, {}
            for contender in [*contenders[shift:], *contenders[:shift]]:
                server = stack.enter_context(Server(contender, workload, self.samples, self.logs))
                servers.append(server)
                answers[contender.name] = server.answer
                server.load(4, FIRST_SECONDS)
                yield {**base, "kind": "start", "contender": contender.name, "ready": server.ready_seconds}
            for precision in self.precisions.get(workload.name, ()):
                limit = open_limit(workload, self.samples, precision)
                limits[precision], answers[f"limit, {precision}"] = stack.enter_context(limit)
            yield {**base, "kind": "answers", "differences": compare_answers(answers)}
            for callers in self.callers:
                for precision, measure in limits.items():
                    for threads in THREADS:
                        found = measure(threads, self.seconds / 3)
                        kind = {"kind": "limit", "precision": precision, "threads": threads}
                        yield {**base, "callers": callers, **kind, **found}
                for server in servers:
                    yield {**base, "callers": callers, "kind": "load", **self._load(server, number, callers)}

    def _load(self, server: Server, number: int, callers: int) -> Record:
        # A workload without a limit answers thousands of requests a second; half of the time is enough.
        record = server.load(callers, self.seconds / (1 if server.workload.has_limit else 2), WARM_UP)
        name = server.contender.name
        print(
            f"round {number + 1}, {server.workload.name}, {callers} callers, {name}: {record['rate']:.0f} "
            f"requests/s, p50 {record['p50']:.1f} ms, {sum(record['errors'].values())} errors",
            file=sys.stderr,
        )
        return {"contender": name, **record}
