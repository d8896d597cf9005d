"""A client's connection, and what of its next request has been read."""

from __future__ import annotations

import io
import re
import socket
from collections import deque
from typing import Any

from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn

#: A request's head, and what of a body, that the loop reads; a thread reads what is beyond.
MAX_HEAD = 64 * 1024
MAX_READ_AHEAD = 8 * 1024 * 1024

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect:", re.IGNORECASE)


def find_length(received: bytes | bytearray) -> int | None:
    """Give the bytes of a request from its beginning to the end of its body.

    None where that is not known: its head is not whole, its body is chunked, or the client waits to be told
    to go on with it.
    """
    end = received.find(b"\r\n\r\n", 0, MAX_HEAD)
    if end < 0:
        return None
    head = bytes(received[: end + 2])
    if _EXPECT.search(head) or _CHUNKED.search(head):
        return None
    length = _LENGTH.search(head)
    return end + 4 + int(length[1] if length else 0)


def is_ready(received: bytes | bytearray, length: int | None) -> bool:
    """Tell whether a thread can go on with a request of `length` without waiting for the client.

    That is so for a whole request, for one that is longer than the loop reads ahead, and for a client that
    waits to be told to continue. Whether it is valid is not looked at.
    """
    if length is not None:
        return len(received) >= min(length, MAX_READ_AHEAD)
    end = received.find(b"\r\n\r\n", 0, MAX_HEAD)
    if end < 0:
        return len(received) >= MAX_HEAD
    if _EXPECT.search(bytes(received[: end + 2])):
        return True
    return received.endswith(b"0\r\n\r\n") or len(received) >= MAX_READ_AHEAD


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

    def settimeout(self, value: float | None) -> None:
        """Remember how long `recv` may wait; None: as long as the socket's own option says."""
        self._patience = value

    def gettimeout(self) -> float | None:
        """Give how long `recv` may wait."""
        return self._patience

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive, within the time set."""
        if self._patience is None or flags:
            return super().recv(size, flags)
        super().settimeout(self._patience)
        try:
            return super().recv(size)
        finally:
            super().settimeout(None)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Keep `data` for `flush`: gunicorn writes head and body apart, and one packet will do."""
        del flags
        self.unsent += data

    def flush(self) -> None:
        """Send what the client takes at once; the rest stays in `unsent`, or nothing where it is gone."""
        try:
            del self.unsent[: self.send(self.unsent, socket.MSG_DONTWAIT)]
        except BlockingIOError:
            pass
        except OSError:
            self.unsent.clear()


class _Unreader(SocketUnreader):  # type: ignore[misc]  # gunicorn has no types
    """Gives the parser what the loop has read, then what the socket has."""

    def __init__(self, client: socket.socket) -> None:
        super().__init__(client)
        self._pieces: deque[bytes] = deque()

    def feed(self, received: bytearray) -> None:
        """Take what the loop has read: the head apart, or the parser would copy the body with it."""
        head, end, body = received.partition(b"\r\n\r\n")
        self._pieces += [bytes(piece) for piece in (head + end, body) if piece]

    def chunk(self, size_hint: int | None = None) -> bytes:
        return self._pieces.popleft() if self._pieces else super().chunk(size_hint)

    def keep(self) -> None:
        """Let the worker see what is left: the beginning of a next request."""
        while self._pieces:
            self.buf.seek(0, io.SEEK_END)
            self.buf.write(self._pieces.popleft())


class Connection(TConn):  # type: ignore[misc]
    """A connection and what of its next request has been read.

    `since` when the request has waited for a thread, and the threads of which `pool` will handle it.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.received = bytearray()
        self.length: int | None = None
        self.since = 0.0
        self.pool: Any = None

    def take(self, chunk: memoryview) -> bool:
        """Take bytes that came; tell whether a thread can go on."""
        self.received += chunk
        if self.length is None:
            self.length = find_length(self.received)
        return is_ready(self.received, self.length)

    @property
    def is_whole(self) -> bool:
        """Whether all of a request is here, so that its thread waits for nobody."""
        return self.length is not None and len(self.received) >= self.length

    def start(self) -> None:
        """Hand what was read to the parser, in a thread."""
        if not self.initialized:
            self.init()
            self.parser.unreader = _Unreader(self.sock)
        self.parser.unreader.feed(self.received)
        self.received, self.length = bytearray(), None
        self.data_ready = True

    def has_hung_up(self) -> bool:
        """Tell whether the client has closed its side."""
        try:
            return not self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
