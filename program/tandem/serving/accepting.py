"""Gunicorn's thread worker, which decides who may connect and who may stay."""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from typing import Any

from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER

from tandem.serving.connection import Client, Connection
from tandem.serving.lingering import LingeringWorker

#: Seconds that a client has to send its request, and to take more of its answer.
REQUEST_SECONDS = 60.0
#: Seconds without new connections where no descriptor is free for them.
PAUSE_SECONDS = 0.2

_REQUEST_TIMEVAL = struct.pack("ll", int(REQUEST_SECONDS), 0)  # for threads that read what is left


class AcceptingWorker(LingeringWorker):
    """A thread worker that closes idle connections where others want their place."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._accept_again = 0.0

    def accept(self, listener: socket.socket) -> None:
        """Take a new connection; it is idle, like one kept alive, until its first bytes come."""
        try:
            accepted, address = listener.accept()
        except OSError as error:  # another process took it, or it is gone
            if error.errno in {errno.EMFILE, errno.ENFILE} and self.alive:
                self._accept_again = time.monotonic() + PAUSE_SECONDS
                self.set_accept_enabled(False)
            return
        client = Client(accepted)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _REQUEST_TIMEVAL)
        self.nr_conns += 1
        connection = Connection(self.cfg, client, address, listener.getsockname())
        self.keep_alive(connection)
        if self.nr_conns >= self.worker_connections and self.alive:
            self._make_room()

    def _make_room(self) -> None:
        """Close the connection that has been idle longest; without one, accept no more."""
        if self.keepalived_conns:
            self.drop(self.keepalived_conns.popleft())
        else:
            self.set_accept_enabled(False)

    def set_accept_enabled(self, enabled: bool) -> None:  # noqa: FBT001  # gunicorn's signature
        """Accept or not; on the way out take what has connected already, as its requests may be sent.

        Then nothing listens: who connects later is refused and can ask elsewhere.
        """
        may = self.app.is_open() and time.monotonic() >= self._accept_again
        super().set_accept_enabled(enabled and may)
        if not enabled and not self.alive:
            for listener in self.sockets:
                for _ in range(self.cfg.backlog):
                    if not select.select([listener], [], [], 0)[0]:
                        break
                    self.accept(listener)
                listener.close()

    def keep_alive(self, connection: Connection) -> None:
        """Wait for a next request, on the way out only shortly."""
        connection.set_timeout()
        if not self.alive:
            connection.timeout = min(connection.timeout, time.monotonic() + STOP_KEEPALIVE_LINGER)
        self.keepalived_conns.append(connection)
        self.watch(connection, self.on_client_socket_readable)
