"""`make fuzz`: throw inputs at the decoders in processes of their own, and tell what became of them."""

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
HANG_SECONDS = 30.0  # of the wall's clock, far above what a slow input takes on a busy machine
GROWTH_BYTES = 64 << 20
MOST_FAULTS = 50


def main() -> int:
    """Give 0 if all inputs were read or refused, none took too long, and memory stayed level."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=250_000, help="how many (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1200, help="give up after so long (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()) & 0xFFFF, help="for the same inputs again"
    )
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (%(default)s)"
    )
    parser.add_argument(
        "--faults", type=Path, default=Path("fuzz-faults"), help="folder for bad inputs (%(default)s)"
    )
    options = parser.parse_args()
    run = Run(options.seed, options.seconds, options.faults)
    run.go(-(-options.inputs // BATCH), options.jobs)
    say(run.summary())
    return 1 if run.faults or run.inputs < options.inputs else 0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Worker:
    """A child process with its share of the batches."""

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
        """Give how many inputs were begun, and the last of them."""
        if not self.current.exists() or self.current.stat().st_size < CURRENT_BYTES:
            return 0, "", b""
        with self.current.open("rb") as file:
            begun, length, known = HEAD.unpack(file.read(HEAD.size))
            return begun, file.read(known).decode(), file.read(length)

    def is_stuck(self, seconds: float) -> bool:
        """Whether the same input has been in hand for longer than that."""
        begun = self.read_current()[0]
        if begun != self.begun:
            self.begun, self.seen = begun, time.monotonic()
        return time.monotonic() - self.seen > seconds

    def end(self) -> int:
        self.process.kill()
        code = self.process.wait()
        self.output.close()
        self.errors.close()
        return code


class Run:
    """All workers, and the sum of what they tell."""

    def __init__(self, number: int, seconds: float, folder: Path, child: str = "fuzz.child") -> None:
        self.number, self.folder, self.child = number, folder, child
        self.hang_seconds = HANG_SECONDS
        self.started = time.monotonic()
        self.deadline = self.started + seconds
        self.outcomes: Counter[str] = Counter()
        self.noise: Counter[str] = Counter()
        self.most_noise = 0
        self.slowest = 0.0
        self.faults: list[str] = []
        self.memory: list[tuple[int, int]] = []

    @property
    def inputs(self) -> int:
        return sum(self.outcomes.values())

    def go(self, batches: int, jobs: int) -> None:
        """Run batches 0 to `batches`; a worker that dies is followed by one that leaves its batch out."""
        edges = [batches * job // jobs for job in range(jobs + 1)]
        with tempfile.TemporaryDirectory() as made, selectors.DefaultSelector() as selector:
            folder = Path(made)

            def start(first: int, last: int) -> None:
                if first < last:
                    worker = Worker(self.child, self.number, first, last, folder)
                    selector.register(worker.output, selectors.EVENT_READ, worker)

            for first, last in itertools.pairwise(edges):
                start(first, last)
            told = time.monotonic()
            while selector.get_map():
                late = time.monotonic() > self.deadline or len(self.faults) >= MOST_FAULTS
                ready = {key.data for key, _ in selector.select(timeout=1)}
                for worker in [key.data for key in selector.get_map().values()]:
                    line = worker.output.readline() if worker in ready else b""
                    if line:
                        self.take(worker, json.loads(line))
                    if late or (worker in ready and not line) or worker.is_stuck(self.hang_seconds):
                        selector.unregister(worker.output)
                        self.finish(worker, late=late, stuck=worker not in ready)
                        if not late:
                            start(worker.next + 1, worker.last)
                if time.monotonic() - told > 10:
                    told = time.monotonic()
                    seconds = told - self.started
                    say(f"{self.inputs} inputs in {seconds:.0f} s, {len(self.faults)} faults")

    def take(self, worker: Worker, told: dict[str, Any]) -> None:
        worker.next = told["batch"] + 1
        worker.memory.append(told["rss"])
        self.outcomes.update(told["outcomes"])
        self.noise.update(told["noise"])
        self.most_noise = max(self.most_noise, told["most_noise"])
        self.slowest = max(self.slowest, told["slowest"])
        for fault in told["faults"]:
            self.keep(fault["known"], fault["why"], bytes.fromhex(fault["body"]))

    def finish(self, worker: Worker, *, late: bool, stuck: bool) -> None:
        """End a worker, and keep its last input if it did not finish by itself."""
        _, known, body = worker.read_current()
        said = ""
        if worker.next < worker.last and not late:
            worker.errors.seek(0)
            said = worker.errors.read()[-2000:].decode(errors="replace")
        if not stuck:
            worker.process.wait(timeout=60)
        code = worker.end()
        if worker.next < worker.last and not late:
            self.keep(known, "it hung" if stuck else f"the process ended with {code}\n{said}", body)
        if len(worker.memory) > WARM_UP_BATCHES:
            before, after = worker.memory[WARM_UP_BATCHES], worker.memory[-1]
            self.memory.append((before, after))
            if after - before > GROWTH_BYTES:
                self.keep("", f"memory grew from {before >> 20} to {after >> 20} MB", b"")

    def keep(self, known: str, why: str, body: bytes) -> None:
        """Keep an input that failed, with the reason beside it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.number}-{len(self.faults):03}"
        path.write_bytes(body)
        path.with_suffix(".txt").write_text(f"{known}\n{why}\n")
        self.faults.append(str(path))
        say(f"FAULT {path}: {known}: {why.strip().splitlines()[-1]}")

    def summary(self) -> str:
        """Give the result as a table."""
        seconds = time.monotonic() - self.started
        accepted = sum(count for name, count in self.outcomes.items() if name.endswith(" accepted"))
        levels = (
            ", ".join(f"{before >> 20} to {after >> 20} MB" for before, after in self.memory) or "not known"
        )
        lines = [
            f"seed {self.number}: {self.inputs} inputs in {seconds:.0f} s",
            f"  accepted {accepted}, refused {self.inputs - accepted}, faults {len(self.faults)}",
            f"  slowest {self.slowest * 1000:.0f} ms of the processor",
            f"  memory of each process after {WARM_UP_BATCHES * BATCH} inputs and at the end: {levels}",
            f"  lines on standard error {sum(self.noise.values())}, {self.most_noise} by one picture at most",
            *(f"    {count:7} {words} ..." for words, count in self.noise.most_common(8)),
            *(f"  {count:7} {name}" for name, count in sorted(self.outcomes.items())),
        ]
        return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
