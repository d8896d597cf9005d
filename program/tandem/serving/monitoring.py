"""Metrics of a serving process, for Prometheus and in CloudWatch's embedded metric format."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import Counter as Counts
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

#: Prometheus's own variable: the folder in which several processes count together.
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
#: Bytes that a process's files in that folder take, rounded up.
SHARED_BYTES = 1 << 18
#: Seconds, from a row of numbers to what the platform lets a request take.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
#: CloudWatch takes so many values of a metric in one line.
EMF_VALUES = 100


def _check_shared_folder() -> None:
    """Count alone where the shared folder has no space: a write to a mapped file would end the process."""
    if SHARED_FOLDER not in os.environ:
        return
    space = os.statvfs(os.environ[SHARED_FOLDER])
    if space.f_bavail * space.f_frsize < SHARED_BYTES:
        logger.warning("/metrics shows each process alone: %s is full", os.environ.pop(SHARED_FOLDER))


def _allocate_shared_files() -> None:
    """Take the space of the shared files, which are sparse, so that a disk that fills up changes nothing."""
    if SHARED_FOLDER not in os.environ:
        return
    for path in Path(os.environ[SHARED_FOLDER]).iterdir():
        with suppress(OSError), path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


class Monitor:
    """Counts requests and times their stages; threads may share it.

    It renders them for Prometheus on request. If `emf_seconds` is not 0, it also logs a line for CloudWatch
    that often, which needs no network and no agent. What the processes `ended` had in progress is dropped;
    what they counted stays.
    """

    def __init__(self, device: str, emf_seconds: float = 0, ended: Iterable[int] = ()) -> None:
        _check_shared_folder()
        # Whether several processes count together is decided when this is first imported.
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram  # noqa: PLC0415
        from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415

        if SHARED_FOLDER in os.environ:
            for pid in ended:
                mark_process_dead(pid)  # type: ignore[no-untyped-call]
        self._device = device
        #: Returns how many rows and unread requests wait; set by the server.
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
        self._requests.labels(200)  # a metric with labels has no file before
        _allocate_shared_files()
        self._children: dict[str, Any] = {"rows": self._rows}
        self._counts: Counts[str] = Counts()
        self._milliseconds: deque[float] = deque(maxlen=EMF_VALUES)
        if emf_seconds:
            threading.Thread(target=self._emit, args=(emf_seconds,), name="emf", daemon=True).start()

    def observe(self, what: str, value: float) -> None:
        """Record the `rows` of a batch, or the seconds of a stage: read, queue, predict or write."""
        child = self._children.get(what)
        if child is None:
            child = self._children[what] = self._seconds.labels(what)
        child.observe(value)

    def begin(self) -> float:
        """Record the start of a request; return what `finish` takes."""
        self._in_flight.inc()
        return time.monotonic()

    def finish(self, status: int, begun: float) -> None:
        """Record the status of a request and its seconds since it had `begun`."""
        seconds = time.monotonic() - begun
        self._in_flight.dec()
        self._requests.labels(status).inc()
        self.observe("total", seconds)
        self._counts[str(status)[0]] += 1
        self._milliseconds.append(round(seconds * 1000, 3))

    def render(self) -> tuple[bytes, str]:
        """Return Prometheus's text and its media type, for all processes of this server."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest  # noqa: PLC0415
        from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

        self._queued.set(self.count_queued())
        registry = self._registry
        if SHARED_FOLDER in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def render_emf(self) -> str:
        """Return what happened since the last call as one line in CloudWatch's embedded metric format."""
        counts, self._counts = self._counts, Counts()
        milliseconds = [self._milliseconds.popleft() for _ in range(len(self._milliseconds))]
        values: dict[str, tuple[str, Any]] = {
            "Requests": ("Count", sum(counts.values())),
            "ClientErrors": ("Count", counts["4"]),
            "ServerErrors": ("Count", counts["5"]),
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
