"""The servers that are measured: how each is started, asked, loaded and stopped."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import processes
from bench.figures import Record, compare_answers, percentile, read_answer
from bench.samples import ROOT, Workload

LOAD = Path(__file__).resolve().with_name("load.py")
START_SECONDS = 120
STOP_SECONDS = 30
ANSWER_SECONDS = 90
POLL_SECONDS = 0.01
#: The largest difference of a probability between two answers of one server: the order of sums varies.
SAME = 1e-3


class BenchError(Exception):
    """The benchmark cannot continue; the message says why."""


@dataclass(frozen=True)
class Contender:
    """A way to serve: its name in the tables, the command, and the environment.

    `{port}`, `{root}` (the workload's folder), `{model}`, `{run}` and `{algorithm}` in a value are replaced.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def make_ours(label: str, **environment: str) -> Contender:
    """Return our own `serve` with the given settings."""
    return Contender(
        f"ours, {label}",
        (sys.executable, str(ROOT / "program" / "serve")),
        {
            "PYTHONPATH": str(ROOT),
            "ALGORITHM": "{algorithm}",
            "SAGEMAKER_BASE_DIR": "{root}",
            "SAGEMAKER_BIND_TO_PORT": "{port}",
            "SAGEMAKER_CONTAINER_LOG_LEVEL": "20",
            **environment,
        },
    )


def make_naive(python: Path) -> Contender:
    """Return the tutorials' stack; its name says if nginx is missing."""
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return Contender(
        "naive" if nginx else "naive, no nginx",
        (str(python), str(ROOT / "bench" / "naive" / "serve.py")),
        {"MODEL_DIR": "{model}", "PORT": "{port}", "RUN_DIR": "{run}"},
    )


class Server:
    """A running contender with a workload; on entry of the block /ping has answered 200."""

    def __init__(self, contender: Contender, workload: Workload, samples: Path, logs: Path) -> None:
        self.contender = contender
        self.workload = workload
        self.ready_seconds = 0.0
        self.answer: dict[str, float] = {}
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self.run = Path(tempfile.mkdtemp(prefix="bench-"))
        logs.mkdir(exist_ok=True)
        self.log = logs / f"{workload.name}-{contender.name.replace(', ', '-').replace(' ', '-')}.log"
        root = samples / workload.name
        self._body = (root / workload.body).read_bytes()
        values = {"port": self.port, "root": root, "model": root / "model", "run": self.run}
        values["algorithm"] = workload.algorithm
        settings = {name: text.format(**values) for name, text in contender.environment.items()}
        self._environment = {**os.environ, "HOME": str(self.run), **settings}
        self.request = (
            f"POST /invocations HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAccept: application/json\r\n"
            f"Content-Type: {workload.content_type}\r\nContent-Length: {len(self._body)}\r\n\r\n"
        ).encode() + self._body
        (self.run / "request").write_bytes(self.request)

    def __enter__(self) -> Server:  # noqa: PYI034  # Self came with Python 3.11
        """Start the server, wait for its health, and keep its first answer."""
        with self.log.open("wb") as log:
            started = time.monotonic()
            self._process = subprocess.Popen(
                self.contender.command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            while self.ping(START_SECONDS) != 200:
                if self._process.poll() is not None or time.monotonic() > started + START_SECONDS:
                    raise BenchError(f"{self.contender.name} did not become ready; see {self.log}")
                time.sleep(POLL_SECONDS)  # a server does not report that it is ready
            self.ready_seconds = time.monotonic() - started
            self.answer = read_answer(self.ask())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server, with SIGKILL if SIGTERM takes too long."""
        self._stop()

    @property
    def pid(self) -> int:
        """The process that was started."""
        return self._process.pid

    def wait(self, seconds: float) -> int | None:
        """Return the exit status, negative for a signal, or None if it still runs after `seconds`."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def ping(self, timeout: float) -> int | None:
        """Return the status of /ping, or None without an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/ping")
                return connection.getresponse().status
            except (OSError, http.client.HTTPException):
                return None

    def ask(self) -> Any:
        """Return one answer's document; raise `BenchError` for any status but 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        with contextlib.closing(connection):
            headers = {"Content-Type": self.workload.content_type, "Accept": "application/json"}
            connection.request("POST", "/invocations", self._body, headers)
            response = connection.getresponse()
            text = response.read()
            if response.status != 200:
                raise BenchError(f"{self.contender.name} answered {response.status}: {text[:300]!r}")
            return json.loads(text)

    def count_wrong(self, bodies: Mapping[str, int]) -> int:
        """Return how many answers differ from the first one."""
        return sum(count for body, count in bodies.items() if not self._is_right(body))

    def load(self, callers: int, seconds: float, warm_up: float = 0.0) -> Record:
        """Load the server, check every answer, and return the figures.

        They are requests/s, latencies in ms, errors by kind, CPU ms per request, MB, and the generator's
        share of a core.
        """
        plan = {
            "port": self.port,
            "request": str(self.run / "request"),
            "callers": callers,
            "seconds": seconds,
            "warm_up": warm_up,
        }
        before = processes.measure_tree(self.pid)
        done = subprocess.run(
            [sys.executable, str(LOAD), json.dumps(plan)],
            stdout=subprocess.PIPE,
            check=True,
            timeout=seconds + warm_up + 2 * ANSWER_SECONDS,
        )
        after = processes.measure_tree(self.pid)
        report = json.loads(done.stdout)
        wrong = self.count_wrong(report["bodies"])
        errors = {**report["errors"], **({"wrong answer": wrong} if wrong else {})}
        latencies = [ms for at, ms in report["answers"] if report["start"] <= at < report["end"]]
        return {
            "rate": len(latencies) / seconds,
            "p50": percentile(latencies, 0.5),
            "p99": percentile(latencies, 0.99),
            "answered": len(report["answers"]),
            "errors": errors,
            "cpu": 1000 * (after.cpu - before.cpu) / max(1, len(report["answers"])),
            "pss": after.pss,
            "rss": after.rss,
            "generator": report["share"],
        }

    def _is_right(self, body: str) -> bool:
        try:
            return (
                compare_answers({"first": self.answer, "this": read_answer(json.loads(body))})["this"] <= SAME
            )
        except (ValueError, LookupError, TypeError, AttributeError):
            return False

    def _stop(self) -> None:
        self._process.terminate()
        if self.wait(STOP_SECONDS) is None:
            print(f"{self.contender.name} did not stop and is killed", file=sys.stderr)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(STOP_SECONDS)
        shutil.rmtree(self.run, ignore_errors=True)
