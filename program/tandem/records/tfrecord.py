"""TFRecord: frames of a length, a body and checksums of both."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from tandem.errors import UserError

#: Maximum bytes of a record; larger than any image that is decoded.
LIMIT = 1 << 29

#: The bytes before a body: its length and the length's checksum.
HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")


def read_records(
    stream: BinaryIO, name: str, *, head: int | None = None, limit: int = LIMIT
) -> Iterator[bytes]:
    """Yield each record's body, checked; with `head` only its first `head` bytes, and the rest is skipped.

    At most one record is in memory. Raises `UserError` with the position in `name` if a checksum is wrong, a
    record has more than `limit` bytes, or the stream ends within a record.
    """
    offset = 0
    while header := stream.read(HEADER.size):
        if len(header) < HEADER.size:
            break
        if not is_header(header):
            raise UserError(
                f"{name}: expected a TFRecord at byte {offset}; the checksum of its length is wrong: the "
                "data is damaged or not TFRecord."
            )
        length, _ = HEADER.unpack(header)
        if length > limit:
            raise UserError(
                f"{name}: the TFRecord at byte {offset} has {length} bytes, the limit is {limit}; write "
                "smaller records."
            )
        if head is not None and length > head and stream.seekable():
            body = stream.read(head)
            stream.seek(length - head + _CHECKSUM.size, 1)
            complete = len(body) == head
        else:
            body, checksum = stream.read(length), stream.read(_CHECKSUM.size)
            complete = len(checksum) == _CHECKSUM.size
            if complete and _CHECKSUM.unpack(checksum)[0] != _mask(body):
                raise UserError(
                    f"{name}: the TFRecord at byte {offset} is damaged: its checksum is wrong; write the "
                    "file again."
                )
        if not complete:
            break
        yield body if head is None else body[:head]
        offset += HEADER.size + length + _CHECKSUM.size
    if header:
        raise UserError(
            f"{name} ends within the TFRecord at byte {offset}; it is cut off, or its writer died."
        )


def is_header(header: bytes) -> bool:
    """Return whether these are the first 12 bytes of a TFRecord: the last four are the others' checksum."""
    if len(header) != HEADER.size:
        return False
    return bool(HEADER.unpack(header)[1] == _mask(header[:8]))


def _mask(body: bytes) -> int:
    """Return the format's masked checksum: the CRC-32C, rotated and shifted."""
    import google_crc32c  # noqa: PLC0415 - serving does not need it

    checksum = int(google_crc32c.value(body))
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
