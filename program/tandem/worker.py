"""Gunicorn's thread worker, which gives a request a thread only when all of it has arrived."""

from __future__ import annotations

import contextlib
import json
import logging
import select
import selectors
import socket
import struct
import time
from collections import deque
from functools import partial
from types import SimpleNamespace
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from tandem.connection import Client, Connection
from tandem.errors import Overloaded
from tandem.pool import Callbacks, Pool
from tandem.refusals import describe_refusal, render_refusal

logger = logging.getLogger(__name__)

#: Bytes one connection may give the loop before another one has its turn.
TURN = 256 * 1024
#: Seconds that a request may wait for a thread before its thread looks whether the client is still there.
LOOK_SECONDS = 0.25
#: Seconds that a client has to send its request, to take more of its answer, and to close its side at last.
REQUEST_SECONDS = 60.0
LINGER_SECONDS = 2.0

_REQUEST_TIMEVAL = struct.pack("ll", int(REQUEST_SECONDS), 0)  # for threads that read what is left
_HEALTH = (b"GET /ping ", b"HEAD /ping ")
_SCORING = b"POST /invocations "


class ReadAheadWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """A thread worker whose loop reads requests, as a buffering proxy in front would.

    Slow clients cost no thread, whether they send or read. `/ping` has a thread of its own. Of the requests
    in progress only so many are handled at once as the app says pay, and one beyond `threads` is answered
    with 503 at once.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.tpool: Pool
        self._lanes: Pool | None = None
        self._notified = 0.0
        self._sending: deque[Connection] = deque()
        self._lingering: deque[Connection] = deque()
        self._room = memoryview(bytearray(TURN))
        self.method_queue = Callbacks()

    def init_process(self) -> None:
        """Start in the new process, as no thread survives a fork."""
        self._health = Pool(1, "health", self._serve)
        super().init_process()

    def get_thread_pool(self) -> Pool:
        """Give the threads for what may have to wait."""
        return Pool(self.cfg.threads, "request", self._serve)

    def notify(self) -> None:
        """Tell the master that the loop turns; once a second will do."""
        if time.monotonic() - self._notified > 1:
            self._notified = time.monotonic()
            super().notify()

    def accept(self, listener: socket.socket) -> None:
        """Take a new connection; it is idle, like one kept alive, until its first bytes come."""
        with contextlib.suppress(OSError):  # another process took it, it is gone, or no descriptor is free
            accepted, address = listener.accept()
            client = Client(accepted)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _REQUEST_TIMEVAL)
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
        """Read a request on, or begin to; give it to a thread once it is ready."""
        try:
            count = client.recv_into(self._room, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not connection.received:
            self.keepalived_conns.remove(connection)
            connection.timeout = time.monotonic() + REQUEST_SECONDS
            self.pending_conns.append(connection)
        if count and not connection.take(self._room[:count]):
            return
        self.poller.unregister(client)
        self.pending_conns.remove(connection)
        if count:
            self.enqueue_req(connection)
        else:
            self._close(connection)

    def enqueue_req(self, connection: Connection) -> None:
        """Give a request to its thread: health to its own, others to a free one, or else refuse it."""
        connection.pool = pool = self._find_pool(connection)
        if pool is not self._health and self._count_busy() >= self.cfg.threads:
            with contextlib.suppress(OSError):
                connection.sock.send(_OVERLOADED, socket.MSG_DONTWAIT)
            self._linger(connection)
            return
        connection.since = time.monotonic()
        pool.submit(connection)

    def _count_busy(self) -> int:
        return self.tpool.busy + (self._lanes.busy if self._lanes else 0)

    def _find_pool(self, connection: Connection) -> Pool:
        """Give the threads for a request.

        Those for scoring are as many as pay, where the app says so, if they need not wait for the client.
        """
        if not connection.is_whole:
            return self.tpool
        if connection.received.startswith(_HEALTH):
            return self._health
        if not connection.received.startswith(_SCORING):
            return self.tpool
        if self._lanes is None and (lanes := self.app.count_lanes()):
            self._lanes = Pool(lanes, "lane", self._serve)
        return self._lanes or self.tpool

    def count_waiting(self) -> int:
        """Count the requests that wait for a lane."""
        return self._lanes.waiting if self._lanes else 0

    def _serve(self, connection: Connection) -> None:
        """Handle a request, and let the loop go on with its connection; runs in a thread."""
        try:
            keep = bool(self.handle(connection))
        except BaseException:
            logger.exception("a connection failed")
            keep = False
        self.method_queue.defer(self._finish, connection, keep)

    def handle(self, connection: Connection) -> Any:
        """Handle the request that was read, and tell whether its connection is kept; runs in a thread."""
        waited = time.monotonic() - connection.since
        if waited > LOOK_SECONDS and connection.has_hung_up():
            return False
        if waited > self.app.patience:
            refusal = Overloaded(f"no answer within {self.app.patience:g} seconds; try again.")
            self.handle_error(None, connection.sock, None, refusal)
            return False
        connection.start()
        keep = super().handle(connection)
        connection.parser.unreader.keep()
        connection.sock.flush()
        return keep

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer what the parser refused, or what broke outside the app; runs in a thread."""
        del req, addr
        status, kind, message = describe_refusal(exc)
        line = {"event": "request_failed", "status": status, "error": kind, "message": message}
        broken = status == 500
        level = logging.ERROR if broken else logging.WARNING
        logger.log(level, "%s", json.dumps(line), exc_info=exc if broken else None)
        client.sendall(render_refusal(status, kind, message))

    def murder_pending(self) -> None:
        """Close the connections that took too long to send a request, or to close their side."""
        super().murder_pending()
        while self._sending and self._sending[0].timeout <= time.monotonic():
            connection = self._sending.popleft()
            connection.pool.done()
            self.poller.unregister(connection.sock)
            self._close(connection)
        while self._lingering and self._lingering[0].timeout <= time.monotonic():
            connection = self._lingering.popleft()
            self.poller.unregister(connection.sock)
            self._close(connection)

    def _finish(self, connection: Connection, keep: bool) -> None:  # noqa: FBT001
        """End a request that was handled, once the client has taken its answer."""
        if connection.sock.unsent:
            connection.timeout = time.monotonic() + REQUEST_SECONDS
            self._sending.append(connection)
            sending = partial(self._on_sending_socket_writable, connection, keep)
            self.poller.register(connection.sock, selectors.EVENT_WRITE, sending)
            return
        connection.pool.done()
        if keep:
            self.finish_request(connection, _KEPT)
        else:
            self._linger(connection)

    def _on_sending_socket_writable(self, connection: Connection, keep: bool, client: Client) -> None:  # noqa: FBT001
        client.flush()
        self.poller.unregister(client)
        self._sending.remove(connection)
        self._finish(connection, keep)

    def _linger(self, connection: Connection) -> None:
        """Close our side, and the socket when the client has closed its own.

        Gunicorn waits for that here, in the loop, where for two seconds nobody else would be served.
        """
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(connection)
            return
        connection.timeout = time.monotonic() + LINGER_SECONDS
        self._lingering.append(connection)
        self._watch(connection, self._on_lingering_socket_readable)

    def _on_lingering_socket_readable(self, connection: Connection, client: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                ended = not client.recv_into(self._room, 0, socket.MSG_DONTWAIT)
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


#: What gunicorn asks after a request whose connection is kept.
_KEPT = SimpleNamespace(result=lambda: True, cancelled=lambda: False)
_OVERLOADED = render_refusal(
    Overloaded.status, Overloaded.kind, "the server is busy with other requests; try again in a second."
)
