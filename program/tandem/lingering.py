"""Gunicorn's thread worker, which waits in its loop for nobody who leaves."""

from __future__ import annotations

import selectors
import socket
import time
from collections import deque
from functools import partial
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from tandem.connection import Connection

#: Bytes one connection may give the loop before another one has its turn.
TURN = 256 * 1024
#: Seconds that a client has to close its side after the last answer.
LINGER_SECONDS = 2.0


class LingeringWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """A thread worker whose loop lets connections linger until their clients have closed their side, too."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        #: Where the loop receives.
        self.room = memoryview(bytearray(TURN))
        self._lingering: deque[Connection] = deque()

    def murder_pending(self) -> None:
        """Close the connections that took too long."""
        super().murder_pending()
        self.drop_late(self._lingering)

    def drop_late(self, waiting: deque[Connection]) -> None:
        """Close those whose time is over of connections that are watched, the first to run out first."""
        while waiting and waiting[0].timeout <= time.monotonic():
            connection = waiting.popleft()
            self.poller.unregister(connection.sock)
            self.drop(connection)

    def linger(self, connection: Connection) -> None:
        """Close our side, and the socket when the client has closed its own.

        Gunicorn waits for that here, in the loop, where for two seconds nobody else would be served.
        """
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.drop(connection)
            return
        connection.timeout = time.monotonic() + LINGER_SECONDS
        self._lingering.append(connection)
        self.watch(connection, self._on_lingering_socket_readable)

    def _on_lingering_socket_readable(self, connection: Connection, client: socket.socket) -> None:
        try:
            ended = not client.recv_into(self.room, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            ended = True
        if ended:
            self.poller.unregister(client)
            self._lingering.remove(connection)
            self.drop(connection)

    def watch(self, connection: Connection, callback: Any) -> None:
        """Have `callback(connection, client)` called when bytes come."""
        self.poller.register(connection.sock, selectors.EVENT_READ, partial(callback, connection))

    def drop(self, connection: Connection) -> None:
        """Close a connection that nothing watches any more."""
        self.nr_conns -= 1
        connection.close()
