"""Threads that handle one thing after the other, and what they leave for the loop that gave it to them."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from gunicorn.workers.gthread import PollableMethodQueue


class Pool:
    """At most `most` threads, started as they are needed; all its methods are for one thread, the loop.

    Python's own executor can do more, and takes the interpreter lock, which all here compete for, far longer.
    `handle` must not raise.
    """

    def __init__(self, most: int, name: str, handle: Callable[[Any], None]) -> None:
        self._most = most
        self._name = name
        self._handle = handle
        self._threads = 0
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.busy = 0

    @property
    def waiting(self) -> int:
        """How many of the `busy` wait for a thread."""
        return max(0, self.busy - self._threads)

    def submit(self, thing: Any) -> None:
        """Let a thread handle it; it counts as busy until it is told to be `done`.

        Raises `RuntimeError` where there is no thread and none can be started.
        """
        if self.busy >= self._threads and self._threads < self._most:
            try:
                # A daemon, as one that hangs must not keep the process from its end.
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
                self._threads += 1
            except RuntimeError:
                if not self._threads:
                    raise
        self.busy += 1
        self._queue.put(thing)

    def done(self) -> None:
        """Note that one is done with."""
        self.busy -= 1

    def shutdown(self, wait: bool = False) -> None:  # noqa: FBT001, FBT002  # an executor's signature
        """End the threads that have nothing to do; none is waited for."""
        del wait
        for _ in range(self._threads):
            self._queue.put(None)

    def _run(self) -> None:
        while (thing := self._queue.get()) is not None:
            self._handle(thing)


class Callbacks(PollableMethodQueue):  # type: ignore[misc]  # gunicorn has no types
    """What threads leave for the loop; it is woken once for all that is left before it comes."""

    def __init__(self) -> None:
        super().__init__()
        self._woken = False

    def defer(self, callback: Any, *arguments: Any) -> None:
        """Leave a call for the loop, and wake it."""
        self.leave(callback, *arguments)
        self.wake()

    def leave(self, callback: Any, *arguments: Any) -> None:
        """Leave a call that may wait until something else wakes the loop."""
        self._queue.put(partial(callback, *arguments))

    def wake(self) -> None:
        """Wake the loop, if nobody has."""
        if not self._woken:
            self._woken = True
            with contextlib.suppress(OSError):  # the loop has ended
                os.write(self._write_fd, b"\0")

    def run_callbacks(self, _fileobj: Any, max_callbacks: int = 1024) -> None:
        """Make all calls that are left, for which the loop was woken."""
        os.read(self._read_fd, max_callbacks)
        self._woken = False  # from here on, who leaves a call wakes the loop again
        self.drain()

    def drain(self) -> None:
        """Make all calls that are left."""
        for _ in range(self._queue.qsize()):
            self._queue.get_nowait()()
