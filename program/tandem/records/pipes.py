"""The FIFOs of a Pipe channel, one a pass, read so that a stop and a writer that is late are noticed."""

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

#: Seconds to wait for a FIFO to appear, and then each time for its writer: S3 may be slow, but not for ever.
PATIENCE = 900.0

#: Seconds between two lines of the log that say what is waited for.
REMIND_EVERY = 60.0

#: Seconds between two looks at whether the job is to stop.
LOOK_EVERY = 0.1

#: Bytes that are there at the first look at a stream, if it has so many: they tell what it is.
HEAD = 16


class PipeStopped(TandemError):
    """The job is to stop, so nobody waits for the FIFO any longer."""


def open_pipe(
    directory: Path, number: int, stop: threading.Event, patience: float = PATIENCE
) -> io.BufferedReader:
    """Open the FIFO `<directory>_<number>`, decompressed where it holds gzip; its end is the pass's end.

    Closing it early is allowed: its writer sees a broken pipe. Waiting for the FIFO, and while reading for
    its writer, ends with `PipeStopped` soon after `stop` is set, and with `TandemError` after `patience`
    seconds. Raises `UserError` for what is no FIFO.
    """
    path = directory.with_name(f"{directory.name}_{number}")
    wait = _Wait(f"the FIFO {path} to appear", stop, patience)
    while not path.exists():
        wait.check()
        stop.wait(LOOK_EVERY)
    if not stat.S_ISFIFO(path.stat().st_mode):
        raise UserError(
            f"{path} is not a FIFO, as a channel of TrainingInputMode Pipe has; for files and folders set it "
            "to File or FastFile."
        )
    return decompress(io.BufferedReader(_Fifo(path, stop, patience), 1 << 18), str(path))


def read_lines(
    directory: Path, number: int, stop: threading.Event, patience: float = PATIENCE
) -> Iterator[str]:
    """Yield the lines of one pass, UTF-8, without their ends; a channel of CSV objects is read so.

    Raises as `open_pipe` does, and `UserError` for what is not UTF-8.
    """
    with open_pipe(directory, number, stop, patience) as stream:
        for count, line in enumerate(stream, start=1):
            try:
                yield line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{directory.name}_{number}: line {count} is not UTF-8 text: {error}; "
                    "store the lines as UTF-8."
                ) from error


class _Wait:
    """One wait, that ends and says meanwhile what it waits for."""

    def __init__(self, what: str, stop: threading.Event, patience: float) -> None:
        self._what = what
        self._stop = stop
        self._patience = patience
        self._started = self._told = time.monotonic()

    def check(self) -> None:
        """Raise where the wait is over; log now and then where it is not."""
        now = time.monotonic()
        if self._stop.is_set():
            raise PipeStopped(f"stopped while waiting for {self._what}.")
        if now - self._started >= self._patience:
            raise TandemError(
                f"waited {self._patience:.0f} s in vain for {self._what}; see whether the channel's S3 "
                "address has objects and the job's role may read them."
            )
        if now - self._told >= REMIND_EVERY:
            self._told = now
            logger.info("waiting for %s, for %.0f s so far", self._what, now - self._started)


class _Fifo(io.RawIOBase):
    """A FIFO's bytes. It is opened without waiting, so that no stop is missed, and read when poll says so."""

    def __init__(self, path: Path, stop: threading.Event, patience: float) -> None:
        super().__init__()
        self._path = path
        self._stop = stop
        self._patience = patience
        self._begun = False
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill some of the buffer, at least `HEAD` bytes at the beginning; 0 once the writer has closed."""
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
        """Close the FIFO; a writer that goes on writing is told."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()

    def _await_writer(self) -> None:
        """Wait for bytes or the end. Before its first writer has come, a read would say 'end'."""
        wait = _Wait(f"data in {self._path}", self._stop, self._patience)
        while not self._poll.poll(LOOK_EVERY * 1000):
            wait.check()
