"""The FIFOs of a Pipe channel, one per pass; waits end on a stop and after a time limit."""

from __future__ import annotations

import io
import logging
import os
import select
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tandem.errors import TandemError, UserError
from tandem.records.compression import decompress

logger = logging.getLogger(__name__)

#: Seconds to wait for a FIFO to appear, and then each time for its writer.
TIMEOUT = 900.0

#: Seconds between two log lines of a wait.
LOG_INTERVAL = 60.0

#: Seconds between two checks of whether the job should stop.
POLL_INTERVAL = 0.1

#: Bytes of the first read, if the stream has them: enough to recognize its format.
HEAD = 16


class PipeStopped(TandemError):
    """The job should stop, so the wait for a FIFO ended."""


def open_pipe(
    directory: Path, number: int, stop: threading.Event, timeout: float = TIMEOUT
) -> io.BufferedReader:
    """Open the FIFO `<directory>_<number>`, decompressed if it is gzip; its end is the end of the pass.

    It may be closed early: its writer sees a broken pipe. Waiting for the FIFO, or for its writer while
    reading, raises `PipeStopped` soon after `stop` is set and `TandemError` after `timeout` seconds.
    Raises `UserError` if the path is not a FIFO.
    """
    path = directory.with_name(f"{directory.name}_{number}")
    wait = _Wait(f"the FIFO {path} to appear", stop, timeout)
    while not path.exists():
        wait.check()
        stop.wait(POLL_INTERVAL)
    if not stat.S_ISFIFO(path.stat().st_mode):
        raise UserError(
            f"{path} is not a FIFO, but its TrainingInputMode is Pipe; for files and folders set it to "
            "File or FastFile."
        )
    return decompress(io.BufferedReader(_Fifo(path, stop, timeout), 1 << 18), str(path))


def read_lines(
    directory: Path, number: int, stop: threading.Event, timeout: float = TIMEOUT
) -> Iterator[str]:
    """Yield the UTF-8 lines of one pass without their ends, as for a channel of CSV objects.

    Raises the errors of `open_pipe`, and `UserError` for a line that is not UTF-8.
    """
    with open_pipe(directory, number, stop, timeout) as stream:
        for count, line in enumerate(stream, start=1):
            try:
                yield line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{directory.name}_{number}: line {count} is not UTF-8 text: {error}; "
                    "store the lines as UTF-8."
                ) from error


class _Wait:
    """A wait with a time limit, which is logged."""

    def __init__(self, what: str, stop: threading.Event, timeout: float) -> None:
        self._what = what
        self._stop = stop
        self._timeout = timeout
        self._started = self._logged = time.monotonic()

    def check(self) -> None:
        """Raise if the wait is over, else log it now and then."""
        now = time.monotonic()
        if self._stop.is_set():
            raise PipeStopped(f"stopped while waiting for {self._what}.")
        if now - self._started >= self._timeout:
            raise TandemError(
                f"waited {self._timeout:.0f} s in vain for {self._what}; check that the channel's S3 "
                "address has objects and that the job's role may read them."
            )
        if now - self._logged >= LOG_INTERVAL:
            self._logged = now
            logger.info("waiting for %s, for %.0f s so far", self._what, now - self._started)


class _Fifo(io.RawIOBase):
    """A FIFO's bytes, opened and read without blocking so that a stop is noticed."""

    def __init__(self, path: Path, stop: threading.Event, timeout: float) -> None:
        super().__init__()
        self._path = path
        self._stop = stop
        self._timeout = timeout
        self._begun = False
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill part of the buffer, at least `HEAD` bytes at the beginning; return 0 after the end."""
        filled = 0
        least = 1 if self._begun else min(HEAD, len(buffer))
        while filled < least:
            self._await_writer()
            count = os.readv(self._descriptor, [memoryview(buffer)[filled:]])
            if not count:
                break
            filled += count
        self._begun = True
        return filled

    def close(self) -> None:
        """Close the FIFO; a writer that still writes gets a broken pipe."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()

    def _await_writer(self) -> None:
        """Wait for data or the end. A read before the first writer would look like the end."""
        wait = _Wait(f"data in {self._path}", self._stop, self._timeout)
        while not self._poll.poll(POLL_INTERVAL * 1000):
            wait.check()
