"""uvicorn's HTTP protocol under gunicorn, with limits on what a client may send and how long it may take."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn_worker import UvicornWorker

from tandem.serving.errors import log_error, render_error

logger = logging.getLogger(__name__)

#: Seconds that a client has to send a whole request, and to read enough of an answer to go on.
CLIENT_SECONDS = 60.0
#: Bytes of a request's line and headers.
MAX_HEAD = 64 * 1024
#: Seconds between SIGTERM and the end, for requests in progress; SageMaker kills after 30.
DRAIN_SECONDS = 25


class Protocol(HttpToolsProtocol):
    """One connection.

    uvicorn does not limit the size of a head, nor the time that a client takes to send a request or to read
    an answer. This class does, in callbacks of asyncio and httptools, and gives the errors of the parser the
    shape that all errors have.
    """

    _is_receiving = True  # a request; a new connection is for one
    _is_in_head = True
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request."""
        super().connection_made(transport)
        self._watch_client()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; refuse a head that is too long."""
        was_in_head = self._is_in_head
        super().data_received(data)
        if was_in_head and self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD and not self.transport.is_closing():
                self._refuse(431, "headers_too_large", f"its head is over {MAX_HEAD >> 10} KiB")
        self._watch_client()

    def on_message_begin(self) -> None:
        """Note that a request has begun."""
        self._is_receiving = self._is_in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Note that its head is whole."""
        self._is_in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that it is whole."""
        self._is_receiving = False
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Wait until the client reads."""
        super().pause_writing()
        self._watch_client()

    def resume_writing(self) -> None:
        """Go on, as it does."""
        super().resume_writing()
        self._watch_client()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that the parser refused."""
        self._refuse(400, "bad_request", msg)

    def _refuse(self, status: int, kind: str, cause: str) -> None:
        message = f"the request could not be read: {cause}"
        log_error(status, kind, message, {})
        headers, body = render_error(status, kind, message)
        lines = b"".join(b"%b: %b\r\n" % header for header in [*headers, (b"connection", b"close")])
        status_line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
        self.transport.write(status_line + lines + b"\r\n" + body)
        self.transport.close()

    def _watch_client(self) -> None:
        """Start the timer where the next step is the client's, and stop it where it is ours."""
        if self._is_receiving or self.flow.write_paused:
            if self._timer is None:
                self._timer = self.loop.call_later(CLIENT_SECONDS, self._close_late)
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_late(self) -> None:
        self._timer = None
        if self.flow.read_paused and not self.flow.write_paused:  # it is us who do not read
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
