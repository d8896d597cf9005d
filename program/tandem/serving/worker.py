"""Gunicorn's thread worker, which gives a request a thread only when all of it has arrived."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import selectors
import socket
import time
from collections import deque
from functools import partial
from typing import Any

from tandem.errors import Overloaded
from tandem.serving.accepting import REQUEST_SECONDS, AcceptingWorker
from tandem.serving.connection import Client, Connection
from tandem.serving.loop import TURN
from tandem.serving.plain import answer_plain
from tandem.serving.pool import Pool
from tandem.serving.refusals import ENDLESS, OVERLOADED, describe_refusal, render_refusal

logger = logging.getLogger(__name__)

#: Seconds that a request may wait for a thread before its thread looks whether the client is still there.
LOOK_SECONDS = 0.25
#: Bytes of requests that have not arrived whole, all together; beyond, the long ones among them are refused.
MOST_UNFINISHED = 128 * 1024 * 1024

_HEALTH = re.compile(rb"(GET|HEAD) /ping[ ?]")
_SCORING = b"POST /invocations "


class ReadAheadWorker(AcceptingWorker):
    """A thread worker whose loop reads requests, as a buffering proxy in front would.

    Slow clients cost no thread, whether they send or read. `/ping` has a thread of its own. Of the requests
    in progress only so many are handled at once as the app says pay, and one beyond `threads` is answered
    with 503 at once.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.tpool: Pool
        self._lanes: Pool | None = None
        self._sending: deque[Connection] = deque()

    def init_process(self) -> None:
        """Start in the new process, as no thread survives a fork."""
        self._health = Pool(1, "health", self._serve)
        super().init_process()

    def get_thread_pool(self) -> Pool:
        """Give the threads for what may have to wait."""
        return Pool(self.cfg.threads, "request", self._serve)

    def on_client_socket_readable(self, connection: Connection, client: socket.socket) -> None:
        """Read a request on, or begin to; give it to a thread once it is ready."""
        try:
            count = client.recv_into(self.room, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if connection.is_handled:
            self._keep_ahead(connection, count)
            return
        if not connection.received:
            self.keepalived_conns.remove(connection)
            self._await_rest(connection)
        ready = not count or connection.take(self.room[:count])
        if not ready and not self._is_too_much(connection):
            connection.let_go_on()
            return
        self.pending_conns.remove(connection)
        if not ready:
            self._refuse(connection, OVERLOADED)
        elif count:
            self.enqueue_req(connection)
        else:
            self.drop(connection)

    def _is_too_much(self, connection: Connection) -> bool:
        """Tell whether there is no room for more of a long body; short ones never fill it."""
        if len(connection.received) <= TURN:
            return False
        return sum(len(each.received) for each in self.pending_conns) > MOST_UNFINISHED

    def _keep_ahead(self, connection: Connection, count: int) -> None:
        """Keep what a client sends while its request is handled: mostly, as it has its answer already."""
        connection.ahead += self.room[:count]
        connection.has_ended = not count
        if connection.has_ended or len(connection.ahead) >= TURN:
            self.unwatch(connection)

    def _await_rest(self, connection: Connection) -> None:
        connection.timeout = time.monotonic() + REQUEST_SECONDS
        self.pending_conns.append(connection)

    def enqueue_req(self, connection: Connection) -> None:
        """Give a request to its thread: health to its own, others to a free one, or else refuse it."""
        connection.pool = pool = self._find_pool(connection)
        if not connection.is_whole:
            self.unwatch(connection)  # its thread reads on
        if not connection.reading.head:
            self._refuse(connection, ENDLESS)
        elif pool is not self._health and self._count_busy() >= self.cfg.threads:
            self._refuse(connection, OVERLOADED)
        else:
            connection.since = time.monotonic()
            try:
                pool.submit(connection)
                connection.is_handled = True
            except RuntimeError:  # no thread can be started
                self._refuse(connection, OVERLOADED)

    def _refuse(self, connection: Connection, answer: bytes) -> None:
        with contextlib.suppress(OSError):
            connection.sock.send_now(answer)
        self.linger(connection)

    def _count_busy(self) -> int:
        return self.tpool.busy + (self._lanes.busy if self._lanes else 0) + len(self._sending)

    def _find_pool(self, connection: Connection) -> Pool:
        """Give the threads for a request.

        Those for scoring are as many as pay, where the app says so, if they need not wait for the client.
        """
        if not connection.is_whole:
            return self.tpool
        if _HEALTH.match(connection.received):
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
        self.method_queue.leave(self._finish, connection, keep)
        # A client that has all of its answer asks again, which wakes the loop anyway.
        is_quiet = connection.watched_for and not connection.ahead and not connection.sock.unsent
        if not (keep and is_quiet and self.alive):
            self.method_queue.wake()

    def handle(self, connection: Connection) -> Any:
        """Handle the request that was read, and tell whether its connection is kept; runs in a thread."""
        waited = time.monotonic() - connection.since
        if waited > LOOK_SECONDS and connection.sock.has_hung_up():
            return False
        if waited > self.app.patience:
            refusal = Overloaded(f"no answer within {self.app.patience:g} seconds; try again.")
            self.handle_error(None, connection.sock, None, refusal)
            return False
        if connection.reading.plain is not None and connection.is_whole:
            keep = self._handle_plain(connection, connection.reading.plain)
        else:
            connection.start()
            keep = super().handle(connection)
        connection.sock.flush()
        return keep

    def _handle_plain(self, connection: Connection, environ: dict[str, Any]) -> bool:
        """Handle a request that needs nothing of gunicorn's; runs in a thread."""
        keep = bool(self.alive and len(self.keepalived_conns) < self.max_keepalived)
        environ["gunicorn.socket"] = connection.sock
        for piece in answer_plain(self.wsgi, environ, connection.take_body(), keep=keep):
            connection.sock.unsent += piece
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
        """Close the connections that took too long to send a request, or to take an answer."""
        super().murder_pending()
        self.drop_late(self._sending)

    def _finish(self, connection: Connection, keep: bool) -> None:  # noqa: FBT001
        """Go on with a connection whose request was handled."""
        connection.pool.done()
        connection.is_handled = False
        self._end_request(connection, keep)

    def _end_request(self, connection: Connection, keep: bool) -> None:  # noqa: FBT001
        """Go on with a connection once the client has taken its answer."""
        if connection.sock.unsent:
            connection.timeout = time.monotonic() + REQUEST_SECONDS
            self._sending.append(connection)
            self.watch(connection, partial(self._on_sending_socket_writable, keep), selectors.EVENT_WRITE)
        elif not keep:
            self.linger(connection)
        elif connection.start_next():
            self.enqueue_req(connection)
        elif connection.has_ended:
            self.drop(connection)
        elif connection.received:
            self._await_rest(connection)
            connection.let_go_on()
            self.watch(connection, self.on_client_socket_readable)
        else:
            self.keep_alive(connection)

    def _on_sending_socket_writable(self, keep: bool, connection: Connection, client: Client) -> None:  # noqa: FBT001
        client.flush()
        self.unwatch(connection)
        self._sending.remove(connection)
        self._end_request(connection, keep)
