"""Gunicorn's thread worker, which gives a request a thread only when all of it has arrived."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import select
import selectors
import socket
import struct
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

from tandem.errors import Overloaded
from tandem.refusals import describe_refusal, render_refusal

logger = logging.getLogger(__name__)

#: A request's head, and what of a body, that the loop reads; a thread reads what is beyond.
MAX_HEAD = 64 * 1024
MAX_READ_AHEAD = 8 * 1024 * 1024
#: Bytes one connection may give the loop before another one has its turn.
TURN = 256 * 1024
#: Seconds that a client has to send its request, and to close its side after the last answer.
REQUEST_SECONDS = 60.0
LINGER_SECONDS = 2.0

_REQUEST_TIMEVAL = struct.pack("ll", int(REQUEST_SECONDS), 0)  # for threads, which read and write blocking
_HEALTH = (b"GET /ping ", b"HEAD /ping ")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect:", re.IGNORECASE)


def is_ready(received: bytes | bytearray) -> bool:
    """Tell whether a thread can go on with `received` without waiting for the client.

    That is so for a whole request, for one that is longer than the loop reads ahead, and for a client that
    waits to be told to continue. Whether it is valid is not looked at.
    """
    end = received.find(b"\r\n\r\n", 0, MAX_HEAD)
    if end < 0:
        return len(received) >= MAX_HEAD
    head = bytes(received[: end + 2])
    if _EXPECT.search(head):
        return True
    if _CHUNKED.search(head):
        return received.endswith(b"0\r\n\r\n") or len(received) >= MAX_READ_AHEAD
    length = _LENGTH.search(head)
    return len(received) >= min(end + 4 + int(length[1] if length else 0), MAX_READ_AHEAD)


class Connection(TConn):  # type: ignore[misc]  # gunicorn has no types
    """A connection and what of its next request has been read."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.received = bytearray()

    def start(self) -> None:
        """Hand what was read to the parser, in a thread."""
        self.init()
        self.parser.unreader.unread(bytes(self.received))
        self.received = bytearray()
        self.data_ready = True


class ReadAheadWorker(ThreadWorker):  # type: ignore[misc]
    """A thread worker whose loop reads requests, as a buffering proxy in front would.

    Slow clients cost no thread, `/ping` has a thread of its own, and a request that finds every thread taken
    is answered with 503 at once.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._busy = 0
        self._lingering: deque[Connection] = deque()

    def init_process(self) -> None:
        """Start in the new process: the thread for health is made here, as none survives a fork."""
        self._health = ThreadPoolExecutor(1, thread_name_prefix="health")
        super().init_process()

    def accept(self, listener: socket.socket) -> None:
        """Take a new connection; it is idle, like one kept alive, until its first bytes come."""
        with contextlib.suppress(OSError):  # another process took it, it is gone, or no descriptor is free
            client, address = listener.accept()
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                client.setsockopt(socket.SOL_SOCKET, option, _REQUEST_TIMEVAL)
            self.nr_conns += 1
            connection = Connection(self.cfg, client, address, listener.getsockname())
            connection.set_timeout()
            self.keepalived_conns.append(connection)
            self._watch(connection, self.on_client_socket_readable)

    def set_accept_enabled(self, enabled: bool) -> None:  # noqa: FBT001  # gunicorn's signature
        """Accept or not; on the way out take what has connected already, as its requests may be sent.

        Then nothing listens: who connects later is refused and can ask elsewhere.
        """
        super().set_accept_enabled(enabled and self.app.is_open())
        if not enabled and not self.alive:
            for listener in self.sockets:
                for _ in range(self.cfg.backlog):
                    if not select.select([listener], [], [], 0)[0]:
                        break
                    self.accept(listener)
                listener.close()

    def on_client_socket_readable(self, connection: Connection, client: socket.socket) -> None:
        """Begin to read a request from a connection that was idle."""
        self.poller.unregister(client)
        self.keepalived_conns.remove(connection)
        connection.timeout = time.monotonic() + REQUEST_SECONDS
        self.pending_conns.append(connection)
        self._watch(connection, self.on_pending_socket_readable)
        self.on_pending_socket_readable(connection, client)

    def on_pending_socket_readable(self, connection: Connection, client: socket.socket) -> None:
        """Read on; give the request to a thread once it is ready."""
        try:
            chunk = client.recv(TURN)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        connection.received += chunk
        if chunk and not is_ready(connection.received):
            return
        self.poller.unregister(client)
        self.pending_conns.remove(connection)
        if chunk:
            self.enqueue_req(connection)
        else:
            self._close(connection)

    def enqueue_req(self, connection: Connection) -> None:
        """Give a request to its thread: health to its own, others to a free one, or else refuse it."""
        if connection.received.startswith(_HEALTH):
            pool = self._health
        elif self._busy < self.cfg.threads:
            self._busy += 1
            pool = self.tpool
        else:
            with contextlib.suppress(OSError):
                connection.sock.send(_OVERLOADED)
            self._linger(connection)
            return
        future = pool.submit(self.handle, connection)
        future.add_done_callback(
            lambda done: self.method_queue.defer(self._finish, connection, done, int(pool is self.tpool))
        )

    def handle(self, connection: Connection) -> Any:
        """Handle the request that was read; runs in a thread."""
        try:
            connection.sock.setblocking(True)  # noqa: FBT003
            connection.start()
        except OSError:
            return False
        return super().handle(connection)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer what the parser refused, or what broke outside the app; runs in a thread."""
        del req, addr
        status, kind, message = describe_refusal(exc)
        line = {"event": "request_failed", "status": status, "error": kind, "message": message}
        broken = status == 500
        level = logging.ERROR if broken else logging.WARNING
        logger.log(level, "%s", json.dumps(line), exc_info=exc if broken else None)
        with contextlib.suppress(OSError):
            client.sendall(render_refusal(status, kind, message))

    def murder_pending(self) -> None:
        """Close the connections that took too long to send a request, or to close their side."""
        super().murder_pending()
        while self._lingering and self._lingering[0].timeout <= time.monotonic():
            connection = self._lingering.popleft()
            self.poller.unregister(connection.sock)
            self._close(connection)

    def _finish(self, connection: Connection, done: Future[Any], threads: int) -> None:
        self._busy -= threads
        if not done.cancelled() and done.exception() is None and done.result():
            self.finish_request(connection, done)
        else:
            self._linger(connection)

    def _linger(self, connection: Connection) -> None:
        """Close our side, and the socket when the client has closed its own.

        Gunicorn waits for that here, in the loop, where for two seconds nobody else would be served.
        """
        try:
            connection.sock.shutdown(socket.SHUT_WR)
            connection.sock.setblocking(False)  # noqa: FBT003
        except OSError:
            self._close(connection)
            return
        connection.timeout = time.monotonic() + LINGER_SECONDS
        self._lingering.append(connection)
        self._watch(connection, self._on_lingering_socket_readable)

    def _on_lingering_socket_readable(self, connection: Connection, client: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                ended = not client.recv(TURN)
            except ConnectionError:
                ended = True
            if ended:
                self.poller.unregister(client)
                self._lingering.remove(connection)
                self._close(connection)

    def _watch(self, connection: Connection, callback: Any) -> None:
        self.poller.register(connection.sock, selectors.EVENT_READ, partial(callback, connection))

    def _close(self, connection: Connection) -> None:
        self.nr_conns -= 1
        connection.close()


_OVERLOADED = render_refusal(
    Overloaded.status, Overloaded.kind, "the server is busy with other requests; try again in a second."
)
