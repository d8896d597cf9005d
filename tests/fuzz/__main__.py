"""`make fuzz`: run the decoders on fuzzed inputs in child processes, and report the results."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import IO, Any

from fuzz.child import CURRENT_BYTES, HEAD

BATCH = 500
WARM_UP_BATCHES = 10
HANG_SECONDS = 30.0  # of wall-clock time, far more than a slow input takes on a busy machine
GROWTH_BYTES = 64 << 20
MAX_FAULTS = 50


def main() -> int:
    """Return 0 if all inputs were decoded or rejected, none took too long, and memory did not grow."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=250_000, help="number of inputs (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1200, help="time limit (%(default)s)")
    parser.add_argument("--seed", type=int, default=int(time.time()) & 0xFFFF, help="determines the inputs")
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="number of processes (%(default)s)"
    )
    parser.add_argument(
        "--faults", type=Path, default=Path("fuzz-faults"), help="folder for failing inputs (%(default)s)"
    )
    options = parser.parse_args()
    run = Run(options.seed, options.seconds, options.faults)
    run.start(-(-options.inputs // BATCH), options.jobs)
    say(run.summary())
    return 1 if run.faults or run.inputs < options.inputs else 0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Worker:
    """A child process that runs a share of the batches."""

    def __init__(self, child: str, number: int, first: int, last: int, folder: Path) -> None:
        self.next, self.last = first, last
        self.current = folder / f"current-{first}"
        self.errors: IO[bytes] = (folder / f"errors-{first}").open("w+b")
        command = [sys.executable, "-m", child, *map(str, (number, first, last, BATCH)), str(self.current)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.errors, env=environment)
        self.memory: list[int] = []
        self.begun, self.seen = 0, time.monotonic()

    @property
    def output(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def read_current(self) -> tuple[int, str, bytes]:
        """Return the number of inputs started, and the description and body of the last one."""
        if not self.current.exists() or self.current.stat().st_size < CURRENT_BYTES:
            return 0, "", b""
        with self.current.open("rb") as file:
            begun, length, known = HEAD.unpack(file.read(HEAD.size))
            return begun, file.read(known).decode(), file.read(length)

    def is_stuck(self, seconds: float) -> bool:
        """Return whether the current input has been running for longer than that."""
        begun = self.read_current()[0]
        if begun != self.begun:
            self.begun, self.seen = begun, time.monotonic()
        limit = seconds if begun else HANG_SECONDS  # the imports before the first input take long
        return time.monotonic() - self.seen > limit

    def end(self) -> int:
        self.process.kill()
        code = self.process.wait()
        self.output.close()
        self.errors.close()
        return code


class Run:
    """All workers and the sum of their results."""

    def __init__(self, number: int, seconds: float, folder: Path, child: str = "fuzz.child") -> None:
        self.number, self.folder, self.child = number, folder, child
        self.hang_seconds = HANG_SECONDS
        self.started = time.monotonic()
        self.deadline = self.started + seconds
        self.outcomes: Counter[str] = Counter()
        self.noise: Counter[str] = Counter()
        self.max_noise = 0
        self.slowest = 0.0
        self.faults: list[str] = []
        self.memory: list[tuple[int, int]] = []

    @property
    def inputs(self) -> int:
        return sum(self.outcomes.values())

    def start(self, batches: int, jobs: int) -> None:
        """Run batches 0 to `batches`; a worker that dies is replaced by one that skips its batch."""
        edges = [batches * job // jobs for job in range(jobs + 1)]
        with tempfile.TemporaryDirectory() as made, selectors.DefaultSelector() as selector:
            folder = Path(made)

            def start_worker(first: int, last: int) -> None:
                if first < last:
                    worker = Worker(self.child, self.number, first, last, folder)
                    selector.register(worker.output, selectors.EVENT_READ, worker)

            for first, last in itertools.pairwise(edges):
                start_worker(first, last)
            reported = time.monotonic()
            while selector.get_map():
                late = time.monotonic() > self.deadline or len(self.faults) >= MAX_FAULTS
                ready = {key.data for key, _ in selector.select(timeout=1)}
                for worker in [key.data for key in selector.get_map().values()]:
                    line = worker.output.readline() if worker in ready else b""
                    if line:
                        self.take(worker, json.loads(line))
                    if late or (worker in ready and not line) or worker.is_stuck(self.hang_seconds):
                        selector.unregister(worker.output)
                        self.finish(worker, late=late, stuck=worker not in ready)
                        if not late:
                            start_worker(worker.next + 1, worker.last)
                if time.monotonic() - reported > 10:
                    reported = time.monotonic()
                    seconds = reported - self.started
                    say(f"{self.inputs} inputs in {seconds:.0f} s, {len(self.faults)} faults")

    def take(self, worker: Worker, result: dict[str, Any]) -> None:
        worker.next = result["batch"] + 1
        worker.memory.append(result["rss"])
        self.outcomes.update(result["outcomes"])
        self.noise.update(result["noise"])
        self.max_noise = max(self.max_noise, result["max_noise"])
        self.slowest = max(self.slowest, result["slowest"])
        for fault in result["faults"]:
            self.keep(fault["known"], fault["why"], bytes.fromhex(fault["body"]))

    def finish(self, worker: Worker, *, late: bool, stuck: bool) -> None:
        """End a worker, and keep its last input if it did not finish normally."""
        _, known, body = worker.read_current()
        errors = ""
        if worker.next < worker.last and not late:
            worker.errors.seek(0)
            errors = worker.errors.read()[-2000:].decode(errors="replace")
        if not stuck:
            worker.process.wait(timeout=60)
        code = worker.end()
        if worker.next < worker.last and not late:
            self.keep(known, "it hung" if stuck else f"the process ended with {code}\n{errors}", body)
        if len(worker.memory) > WARM_UP_BATCHES:
            before, after = worker.memory[WARM_UP_BATCHES], worker.memory[-1]
            self.memory.append((before, after))
            if after - before > GROWTH_BYTES:
                self.keep("", f"memory grew from {before >> 20} to {after >> 20} MB", b"")

    def keep(self, known: str, why: str, body: bytes) -> None:
        """Save a failing input and a text file with the reason."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.number}-{len(self.faults):03}"
        path.write_bytes(body)
        path.with_suffix(".txt").write_text(f"{known}\n{why}\n")
        self.faults.append(str(path))
        say(f"FAULT {path}: {known}: {why.strip().splitlines()[-1]}")

    def summary(self) -> str:
        """Return the results as a table."""
        seconds = time.monotonic() - self.started
        accepted = sum(count for name, count in self.outcomes.items() if name.endswith(" accepted"))
        levels = (
            ", ".join(f"{before >> 20} to {after >> 20} MB" for before, after in self.memory) or "unknown"
        )
        lines = [
            f"seed {self.number}: {self.inputs} inputs in {seconds:.0f} s",
            f"  accepted {accepted}, rejected {self.inputs - accepted}, faults {len(self.faults)}",
            f"  slowest {self.slowest * 1000:.0f} ms of CPU time",
            f"  memory of each process after {WARM_UP_BATCHES * BATCH} inputs and at the end: {levels}",
            f"  lines on standard error {sum(self.noise.values())}, {self.max_noise} at most by one image",
            *(f"    {count:7} {words} ..." for words, count in self.noise.most_common(8)),
            *(f"  {count:7} {name}" for name, count in sorted(self.outcomes.items())),
        ]
        return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
