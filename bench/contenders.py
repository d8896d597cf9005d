"""Who is measured: the servers, how each is started, and how it is asked."""

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
from types import TracebackType
from typing import Any

from bench import processes
from bench.samples import ROOT, Workload

LOAD = Path(__file__).resolve().with_name("load.py")
START_SECONDS = 120
STOP_SECONDS = 30
ANSWER_SECONDS = 60
POLL_SECONDS = 0.01


class BenchError(Exception):
    """The benchmark cannot go on; the message says why."""


@dataclass(frozen=True)
class Contender:
    """A way to serve: its name in the tables, what is executed, and with which environment.

    `{port}`, `{root}` (the workload's folder), `{model}`, `{run}` and `{algorithm}` in a value are filled in.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def make_ours(label: str, **environment: str) -> Contender:
    """Give our own `serve`, with settings of ours."""
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
    """Give the tutorials' stack, which says in its name if there is no nginx to put in front."""
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return Contender(
        "naive" if nginx else "naive, no nginx",
        (str(python), str(ROOT / "bench" / "naive" / "serve.py")),
        {"MODEL_DIR": "{model}", "PORT": "{port}", "RUN_DIR": "{run}"},
    )


class Server:
    """A contender that runs with a workload, ready when the block is entered: `with Server(…) as server:`."""

    def __init__(self, contender: Contender, workload: Workload, samples: Path, logs: Path) -> None:
        self.contender = contender
        self.workload = workload
        self.ready_seconds = 0.0
        self.port = _find_free_port()
        self.run = Path(tempfile.mkdtemp(prefix="bench-"))
        self._body = workload.read_body(samples)
        self.log = logs / f"{workload.name}-{contender.name.replace(', ', '-').replace(' ', '-')}.log"
        root = samples / workload.name
        places = {"port": self.port, "root": root, "model": root / "model", "run": self.run}
        places["algorithm"] = workload.algorithm
        values = {name: text.format(**places) for name, text in contender.environment.items()}
        self._environment = {**os.environ, "HOME": str(self.run), **values}
        self._request = self.run / "request"
        self._request.write_bytes(
            f"POST /invocations HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAccept: application/json\r\n"
            f"Content-Type: {workload.content_type}\r\nContent-Length: {len(self._body)}\r\n\r\n".encode()
            + self._body
        )

    def __enter__(self) -> Server:  # noqa: PYI034  # Self came with Python 3.11
        """Start, and wait for /ping to answer 200."""
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
            while self._ask_ping() != 200:
                if self._process.poll() is not None or time.monotonic() > started + START_SECONDS:
                    raise BenchError(f"{self.contender.name} did not become ready; see {self.log}")
                time.sleep(POLL_SECONDS)  # a server says nothing when it becomes ready; it has to be asked
        except BaseException:
            self._stop()
            raise
        self.ready_seconds = time.monotonic() - started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it, with force if it takes too long."""
        self._stop()

    @property
    def pid(self) -> int:
        """The process that was started; its children are named by `/proc`."""
        return self._process.pid

    def signal(self, number: int) -> None:
        """Send the process that was started a signal."""
        self._process.send_signal(number)

    def wait(self, seconds: float) -> int | None:
        """Give the exit status, negative for a signal; None while it runs after `seconds`."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def ask(self) -> Any:
        """Give one answer's document; raises `BenchError` for anything but 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        with contextlib.closing(connection):
            headers = {"Content-Type": self.workload.content_type, "Accept": "application/json"}
            connection.request("POST", "/invocations", self._body, headers)
            response = connection.getresponse()
            text = response.read()
            if response.status != 200:
                raise BenchError(f"{self.contender.name} answered {response.status}: {text[:300]!r}")
            return json.loads(text)

    def load(self, callers: int, seconds: float, warm_up: float) -> dict[str, Any]:
        """Load it, and give the generator's report with the process tree's CPU seconds and memory."""
        plan = {
            "port": self.port,
            "request": str(self._request),
            "callers": callers,
            "seconds": seconds,
            "warm_up": warm_up,
        }
        before = processes.measure_tree(self._process.pid)
        done = subprocess.run(
            [sys.executable, "-S", "-E", str(LOAD), json.dumps(plan)],
            stdout=subprocess.PIPE,
            check=True,
            timeout=seconds + warm_up + ANSWER_SECONDS,
        )
        after = processes.measure_tree(self._process.pid)
        report: dict[str, Any] = json.loads(done.stdout)
        cpu = (after.cpu - before.cpu) / max(1, report["answered"])
        return {**report, "cpu": cpu, "pss": after.pss, "rss": after.rss}

    def _ask_ping(self) -> int | None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_SECONDS)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/ping")
                return connection.getresponse().status
            except (OSError, http.client.HTTPException):
                return None

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"{self.contender.name} did not stop; it is killed", file=sys.stderr)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(STOP_SECONDS)
        shutil.rmtree(self.run, ignore_errors=True)


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
