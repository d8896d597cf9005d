"""Gunicorn's thread worker, with a loop that watches a connection as long as it is kept."""

from __future__ import annotations

import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from tandem.serving.connection import Connection
from tandem.serving.pool import Callbacks

#: Bytes one connection may give the loop before another one has its turn.
TURN = 256 * 1024
#: Seconds between two looks at what has run out of time.
HOUSEKEEPING_SECONDS = 0.05


class LoopWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """A thread worker with a loop that costs little a request."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        #: Where the loop receives.
        self.room = memoryview(bytearray(TURN))
        self.method_queue = Callbacks()

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Take what comes for a while: what gunicorn sees to after each time can wait so long."""
        end = 0.0
        while True:
            events = self.poller.select(timeout)
            self.method_queue.drain()  # or requests that are done with would count as busy
            for key, _ in events:
                key.data(key.fileobj)
            self.method_queue.drain()  # what threads left that looked before the client's bytes were taken
            now = time.monotonic()
            end = end or now + HOUSEKEEPING_SECONDS
            timeout = end - now
            if timeout <= 0 or not self.alive:
                return

    def watch(
        self,
        connection: Connection,
        callback: Callable[[Connection, socket.socket], None],
        events: int = selectors.EVENT_READ,
    ) -> None:
        """Have `callback(connection, client)` called when bytes come, or may be sent; and nothing else."""
        if connection.watched_for != events:
            self.unwatch(connection)
            self.poller.register(connection.sock, events, partial(self._call_back, connection))
            connection.watched_for = events
        connection.callback = callback

    def unwatch(self, connection: Connection) -> None:
        """Leave a connection alone."""
        if connection.watched_for:
            self.poller.unregister(connection.sock)
            connection.watched_for = 0

    def _call_back(self, connection: Connection, client: socket.socket) -> None:
        if connection.watched_for:  # still: what happened since the poll may have changed that
            connection.callback(connection, client)

    def drop(self, connection: Connection) -> None:
        """Close a connection."""
        self.unwatch(connection)
        self.nr_conns -= 1
        connection.close()

    def drop_late(self, waiting: deque[Connection]) -> None:
        """Close those whose time is over, the first to run out first."""
        while waiting and waiting[0].timeout <= time.monotonic():
            self.drop(waiting.popleft())
