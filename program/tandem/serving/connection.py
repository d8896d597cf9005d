"""A client's connection, and what of its next request has been read."""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from typing import Any

from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn

from tandem.serving.reading import Reading


class Client(socket.socket):
    """A client's socket; what is written to it is collected, and sent without waiting for a slow reader.

    It always blocks as far as the kernel knows, and who must not wait says so by `MSG_DONTWAIT`: to switch
    to and fro, as gunicorn does, would give up the interpreter lock six times a request.
    """

    def __init__(self, accepted: socket.socket) -> None:
        super().__init__(fileno=accepted.detach())
        super().settimeout(None)
        self.unsent = bytearray()
        self._patience: float | None = None

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001  # the socket's signature
        """Change nothing, see above."""

    def send(self, data: Any, flags: int = 0) -> int:
        """Send nothing: of gunicorn's, that is the word to go on, which the loop has given."""
        del flags
        return len(data)

    def send_now(self, data: Any) -> int:
        """Send what goes without waiting; give how many bytes that was, raise `OSError`."""
        return super().send(data, socket.MSG_DONTWAIT)

    def settimeout(self, value: float | None) -> None:
        """Remember how long `recv` may wait; None: as long as the socket's own option says."""
        self._patience = value

    def gettimeout(self) -> float | None:
        """Give how long `recv` may wait."""
        return self._patience

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive, within the time set."""
        if self._patience is None:
            return super().recv(size, flags)
        super().settimeout(self._patience)
        try:
            return super().recv(size, flags)
        finally:
            super().settimeout(None)

    def has_hung_up(self) -> bool:
        """Tell whether the client has closed its side."""
        try:
            return not super().recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send `data` with what was written before it: head and body come apart, and one packet will do.

        What is written alone waits for `flush`.
        """
        del flags
        is_body = bool(self.unsent)
        self.unsent += data
        if is_body:
            self.flush()

    def flush(self) -> None:
        """Send what the client takes at once; the rest stays in `unsent`, or nothing where it is gone."""
        try:
            if self.unsent:
                del self.unsent[: self.send_now(self.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self.unsent.clear()


class _Unreader(SocketUnreader):  # type: ignore[misc]  # gunicorn has no types
    """Gives the parser what the loop has read, then what the socket has."""

    def __init__(self, client: socket.socket) -> None:
        super().__init__(client)
        self._pieces: deque[bytes] = deque()

    def feed(self, *pieces: bytes) -> None:
        """Take what the loop has read: the head apart, or the parser would copy the body with it."""
        self._pieces += filter(None, pieces)

    def chunk(self, size_hint: int | None = None) -> bytes:
        return self._pieces.popleft() if self._pieces else super().chunk(size_hint)

    def take_left(self) -> bytes:
        """Give back what was read and not used: the beginning of a next request."""
        left = b"".join([self.take_buffered(), *self._pieces])
        self._pieces.clear()
        return left


class Connection(TConn):  # type: ignore[misc]
    """A connection and what of its next request has been read.

    `since` when the request has waited for a thread, and the threads of which `pool` will handle it. What
    comes while it `is_handled` is kept `ahead`; `has_ended` tells that the client has closed its side by
    then. The loop's are the events it is `watched_for` and the `callback` that they call.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.received = bytearray()
        self.reading = Reading()
        self.since = 0.0
        self.pool: Any = None
        self.watched_for = 0
        self.callback: Any = None
        self.is_handled = False
        self.has_ended = False
        self.ahead = bytearray()

    def take(self, chunk: memoryview) -> bool:
        """Take bytes that came; tell whether a thread can go on."""
        self.received += chunk
        return self.reading.is_ready(self.received)

    @property
    def is_whole(self) -> bool:
        """Whether all of a request is here, so that its thread waits for nobody."""
        return self.reading.is_whole(self.received)

    def let_go_on(self) -> None:
        """Tell a client to send its body that waits to be told; it must not cost a thread meanwhile."""
        if self.reading.awaits_word:
            self.reading.awaits_word = False
            with contextlib.suppress(OSError):
                self.sock.send_now(b"HTTP/1.1 100 Continue\r\n\r\n")

    def start(self) -> None:
        """Hand the request that was read to the parser, in a thread; what follows it stays."""
        if not self.initialized:
            self.init()
            self.parser.unreader = _Unreader(self.sock)
        head = bytes(self.received[: self.reading.head])
        self.parser.unreader.feed(head, self.take_body())

    def take_body(self) -> bytes:
        """Take what is here of a request's body, in a thread; what follows it stays."""
        end = self.reading.length if self.is_whole else len(self.received)
        with memoryview(self.received) as received:
            body = bytes(received[self.reading.head : end])
        self.received = self.received[end:]
        return body

    def start_next(self) -> bool:
        """Begin with what was read of a next request; tell whether a thread can go on with it."""
        if self.initialized:
            self.received[:0] = self.parser.unreader.take_left()
        if self.ahead:
            self.received += self.ahead
            self.ahead = bytearray()
        self.reading = Reading()
        return self.reading.is_ready(self.received)
