"""What a serving process tells of itself: Prometheus text, and CloudWatch's embedded metric lines."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

#: Prometheus's own variable: the folder in which several processes count together.
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
#: Its files of a process, by the kinds of metrics below, and the bytes that it gives each.
_SHARED_FILES = ("counter_{}.db", "histogram_{}.db", "gauge_livesum_{}.db")
_SHARED_BYTES = 1 << 16
#: Seconds, from a row of numbers to what the platform lets a request take.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
#: CloudWatch takes so many values of a metric in one line.
EMF_VALUES = 100


def forget_process(pid: int) -> None:
    """Take off what a process that ended had in progress; what it counted stays."""
    with suppress(KeyError, OSError):
        Path(os.environ[SHARED_FOLDER], _SHARED_FILES[-1].format(pid)).unlink()


def _reserve_files() -> None:
    """Take the room for this process's shared files; without it, count alone.

    The client would map files with holes, and a hole that finds the disk full ends the process.
    """
    if SHARED_FOLDER not in os.environ:
        return
    folder = Path(os.environ[SHARED_FOLDER])
    try:
        for name in _SHARED_FILES:
            with (folder / name.format(os.getpid())).open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, _SHARED_BYTES)
    except OSError as error:
        logger.warning("/metrics shows each process alone: %s", error)
        for name in _SHARED_FILES:
            (folder / name.format(os.getpid())).unlink(missing_ok=True)
        del os.environ[SHARED_FOLDER]


class Monitor:
    """Counts requests and times their stages; threads may share it.

    It shows what it saw to Prometheus on request, and to CloudWatch as a line on standard output every
    `emf_seconds`, if that is not 0: those lines need no network and no agent.
    """

    def __init__(self, device: str, emf_seconds: float = 0) -> None:
        _reserve_files()
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram  # noqa: PLC0415

        self._device = device
        #: how many rows wait for the model; the service that is watched sets it
        self.count_queued: Callable[[], int] = int
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "tandem_requests", "Requests to /invocations, by status.", ["status"], registry=registry
        )
        self._seconds = Histogram(
            "tandem_stage_seconds",
            "Seconds of a request by stage.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self._rows = Histogram("tandem_batch_rows", "Rows of a batch.", buckets=ROWS, registry=registry)
        live: dict[str, Any] = {"registry": registry, "multiprocess_mode": "livesum"}
        self._in_flight = Gauge("tandem_in_flight", "Requests in progress.", **live)
        self._queued = Gauge(
            "tandem_queued_rows", "Rows and unread requests that wait for the model.", **live
        )
        devices = Gauge("tandem_device", "Processes by the device they compute on.", ["device"], **live)
        devices.labels(device).set(1)
        self._children: dict[str, Any] = {"rows": self._rows}
        self._tally: Tally[str] = Tally()
        self._milliseconds: deque[float] = deque(maxlen=EMF_VALUES)
        if emf_seconds:
            threading.Thread(target=self._emit, args=(emf_seconds,), name="emf", daemon=True).start()

    def observe(self, what: str, value: float) -> None:
        """Note the `rows` of a batch, or the seconds of a stage: read, queue, predict or write."""
        child = self._children.get(what)
        if child is None:
            child = self._children[what] = self._seconds.labels(what)
        child.observe(value)

    def begin(self) -> float:
        """Note that a request has come; give what `finish` wants."""
        self._in_flight.inc()
        return time.monotonic()

    def finish(self, status: int, begun: float) -> None:
        """Note that a request which had `begun` is answered."""
        seconds = time.monotonic() - begun
        self._in_flight.dec()
        self._requests.labels(status).inc()
        self.observe("total", seconds)
        self._tally[str(status)[0]] += 1
        self._milliseconds.append(round(seconds * 1000, 3))

    def render(self) -> tuple[bytes, str]:
        """Give Prometheus's text and its media type, of all processes that serve here."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest  # noqa: PLC0415
        from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

        self._queued.set(self.count_queued())
        registry = self._registry
        if SHARED_FOLDER in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def render_emf(self) -> str:
        """Give what happened since the last call as one line in CloudWatch's embedded metric format."""
        tally, self._tally = self._tally, Tally()
        milliseconds = [self._milliseconds.popleft() for _ in range(len(self._milliseconds))]
        values: dict[str, tuple[str, Any]] = {
            "Requests": ("Count", sum(tally.values())),
            "ClientErrors": ("Count", tally["4"]),
            "ServerErrors": ("Count", tally["5"]),
            "QueuedRows": ("Count", self.count_queued()),
        }
        if milliseconds:
            values["Latency"] = ("Milliseconds", milliseconds)
        metrics = [{"Name": name, "Unit": unit} for name, (unit, _) in values.items()]
        directive = {"Namespace": "Tandem", "Dimensions": [["Device"]], "Metrics": metrics}
        # CloudWatch wants the time of day; nothing here is measured with it.
        head = {"Timestamp": int(time.time() * 1000), "CloudWatchMetrics": [directive]}
        return json.dumps(
            {"_aws": head, "Device": self._device, **{name: value for name, (_, value) in values.items()}}
        )

    def _emit(self, seconds: float) -> None:
        pause = threading.Event()
        while not pause.wait(seconds):
            logger.info("%s", self.render_emf())
