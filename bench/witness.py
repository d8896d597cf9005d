"""What callers of a server live through: every request's fate, and what /ping said meanwhile."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

#: Seconds that a caller waits for an answer, and that the platform waits for health.
ANSWER_SECONDS = 90
PING_SECONDS = 2
PAUSE = 0.05
#: Engines sum in different orders: so much may a probability differ.
SAME = 1e-3
#: Rates are counted over so many seconds; so much of the rate before is "full" (machines are shared).
WINDOW = 1.0
FULL = 0.7


@dataclass
class Account:
    """What was seen: a count by fate, the moments of answers with 200, and /ping's status by moment.

    Fates: `200`, `wrong` (200 with another answer), `lost` (sent, and no answer came), `unreachable`
    (nothing could be sent), or another status.
    """

    fates: Counter[str] = field(default_factory=Counter)
    answered: list[float] = field(default_factory=list)
    pings: list[tuple[float, int | None]] = field(default_factory=list)

    @property
    def sent(self) -> int:
        """How many requests went out."""
        return self.fates.total() - self.fates["unreachable"]

    def seconds_until_full(self, moment: float) -> float | None:
        """Tell how long after `moment` answers came again as fast as before; None if they never did."""
        before = sum(1 for at in self.answered if moment - 2 * WINDOW <= at < moment) / 2
        later = sorted(at for at in self.answered if at >= moment)
        for start in [moment, *later]:
            if sum(1 for at in later if start <= at < start + WINDOW) >= FULL * before:
                return start - moment
        return None

    def describe_health(self) -> str:
        """Tell what /ping said, in order, with the seconds of all but 200."""
        parts = []
        pings = sorted(self.pings, key=lambda ping: ping[0])
        ends = [at for at, _ in pings[1:]] + [pings[-1][0]] if pings else []
        for status, group in groupby(zip(pings, ends, strict=True), key=lambda pair: pair[0][1]):
            listed = list(group)
            seconds = listed[-1][1] - listed[0][0][0]
            parts.append("200" if status == 200 else f"{status or 'no answer'} for {seconds:.1f} s")
        return ", ".join(parts) or "never asked"


class Witness:
    """Callers in a closed loop on kept connections, and one that asks for health: `with Witness(…):`."""

    def __init__(self, port: int, body: bytes, content_type: str, callers: int) -> None:
        self.account = Account()
        self._port = port
        self._body = body
        self._headers = {"Content-Type": content_type, "Accept": "application/json"}
        self._expected: Any = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._call, daemon=True) for _ in range(callers)]
        self._threads.append(threading.Thread(target=self._ping, daemon=True))

    def __enter__(self) -> Witness:  # noqa: PYI034  # Self came with Python 3.11
        """Learn the right answer, then begin."""
        with closing(self._connect(ANSWER_SECONDS)) as connection:
            status, text = self._ask(connection)
        if status != 200:
            raise RuntimeError(f"the first request was answered with {status}: {text[:300]!r}")
        self._expected = _read_answer(text)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Send nothing more, and wait for what is under way."""
        self._ended.set()
        for thread in self._threads:
            thread.join(ANSWER_SECONDS)

    def watch(self, seconds: float) -> None:
        """Let it go on for so long."""
        self._ended.wait(seconds)

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout)

    def _ask(self, connection: http.client.HTTPConnection) -> tuple[int, bytes]:
        connection.request("POST", "/invocations", self._body, self._headers)
        response = connection.getresponse()
        return response.status, response.read()

    def _call(self) -> None:
        connection = self._connect(ANSWER_SECONDS)
        with closing(connection):
            while not self._ended.is_set():
                fate = self._find_fate(connection)
                with self._lock:
                    self.account.fates[fate] += 1
                    if fate == "200":
                        self.account.answered.append(time.monotonic())
                if fate != "200":
                    self._ended.wait(PAUSE)

    def _find_fate(self, connection: http.client.HTTPConnection) -> str:
        try:
            if connection.sock is None:
                connection.connect()
        except OSError:
            return "unreachable"
        try:
            status, text = self._ask(connection)
        except (OSError, http.client.HTTPException):
            connection.close()
            return "lost"
        if status != 200:
            return str(status)
        return "200" if is_same(_read_answer(text), self._expected) else "wrong"

    def _ping(self) -> None:
        while not self._ended.is_set():
            began = time.monotonic()
            status = None
            with closing(self._connect(PING_SECONDS)) as connection:
                try:
                    connection.request("GET", "/ping")
                    status = connection.getresponse().status
                except (OSError, http.client.HTTPException):
                    pass
            self.account.pings.append((began, status))
            self._ended.wait(PAUSE)


def is_same(answer: Sequence[tuple[str, float]], expected: Sequence[tuple[str, float]]) -> bool:
    """Tell whether two answers name the same best label, with nearly the same probability."""
    (label, probability), (other_label, other) = answer[0], expected[0]
    return label == other_label and abs(probability - other) <= SAME


def _read_answer(text: bytes) -> list[tuple[str, float]]:
    return [(row["label"], row["probability"]) for row in json.loads(text)["predictions"]]
