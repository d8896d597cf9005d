"""Faults while serving: `make faults` harms a real server under steady load and reports what that cost."""

from __future__ import annotations

import argparse
import asyncio
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from bench import injections
from bench.figures import render_table
from bench.injections import Injection
from bench.load import Load, Report
from bench.samples import CACHE, LOGS, RESULTS, ROOT, WORKLOADS, find_samples
from bench.servers import ANSWER_SECONDS, BenchError, Contender, Server, make_ours

CALLERS = 16
#: Seconds of load before the fault, for a server to recover or to end by itself, and for /ping to answer.
STEADY = 2.0
RECOVERY_SECONDS = 60.0
END_SECONDS = 40.0
PING_SECONDS = 2.0
PAUSE = 0.05
#: Rates are counted over this many seconds; this share of the rate before is "full" (machines are shared).
WINDOW = 1.0
FULL = 0.7


def _limit_memory(megabytes: int) -> str:
    """Return shell lines that put the shell into its own control group, of version 1 or 2."""
    return f"""
        own=$(sed -n 's/^[0-9]*:memory:/memory/p;s/^0:://p' /proc/self/cgroup | head -n 1)
        group=/sys/fs/cgroup/$own/tandem-faults; limit=$group/memory.limit_in_bytes
        mkdir -p "$group"; [ -e "$limit" ] || limit=$group/memory.max
        echo {megabytes}M > "$limit"; echo $$ > "$group/cgroup.procs\""""


@dataclass(frozen=True)
class Fault:
    """One fault: how the server is started, what is done to it, and how it must end.

    `prepare` are shell lines that run in a new mount namespace before the server. `ends`: the statuses with
    which the server must end by itself; without any it must go on serving, and end with 0 after SIGTERM.
    """

    name: str
    inject: Injection = injections.nothing
    processes: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: str = ""
    log: str = ""
    seconds: float = 5.0
    starts: bool = True
    ends: tuple[int, ...] = ()


READ_ONLY = "mount -o remount,bind,ro /; mount -o remount,bind,ro /tmp 2>/dev/null || true"
SMALL_DISK = 'mkdir -p "$RUN/disk"; mount -t tmpfs -o size=256k tmpfs "$RUN/disk"'
SMALL_MEMORY = "mount -t tmpfs -o size=512k tmpfs /dev/shm"
FAULTY = {"ALGORITHM": "bench.faulty", "FAULT": "{run}/fault"}
DISK = {"TMPDIR": "{run}/disk"}
CLOCK = {"LD_PRELOAD": "{run}/clock.so", "FAKE_CLOCK": "{run}/clock"}
COPY = {"SAGEMAKER_BASE_DIR": "{run}"}

COLUMNS = (
    *("fault", "sent", "200", "other statuses", "lost (may be)", "wrong", "/ping", "full again after, s"),
    *("exit status", "holds"),
)

FAULTS = (
    Fault("a process killed, of 1", injections.kill_one),
    Fault("a process killed, of 2", injections.kill_one, processes=2),
    Fault("killed, and its model is damaged", injections.damage_and_kill, environment=COPY, ends=(3,)),
    Fault("killed, its model damaged, of 2", injections.damage_and_kill, 2, environment=COPY, ends=(3,)),
    Fault("predict_fn raises", injections.raise_in_model, environment=FAULTY),
    Fault("the model's thread ends", injections.end_model_thread, environment=FAULTY),
    Fault("reference answers differ", environment=COPY, starts=False, ends=(3,)),
    Fault("temporary folder full, of 1", injections.fill_disk("disk"), environment=DISK, prepare=SMALL_DISK),
    Fault("temporary folder full, of 2", injections.fill_disk("disk"), 2, DISK, prepare=SMALL_DISK),
    Fault("the log's disk full", injections.fill_disk("disk"), prepare=SMALL_DISK, log="$RUN/disk/log"),
    Fault("shared memory full, killed, of 2", injections.fill_and_kill, 2, prepare=SMALL_MEMORY),
    Fault("all read-only, of 1", prepare=READ_ONLY),
    Fault("all read-only, of 2", processes=2, prepare=READ_ONLY),
    Fault("clock an hour ahead", injections.set_clock(3600), environment=CLOCK),
    Fault("clock an hour back", injections.set_clock(-3600), environment=CLOCK),
    Fault("SIGTERM", injections.stop, ends=(0,)),
    Fault("SIGTERM, of 2", injections.stop, processes=2, ends=(0,)),
    Fault("SIGTERM, clock ahead", injections.stop_and_set_clock, environment=CLOCK, ends=(0,)),
    Fault("64 slow clients for 3 s", injections.send_slowly, seconds=8),
    Fault("400 clients disconnect", injections.disconnect),
    Fault("no descriptor free for 3 s", injections.take_descriptors, seconds=8),
    Fault("frozen for 3 s, of 1", injections.freeze(3), seconds=8),
    Fault("frozen for 3 s, of 2", injections.freeze(3), processes=2, seconds=8),
    Fault("frozen for good, of 2", injections.freeze(0), processes=2, seconds=75),
    Fault("memory limit reached", injections.fill_memory, prepare=_limit_memory(700)),
    Fault("memory too small to load", prepare=_limit_memory(120), starts=False, ends=(3,)),
)


@dataclass
class Account:
    """What the callers and a client that asks for /ping saw; `pings` are times and statuses."""

    report: Report = field(default_factory=Report)
    pings: list[tuple[float, int | None]] = field(default_factory=list)
    wrong: int = 0

    @property
    def lost(self) -> int:
        """How many requests were sent and not answered."""
        return self.report.errors["lost"] + self.report.errors["no answer"]

    def seconds_until_full(self, moment: float) -> float | None:
        """Return how long after `moment` answers came as fast as before; None if they never did."""
        answered = sorted(at for at, _ in self.report.answers)
        before = sum(1 for at in answered if moment - 2 * WINDOW <= at < moment) / 2
        later = [at for at in answered if at >= moment]
        for start in [moment, *later]:
            if sum(1 for at in later if start <= at < start + WINDOW) >= FULL * before:
                return start - moment
        return None

    def describe_health(self) -> str:
        """Return the statuses of /ping in order, with the seconds of all but 200."""
        parts = []
        ends = [at for at, _ in self.pings[1:]] + [self.pings[-1][0]] if self.pings else []
        for status, found in groupby(zip(self.pings, ends, strict=True), key=lambda pair: pair[0][1]):
            listed = list(found)
            seconds = listed[-1][1] - listed[0][0][0]
            parts.append("200" if status == 200 else f"{status or 'no answer'} for {seconds:.1f} s")
        return ", ".join(parts) or "never asked"


@dataclass(frozen=True)
class Outcome:
    """What a fault led to; `why` is empty unless something unexpected happened."""

    fault: Fault
    account: Account
    may_lose: int
    full_again: float | None
    status: int | None
    why: str = ""

    @property
    def holds(self) -> bool:
        """Whether no answer was wrong, no more were lost than may be, and the server recovered or ended."""
        expected = self.status in (self.fault.ends or (0,))
        recovered = bool(self.fault.ends) or self.full_again is not None
        within = not self.account.wrong and self.account.lost <= self.may_lose
        return not self.why and within and expected and recovered


def main(arguments: Sequence[str]) -> int:
    """Inject every fault and print the table; return 1 if a promise was broken."""
    parser = argparse.ArgumentParser("make faults FAULTS_ARGS=", description=__doc__)
    parser.add_argument("--only", default="", help="parts of names, such as killed,clock")
    parser.add_argument("--output", type=Path, default=RESULTS / "faults.md")
    options = parser.parse_args(arguments)
    samples = find_samples(CACHE)
    outcomes = []
    for fault in FAULTS:
        if any(part in fault.name for part in options.only.split(",")):
            outcomes.append(inject(fault, samples))
            print("\t".join(describe(outcomes[-1])), file=sys.stderr, flush=True)
    table = render_table([COLUMNS, *map(describe, outcomes)])
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(table + "\n", encoding="utf-8")
    print(table)
    return 0 if all(outcome.holds for outcome in outcomes) else 1


def inject(fault: Fault, samples: Path) -> Outcome:
    """Start a server, load it, harm it, and record what follows."""
    workload = WORKLOADS["picture"]
    server = Server(_make_contender(fault), workload, samples, LOGS)
    _prepare(server, samples / workload.name / "model", fault)
    with ExitStack() as stack:
        try:
            stack.enter_context(server)
        except BenchError as error:
            return Outcome(fault, Account(), 0, None, server.wait(0), str(error) if fault.starts else "")
        with observe(server) as account:
            time.sleep(STEADY)  # the time of the load itself
            moment = time.monotonic()
            give_up = moment + RECOVERY_SECONDS
            may_lose = fault.inject(server)
            time.sleep(fault.seconds)  # the time of the load itself
            ended = server.wait(END_SECONDS if fault.ends else 0)
            while ended is None and account.seconds_until_full(moment) is None and time.monotonic() < give_up:
                ended = server.wait(1)
        why = ""
        if (ended is None) == bool(fault.ends):
            why = "did not end" if ended is None else f"ended with {ended}"
    return Outcome(fault, account, may_lose, account.seconds_until_full(moment), server.wait(0), why)


@contextmanager
def observe(server: Server) -> Iterator[Account]:
    """Load the server and ask for /ping all the time; at the end wait for the last answers and check them."""
    load = Load(server.port, server.request, CALLERS)
    account = Account(load.report)
    ended = threading.Event()

    def ping() -> None:
        while not ended.is_set():
            began = time.monotonic()
            account.pings.append((began, server.ping(PING_SECONDS)))
            ended.wait(PAUSE)

    def call() -> None:
        asyncio.run(load.run(math.inf, patience=ANSWER_SECONDS))

    threads = [threading.Thread(target=target) for target in (ping, call)]
    for thread in threads:
        thread.start()
    try:
        yield account
    finally:
        load.sending = False
        ended.set()
        for thread in threads:
            thread.join()
    account.wrong = server.count_wrong(account.report.bodies)


def describe(outcome: Outcome) -> tuple[str, ...]:
    """Return an outcome's row of the table."""
    account, full = outcome.account, outcome.full_again
    report = account.report
    statuses = {kind: count for kind, count in report.errors.items() if kind.startswith("status ")}
    return (
        outcome.fault.name,
        str(len(report.answers) + sum(statuses.values()) + account.lost),
        str(len(report.answers) - account.wrong),
        ", ".join(f"{count} x {kind[7:]}" for kind, count in sorted(statuses.items())) or "0",
        f"{account.lost} (of {outcome.may_lose})",
        str(account.wrong),
        account.describe_health() if account.pings else "never 200",
        "" if outcome.fault.ends else "never" if full is None else f"{full:.1f}",
        str(outcome.status),
        "yes" if outcome.holds else f"NO {outcome.why}".strip(),
    )


def _make_contender(fault: Fault) -> Contender:
    ours = make_ours(
        fault.name,
        BACKEND="openvino",
        RUN="{run}",
        SAGEMAKER_MODEL_SERVER_WORKERS=str(fault.processes),
        **fault.environment,
    )
    if not fault.prepare:
        return ours
    redirection = f'> "{fault.log}" 2>&1' if fault.log else ""
    script = f'set -e; {fault.prepare}; exec "$@" {redirection}'
    shell = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")
    return replace(ours, command=(*shell, *ours.command))


def _prepare(server: Server, model: Path, fault: Fault) -> None:
    if fault.environment == COPY:
        injections.copy_model(model, server.run / "model", falsified=not fault.starts)
    if fault.environment == CLOCK:
        (server.run / "clock").write_text("0", encoding="utf-8")
        source = ROOT / "tests" / "clock" / "clock.c"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", server.run / "clock.so", source], check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
