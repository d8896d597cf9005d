"""How far a request has come, told from its bytes: where it ends, and whether its client waits for a word."""

from __future__ import annotations

import re

from tandem.serving.plain import Environ, read_plain

#: A request's head, and all of a request, that the loop reads; a thread reads what is beyond.
MAX_HEAD = 64 * 1024
MAX_READ_AHEAD = 8 * 1024 * 1024
#: The line that tells a chunk's size may have extensions of so many bytes.
MAX_CHUNK_LINE = 1024

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(?:0*(\d{1,15})[ \t]*\r\n)?", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect:[ \t]*([^\r]*)", re.IGNORECASE)
_CHUNK_SIZE = re.compile(rb"0*([0-9a-f]{1,15})(?![0-9a-f])", re.IGNORECASE)


class Reading:
    """What has been found in a request so far; whether it is valid is for the parser to say."""

    def __init__(self) -> None:
        #: Bytes of its head, once all of it is there.
        self.head = 0
        #: What is in the head of a plain request for scoring, the same moment.
        self.plain: Environ | None = None
        #: Bytes from its beginning to the end of its body, once they are known.
        self.length: int | None = None
        #: Whether its client sends the body only when it is told to go on.
        self.awaits_word = False
        self._chunk = 0  # where the next chunk begins
        self._is_broken = False  # reading on would not help

    def is_ready(self, received: bytearray) -> bool:
        """Tell whether a thread can go on with what was received without waiting for the client.

        That is so for a whole request, for one that is longer than the loop reads ahead, and for one that
        the parser will refuse. Each call goes on where the last one ended.
        """
        if not self.head:
            end = received.find(b"\r\n\r\n", 0, MAX_HEAD)
            if end < 0:
                return len(received) >= MAX_HEAD
            self._read_head(bytes(received[: end + 2]))
        if self.length is None and not self._is_broken:
            self._read_chunks(received)
        needed = MAX_READ_AHEAD if self.length is None else min(self.length, MAX_READ_AHEAD)
        return self._is_broken or len(received) >= needed

    def is_whole(self, received: bytearray) -> bool:
        """Tell whether all of the request is there."""
        return self.length is not None and len(received) >= self.length

    def _read_head(self, head: bytes) -> None:
        self.head = self._chunk = len(head) + 2
        self.plain = read_plain(head)
        if self.plain is not None:
            self.length = self.head + int(self.plain["CONTENT_LENGTH"])
            return
        if expected := _EXPECT.search(head):
            self.awaits_word = expected[1].strip().lower() == b"100-continue"
            self._is_broken = not self.awaits_word
        if not _CHUNKED.search(head):
            length = _LENGTH.search(head)
            if length and not length[1]:
                self._is_broken = True  # no number, or one that nobody sends
            else:
                self.length = self.head + int(length[1] if length else 0)

    def _read_chunks(self, received: bytearray) -> None:
        while (end := received.find(b"\r\n", self._chunk, self._chunk + MAX_CHUNK_LINE)) >= 0:
            size = _CHUNK_SIZE.match(received, self._chunk, end)
            if size is None:
                self._is_broken = True
                return
            if not int(size[1], 16):  # the last one; lines may follow, then an empty one
                last = received.find(b"\r\n\r\n", end)
                self.length = last + 4 if last >= 0 else None
                return
            following = end + 2 + int(size[1], 16) + 2
            if following > len(received):
                return
            self._chunk = following
        self._is_broken = len(received) >= self._chunk + MAX_CHUNK_LINE
