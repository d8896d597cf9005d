"""Request bodies: each is read whole within its own limit, and all of them within a common one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from tandem.errors import Overloaded, PayloadTooLarge

Receive = Callable[[], Awaitable[Any]]

OVERLOADED = "the bodies of other requests fill the memory kept for them; try again in a second."


class ClientDisconnected(Exception):
    """The client closed its connection before its request was answered."""


def parse_length(content_length: bytes | None) -> int | None:
    """Return the number in a Content-Length header; `int` alone refuses thousands of zeros."""
    return None if content_length is None else int(content_length.strip().lstrip(b"0") or b"0")


class _Arriving:
    """A body that has not arrived whole, and the task that reads it."""

    def __init__(self) -> None:
        self.size = 0
        self.is_dropped = False
        self.task = asyncio.current_task()


class Bodies:
    """The bodies of the requests in progress; a body counts from its first byte until it is released.

    Each may have `max_body` bytes, 0 for any number, and all together `max_total`. Where one more does not
    fit, the body that has been arriving longest is dropped. A body that is alone always fits.
    """

    def __init__(self, max_body: int, max_total: int) -> None:
        self._max_body = max_body or sys.maxsize
        self._max_total = max_total
        self._total = 0
        self._arriving: dict[_Arriving, None] = {}  # in order of arrival

    async def read(self, content_length: bytes | None, receive: Receive) -> bytes:
        """Return a request's body; the caller releases its length.

        Raises `PayloadTooLarge`, `Overloaded` where it does not fit, and `ClientDisconnected`.
        """
        if (parse_length(content_length) or 0) > self._max_body:
            self._refuse_size()
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        body: bytes = message.get("body", b"")
        if message.get("more_body", False):
            return await self._read_on(body, receive)
        if len(body) > self._max_body:
            self._refuse_size()
        self._make_room(len(body))
        self._total += len(body)
        return body

    def release(self, size: int) -> None:
        """Stop counting a body of `size` bytes."""
        self._total -= size

    async def _read_on(self, chunk: bytes, receive: Receive) -> bytes:
        arriving = _Arriving()
        self._arriving[arriving] = None
        chunks = []
        try:
            while True:
                self._grow(arriving, len(chunk))
                chunks.append(chunk)
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnected
                chunk = message.get("body", b"")
                if not message.get("more_body", False):
                    self._grow(arriving, len(chunk))
                    return b"".join([*chunks, chunk])
        except BaseException:
            self._total -= arriving.size
            if arriving.is_dropped:
                if sys.version_info >= (3, 11) and arriving.task is not None:
                    arriving.task.uncancel()
                raise Overloaded(OVERLOADED) from None
            raise
        finally:
            self._arriving.pop(arriving, None)

    def _grow(self, arriving: _Arriving, size: int) -> None:
        if arriving.size + size > self._max_body:
            self._refuse_size()
        self._make_room(size, arriving)
        arriving.size += size
        self._total += size

    def _make_room(self, size: int, growing: _Arriving | None = None) -> None:
        """Drop the bodies that have been arriving longest until `size` bytes fit; raise `Overloaded`."""
        own = growing.size if growing else 0
        while self._total + size > self._max_total and self._total > own:
            oldest = next(iter(self._arriving), growing)
            if oldest is None or oldest is growing:
                raise Overloaded(OVERLOADED)
            del self._arriving[oldest]
            self._total -= oldest.size
            oldest.size = 0
            oldest.is_dropped = True
            if oldest.task is not None:
                oldest.task.cancel()

    def _refuse_size(self) -> None:
        raise PayloadTooLarge(
            f"the body is over {self._max_body >> 20} MB; send less, or raise SAGEMAKER_MAX_PAYLOAD_IN_MB."
        )
