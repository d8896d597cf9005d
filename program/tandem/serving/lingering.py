"""Gunicorn's thread worker, which waits in its loop for nobody who leaves."""

from __future__ import annotations

import socket
import time
from collections import deque
from typing import Any

from tandem.serving.connection import Connection
from tandem.serving.loop import LoopWorker

#: Seconds that a client has to close its side after the last answer.
LINGER_SECONDS = 2.0


class LingeringWorker(LoopWorker):
    """A thread worker whose loop lets connections linger until their clients have closed their side, too."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lingering: deque[Connection] = deque()

    def murder_pending(self) -> None:
        """Close the connections that took too long."""
        super().murder_pending()
        self.drop_late(self._lingering)

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
            self._lingering.remove(connection)
            self.drop(connection)
