"""uvicorn's HTTP protocol under gunicorn, with limits on what a client may send and how long it may take."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import deque
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn_worker import UvicornWorker

from tandem.serving.errors import log_error, render_error

logger = logging.getLogger(__name__)

#: Seconds that a client has to send a whole request, and to read enough of an answer to go on.
CLIENT_SECONDS = 60.0
#: Bytes of a request's line and headers, or of its trailers.
MAX_HEAD = 64 * 1024
#: Requests of a connection that may wait for the answers before theirs.
MAX_PIPELINED = 128
#: Seconds between SIGTERM and the end, for requests in progress; SageMaker kills after 30.
DRAIN_SECONDS = 25
#: Seconds after SIGTERM for which an idle connection stays open, as its next request may be on its way.
LAST_SECONDS = 1.0


class Protocol(HttpToolsProtocol):
    """One connection.

    uvicorn does not limit the size of a head, the number of pipelined requests, nor the time that a client
    takes to send a request or to read an answer. This class does, in callbacks of asyncio and httptools, and
    gives the errors of the parser the shape that all errors have.
    """

    _is_receiving = True  # a request; a new connection is for one
    _is_in_body = False
    _is_broken = False  # what follows cannot be parsed
    _is_ending = False
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._cycles: deque[RequestResponseCycle] = deque()  # the requests that are not answered

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request."""
        super().connection_made(transport)
        self._watch_client()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting, and tell all requests in progress; uvicorn tells the last one."""
        self._stop_timer()
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data; refuse a head that is too long."""
        if self._is_broken:
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MAX_HEAD and not self._is_broken:
            self._refuse(431, "headers_too_large", f"its head is over {MAX_HEAD >> 10} KiB")
        self._watch_client()

    def on_message_begin(self) -> None:
        """Note the start of a request; the time for it starts anew."""
        self._is_receiving = True
        self._stop_timer()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Note the end of its head; too many pipelined requests end the connection."""
        self._head_bytes = 0
        is_upgrade = self.parser.should_upgrade()  # httptools reads nothing behind such a head
        if is_upgrade and any(name in {b"content-length", b"transfer-encoding"} for name, _ in self.headers):
            self._refuse(400, "bad_request", "it has a body and asks for an upgrade; send plain HTTP/1.1")
            return
        super().on_headers_complete()  # which raises for some targets
        self._is_in_body = True
        self._cycles.append(self.cycle)
        if len(self._cycles) > MAX_PIPELINED:
            self.transport.abort()
        if self._is_ending or is_upgrade:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Note that what arrives is no head."""
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of the request."""
        self._head_bytes = 0
        self._is_receiving = self._is_in_body = False
        if not self._is_broken:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Close the connection after the last answer before a broken request."""
        self._cycles.popleft()
        super().on_response_complete()
        if self._is_broken and not self._cycles:
            self.transport.close()

    def pause_writing(self) -> None:
        """Wait until the client reads."""
        super().pause_writing()
        self._watch_client()

    def resume_writing(self) -> None:
        """Stop waiting."""
        super().resume_writing()
        self._watch_client()

    def shutdown(self) -> None:
        """Close the connection when all is answered; an idle one soon."""
        self._is_ending = True
        if self._is_idle():
            self.loop.call_later(LAST_SECONDS, self._close_idle)
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that the parser refused."""
        if not self._is_broken:
            self._refuse(400, "bad_request", msg)

    def _refuse(self, status: int, kind: str, cause: str) -> None:
        """Refuse what is being received; but where earlier requests wait for answers, only end after them.

        Their client would take the refusal for the answer to the first of them.
        """
        message = f"the request could not be read: {cause}"
        log_error(status, kind, message, {})
        self._is_broken = True
        if self._is_in_body and len(self._cycles) > 1:
            self._cycles.pop()
            self.pipeline.popleft()
        elif self._is_in_body and self.cycle.response_complete:
            self.transport.close()
        elif self._is_idle() or (self._is_in_body and not self.cycle.response_started):
            self._send_refusal(status, kind, message)

    def _send_refusal(self, status: int, kind: str, message: str) -> None:
        headers, body = render_error(status, kind, message)
        lines = b"".join(b"%b: %b\r\n" % header for header in [*headers, (b"connection", b"close")])
        status_line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
        self.transport.write(status_line + lines + b"\r\n" + body)
        self.transport.close()

    def _is_idle(self) -> bool:
        """Return whether all requests are answered."""
        return not self._cycles

    def _close_idle(self) -> None:
        if self._is_idle():
            self.transport.close()

    def _watch_client(self) -> None:
        """Start the timer where the next step is the client's, and stop it where it is ours."""
        if self._is_receiving or self.flow.write_paused:
            if self._timer is None:
                self._timer = self.loop.call_later(CLIENT_SECONDS, self._close_late)
        else:
            self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_late(self) -> None:
        self._timer = None
        if self.flow.read_paused and not self.flow.write_paused:  # it is the server that does not read
            self._watch_client()
        else:
            logger.warning("closed a connection whose client took over %g seconds", CLIENT_SECONDS)
            self.transport.abort()


class Worker(UvicornWorker):  # type: ignore[misc]  # it has no types
    """A serving process."""

    CONFIG_KWARGS: dict[str, Any] = {  # noqa: RUF012  # as uvicorn-worker declares it
        "http": Protocol,
        "loop": "uvloop",
        "lifespan": "on",
        "ws": "none",
        "interface": "asgi3",
        "proxy_headers": False,
        "server_header": False,
        "timeout_graceful_shutdown": DRAIN_SECONDS,
    }

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        logging.getLogger("uvicorn.error").propagate = True  # to where all other lines go

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop as on SIGTERM, which uvicorn handles; gunicorn sends SIGQUIT when it gets SIGINT itself."""
        del sig, frame
        signal.raise_signal(signal.SIGTERM)
