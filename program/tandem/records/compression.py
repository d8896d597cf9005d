"""Decompression of gzip streams, recognized by their first bytes and not by a name."""

import gzip
import io
import zlib

from tandem.errors import UserError

MAGIC = b"\x1f\x8b\x08"


def decompress(stream: io.BufferedReader, name: str) -> io.BufferedReader:
    """Return the stream itself, or the decompressed content if it is gzip, of one or more members.

    Closing the result closes `stream`. Reading raises `UserError` if the gzip is damaged or cut off.
    """
    if stream.peek(len(MAGIC))[: len(MAGIC)] != MAGIC:
        return stream
    return io.BufferedReader(_GzipContent(stream, name), 1 << 18)


class _GzipContent(io.RawIOBase):
    """The content of a gzip stream."""

    def __init__(self, stream: io.BufferedReader, name: str) -> None:
        super().__init__()
        self._stream = stream
        self._name = name
        self._content = gzip.GzipFile(fileobj=stream, mode="rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            return self._content.readinto(buffer)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(
                f"{self._name}: its gzip cannot be unpacked: {error}; the file is damaged or cut off."
            ) from error

    def close(self) -> None:
        """Close the content and the stream below."""
        if not self.closed:
            self._content.close()
            self._stream.close()
        super().close()
