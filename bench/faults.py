"""Faults while serving: `make faults` harms a real server under steady load, and tells what that cost."""

from __future__ import annotations

import argparse
import contextlib
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import injections
from bench.contenders import BenchError, Contender, Server, make_ours
from bench.injections import Injection
from bench.samples import ROOT, WORKLOADS, find_samples
from bench.witness import Account, Witness

HERE = Path(__file__).resolve().parent
CALLERS = 16
#: Seconds of load before the fault, and that a server has to end where it cannot go on.
STEADY = 2.0
END_SECONDS = 40.0


def _limit_memory(megabytes: int) -> str:
    """Give the shell's lines that put it into a control group of its own, of version 1 or 2."""
    return f"""
        own=$(sed -n 's/^[0-9]*:memory:/memory/p;s/^0:://p' /proc/self/cgroup | head -n 1)
        group=/sys/fs/cgroup/$own/tandem-faults; limit=$group/memory.limit_in_bytes
        mkdir -p "$group"; [ -e "$limit" ] || limit=$group/memory.max
        echo {megabytes}M > "$limit"; echo $$ > "$group/cgroup.procs\""""


@dataclass(frozen=True)
class Fault:
    """One fault: how the server is started for it, what is done to it, and what must come of it.

    `prepare` are lines of shell in a mount namespace of its own; `ends`: the server must end by itself, and
    with which status, else it must serve on and end with 0.
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
    Fault("golden answers differ", environment=COPY, starts=False, ends=(3,)),
    Fault("temporary folder full, of 1", injections.fill_disk("disk"), environment=DISK, prepare=SMALL_DISK),
    Fault(
        "temporary folder full, of 2", injections.fill_disk("disk"), 2, environment=DISK, prepare=SMALL_DISK
    ),
    Fault("the log's disk full", injections.fill_disk("disk"), prepare=SMALL_DISK, log="$RUN/disk/log"),
    Fault("shared memory full, killed, of 2", injections.fill_and_kill, 2, prepare=SMALL_MEMORY),
    Fault("all read-only, of 1", prepare=READ_ONLY),
    Fault("all read-only, of 2", processes=2, prepare=READ_ONLY),
    Fault("clock an hour ahead", injections.set_clock(3600), environment=CLOCK),
    Fault("clock an hour back", injections.set_clock(-3600), environment=CLOCK),
    Fault("SIGTERM", injections.stop, ends=(0,)),
    Fault("SIGTERM, of 2", injections.stop, processes=2, ends=(0,)),
    Fault("SIGTERM, clock ahead", injections.stop_and_set_clock, environment=CLOCK, ends=(0,)),
    Fault("no descriptor free for 3 s", injections.take_descriptors, seconds=8),
    Fault("frozen for 3 s, of 1", injections.freeze(3), seconds=8),
    Fault("frozen for 3 s, of 2", injections.freeze(3), processes=2, seconds=8),
    Fault("frozen for good, of 2", injections.freeze(0), processes=2, seconds=75),
    Fault("memory limit reached", injections.fill_memory, prepare=_limit_memory(700)),
    Fault("memory too small to load", prepare=_limit_memory(120), starts=False, ends=(3,)),
)


@dataclass(frozen=True)
class Outcome:
    """What came of a fault."""

    fault: Fault
    account: Account
    may_lose: int
    full_again: float | None
    status: int | None
    why: str = ""

    @property
    def holds(self) -> bool:
        """Whether what is promised holds: nothing wrong, no more lost than may be, and the right end."""
        fates = self.account.fates
        as_expected = self.status in (self.fault.ends or (0,))
        back = bool(self.fault.ends) or self.full_again is not None
        return not self.why and not fates["wrong"] and fates["lost"] <= self.may_lose and as_expected and back


def main(arguments: Sequence[str]) -> int:
    """Inject every fault and print the table; 1 if a promise was broken."""
    parser = argparse.ArgumentParser("make faults FAULTS_ARGS=", description=__doc__)
    parser.add_argument("--only", default="", help="parts of names, such as killed,clock")
    parser.add_argument("--cache", type=Path, default=HERE / ".cache", help="where the sample model lies")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "faults.md")
    given = parser.parse_args(arguments)
    samples = find_samples(given.cache)
    (given.cache / "logs").mkdir(exist_ok=True)
    outcomes = []
    for fault in FAULTS:
        if any(part in fault.name for part in given.only.split(",")):
            outcomes.append(inject(fault, samples, given.cache / "logs"))
            print("\t".join(describe(outcomes[-1])), file=sys.stderr, flush=True)
    table = render(outcomes)
    given.output.parent.mkdir(exist_ok=True)
    given.output.write_text(table + "\n", encoding="utf-8")
    print(table)
    return 0 if all(outcome.holds for outcome in outcomes) else 1


def inject(fault: Fault, samples: Path, logs: Path) -> Outcome:
    """Start a server, load it, harm it, and see what comes of it."""
    workload = WORKLOADS["picture"]
    server = Server(_make_contender(fault), workload, samples, logs)
    account, may_lose, moment, why = Account(), 0, math.inf, ""
    _prepare(server, samples / workload.name / "model", fault)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(server)
        except BenchError as error:
            return Outcome(fault, account, 0, None, server.wait(0), str(error) if fault.starts else "")
        witness = Witness(server.port, workload.read_body(samples), workload.content_type, CALLERS)
        with witness:
            account = witness.account
            witness.watch(STEADY)
            moment = time.monotonic()
            may_lose = fault.inject(server)
            witness.watch(fault.seconds)
            ended = server.wait(END_SECONDS if fault.ends else 0)
        if (ended is None) == bool(fault.ends):
            why = "did not end" if ended is None else f"ended with {ended}"
    return Outcome(fault, account, may_lose, account.seconds_until_full(moment), server.wait(0), why)


def describe(outcome: Outcome) -> tuple[str, ...]:
    """Give an outcome's row of the table."""
    fates, full = outcome.account.fates, outcome.full_again
    others = [
        f"{count} x {fate}" for fate, count in sorted(fates.items()) if fate.isdigit() and fate != "200"
    ]
    return (
        outcome.fault.name,
        str(outcome.account.sent),
        str(fates["200"]),
        ", ".join(others) or "0",
        f"{fates['lost']} (of {outcome.may_lose})",
        str(fates["wrong"]),
        outcome.account.describe_health() if outcome.account.pings else "never 200",
        "" if outcome.fault.ends else "never" if full is None else f"{full:.1f}",
        str(outcome.status),
        "yes" if outcome.holds else f"NO {outcome.why}".strip(),
    )


def render(outcomes: Sequence[Outcome]) -> str:
    """Give the table as Markdown."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(describe, outcomes)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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
        copied = injections.copy_model(model, server.run / "model")
        if not fault.starts:
            injections.falsify_golden(copied)
    if fault.environment == CLOCK:
        (server.run / "clock").write_text("0", encoding="utf-8")
        source = ROOT / "tests" / "clock" / "clock.c"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", server.run / "clock.so", source], check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
