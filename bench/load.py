"""The load generator: a closed loop of callers on kept connections to this machine, in a process of its own.

`python -S load.py '{"port": 8080, "request": "file with the whole request", …}'` prints its report as JSON.
One epoll loop and requests made beforehand: it must not take the cores from the server it measures.
"""

from __future__ import annotations

import gc
import json
import re
import resource
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

MOST_CALLERS = 1024
MOST_SECONDS = 120.0
CONNECT_SECONDS = 5.0
PIECE = 1 << 16
OK = 200

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


@dataclass(frozen=True)
class Plan:
    """How to load: warm up, measure for `seconds`, then wait at most `patience` for the last answers.

    The warm-up takes `warm_up` seconds and until there are as many answers as callers, at most `patience`:
    before that, the callers at the end of a long queue would not be in the figures.
    """

    port: int
    request: str
    callers: int
    seconds: float
    warm_up: float = 0.5
    patience: float = 30.0

    def __post_init__(self) -> None:
        if not 1 <= self.callers <= MOST_CALLERS:
            raise ValueError(f"{self.callers} callers; expected 1 to {MOST_CALLERS}")
        if not 0 < self.warm_up + self.seconds + 2 * self.patience <= MOST_SECONDS:
            raise ValueError(f"warm-up, seconds and twice the patience may be {MOST_SECONDS:.0f} s together")


@dataclass
class Report:
    """What happened: `latencies` in microseconds are those of answers with 200 inside the measured time.

    `answered` and `errors` count the whole run, so that the server's work can be divided by them; `share` is
    the part of one core that the generator used itself.
    """

    seconds: float
    latencies: list[int] = field(default_factory=list)
    answered: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    reconnects: int = 0
    share: float = 0.0
    body: str = ""


class _Caller:
    """One connection, and how far its request and its answer have come."""

    __slots__ = ("closes", "received", "rest", "socket", "started", "wanted")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), CONNECT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(0)
        self.rest = memoryview(b"")
        self.received = b""
        self.wanted = 0
        self.closes = False
        self.started = 0


class Generator:
    """Runs one plan; `run` gives its report."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._request = memoryview(Path(plan.request).read_bytes())
        self._poll = select.epoll()
        self._callers: dict[int, _Caller] = {}
        self._report = Report(plan.seconds)
        self._measured = (0.0, 0.0)  # monotonic nanoseconds
        self._sending = True

    def run(self) -> Report:
        """Load the server until the plan's time is over and its last answers are in."""
        plan, report = self._plan, self._report
        began, cpu = time.monotonic(), time.process_time()
        for _ in range(plan.callers):
            self._connect()
        self._turn_until(began + plan.warm_up)
        self._turn_until(
            began + plan.warm_up + plan.patience,
            lambda: report.answered + sum(report.errors.values()) >= plan.callers,
        )
        start = time.monotonic()
        self._measured = (start * 1e9, (start + plan.seconds) * 1e9)
        self._turn_until(start + plan.seconds)
        self._sending = False
        self._drop_idle()
        self._turn_until(start + plan.seconds + plan.patience)
        for caller in list(self._callers.values()):
            self._fail(caller, "no answer")
        self._poll.close()
        self._report.share = (time.process_time() - cpu) / (time.monotonic() - began)
        return self._report

    def _turn_until(self, end: float, reached: Callable[[], bool] = lambda: False) -> None:
        while self._callers and not reached() and (left := end - time.monotonic()) > 0:
            self._turn(left)

    def _turn(self, seconds: float) -> None:
        for number, events in self._poll.poll(seconds):
            caller = self._callers.get(number)
            if caller is None:
                continue
            try:
                if events & select.EPOLLOUT:
                    self._send(caller)
                if events & ~select.EPOLLOUT:
                    self._receive(caller)
            except OSError as error:
                self._fail(caller, type(error).__name__)

    def _connect(self) -> None:
        try:
            caller = _Caller(self._plan.port)
        except OSError as error:
            self._report.errors[f"connecting: {type(error).__name__}"] += 1
            return
        self._callers[caller.socket.fileno()] = caller
        self._poll.register(caller.socket, select.EPOLLIN)
        try:
            self._begin(caller)
        except OSError as error:
            self._fail(caller, type(error).__name__)

    def _begin(self, caller: _Caller) -> None:
        caller.rest = self._request
        caller.started = time.monotonic_ns()
        self._send(caller)

    def _send(self, caller: _Caller) -> None:
        try:
            caller.rest = caller.rest[caller.socket.send(caller.rest) :]
        except BlockingIOError:
            pass
        waits = select.EPOLLIN | select.EPOLLOUT if caller.rest else select.EPOLLIN
        self._poll.modify(caller.socket, waits)

    def _receive(self, caller: _Caller) -> None:
        try:
            piece = caller.socket.recv(PIECE)
        except BlockingIOError:
            return
        if not piece:
            self._fail(caller, "closed before the answer")
            return
        caller.received += piece
        if not caller.wanted and not self._read_head(caller):
            return
        if len(caller.received) >= caller.wanted:
            self._finish(caller)

    def _read_head(self, caller: _Caller) -> bool:
        """Find how long the answer is; false while its head is not whole, or was no good."""
        end = caller.received.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = caller.received[: end + 2]
        length = _LENGTH.search(head)
        if length is None:
            self._fail(caller, "no Content-Length")
            return False
        caller.wanted = end + 4 + int(length[1])
        caller.closes = bool(caller.rest) or _CLOSES.search(head) is not None
        return True

    def _finish(self, caller: _Caller) -> None:
        now = time.monotonic_ns()
        status = int(caller.received[9:12])
        if status == OK:
            self._report.answered += 1
            if self._measured[0] <= now < self._measured[1]:
                self._report.latencies.append((now - caller.started) // 1000)
            if not self._report.body:
                head = caller.received.find(b"\r\n\r\n")
                self._report.body = caller.received[head + 4 : caller.wanted].decode("latin-1")
        else:
            self._report.errors[f"status {status}"] += 1
        caller.received, caller.wanted = b"", 0
        if caller.closes or not self._sending:
            self._drop(caller)
            if self._sending:
                self._report.reconnects += 1
                self._connect()
        else:
            self._begin(caller)

    def _fail(self, caller: _Caller, reason: str) -> None:
        self._report.errors[reason] += 1
        self._drop(caller)
        if self._sending:
            self._connect()

    def _drop(self, caller: _Caller) -> None:
        del self._callers[caller.socket.fileno()]
        caller.socket.close()  # which takes it off the poll

    def _drop_idle(self) -> None:
        """Leave callers whose request has not been sent whole: nobody has begun to compute it."""
        for caller in [caller for caller in self._callers.values() if caller.rest]:
            self._drop(caller)


def main(arguments: list[str]) -> None:
    """Run the plan given as JSON and print the report as JSON."""
    gc.disable()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, 4 * MOST_CALLERS), limit))
    report = Generator(Plan(**json.loads(arguments[0]))).run()
    json.dump(vars(report), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
