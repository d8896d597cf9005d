"""TFRecord: frames of a length, a body and checksums of both."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from tandem.errors import UserError

#: Bytes of one record at most; longer than any picture that is decoded.
LIMIT = 1 << 29

#: Bytes before a body: its length, and the length's checksum.
HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")


def read_records(
    stream: BinaryIO, name: str, *, head: int | None = None, limit: int = LIMIT
) -> Iterator[bytes]:
    """Yield each record's body, checked; with `head` only so many bytes, the rest passed over and unchecked.

    Never more than one record is in memory. Raises `UserError` with the byte in `name` where a checksum is
    wrong, a record has more than `limit` bytes, or the stream ends within one.
    """
    offset = 0
    while header := stream.read(HEADER.size):
        if len(header) < HEADER.size:
            break
        if not is_header(header):
            raise UserError(
                f"{name}: at byte {offset} there is no TFRecord: the checksum of its length is wrong; the "
                "data is damaged, or not TFRecord from there on."
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
            f"{name} ends within the TFRecord at byte {offset}; the file is cut off, or what wrote it has "
            "died."
        )


def is_header(header: bytes) -> bool:
    """Whether a TFRecord may begin with these bytes: 12 of them, the last four the checksum of the others."""
    if len(header) != HEADER.size:
        return False
    return bool(HEADER.unpack(header)[1] == _mask(header[:8]))


def _mask(body: bytes) -> int:
    """Give the format's checksum: the CRC-32C, turned and shifted so that it may itself be checksummed."""
    import google_crc32c  # noqa: PLC0415 - what only serves has no need of it

    checksum = int(google_crc32c.value(body))
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
