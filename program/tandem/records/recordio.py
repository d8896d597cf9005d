"""RecordIO: frames of a magic number, a length and a body, as MXNet's tools and Pipe mode write them."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from tandem.errors import UserError

MAGIC = struct.pack("<I", 0xCED7230A)

#: Maximum bytes of a record; larger than any image that is decoded.
LIMIT = 1 << 29

_HEADER = struct.Struct("<4sI")
_LENGTH_BITS = 29
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
#: The parts that may come next, by whether a record has begun.
_EXPECTED = {False: (_WHOLE, _FIRST), True: (_MIDDLE, _LAST)}


def read_records(
    stream: BinaryIO, name: str, *, head: int | None = None, limit: int = LIMIT
) -> Iterator[bytes]:
    """Yield each record's body; with `head` only about its first `head` bytes, and the rest is skipped.

    A writer splits a body at each magic number in it, which it leaves out; the parts are joined with it.
    At most one record is in memory. Raises `UserError` with the position in `name` if the data is not
    RecordIO, a record has more than `limit` bytes, or the stream ends within a record.
    """
    offset = 0
    parts: list[bytes] = []
    size = 0
    while header := stream.read(_HEADER.size):
        if len(header) < _HEADER.size:
            break
        magic, word = _HEADER.unpack(header)
        part, length = word >> _LENGTH_BITS, word & ((1 << _LENGTH_BITS) - 1)
        if magic != MAGIC:
            raise UserError(
                f"{name}: expected a RecordIO record at byte {offset}, beginning with {MAGIC.hex()}; found "
                f"{magic.hex()}: the data is damaged or not RecordIO."
            )
        if part not in _EXPECTED[bool(parts)]:
            raise UserError(
                f"{name}: the RecordIO record at byte {offset} is part {part} of one; expected "
                f"{' or '.join(map(str, _EXPECTED[bool(parts)]))}; the data is damaged."
            )
        size += length
        if size > limit:
            raise UserError(
                f"{name}: the RecordIO record at byte {offset} has {size} bytes or more, the limit is "
                f"{limit}; if whole files were wrapped, set the channel's RecordWrapperType to None."
            )
        padded = length + -length % 4
        wanted = padded if head is None else min(padded, head)
        body = stream.read(wanted)
        if len(body) < wanted:
            break
        _skip(stream, padded - wanted)
        offset += _HEADER.size + padded
        parts.append(body[:length])
        if part in {_WHOLE, _LAST}:
            yield MAGIC.join(parts)
            parts, size = [], 0
    if header or parts:
        raise UserError(
            f"{name} ends within the RecordIO record at byte {offset}; it is cut off, or its writer died."
        )


def write_record(stream: BinaryIO, body: bytes) -> None:
    """Write one record, split where the body has the magic number at a multiple of 4 bytes."""
    cuts = [at for at in range(0, len(body) - 3, 4) if body[at : at + 4] == MAGIC]
    starts, ends = [0, *(cut + 4 for cut in cuts)], [*cuts, len(body)]
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        last = number == len(cuts)
        part = (_WHOLE if last else _FIRST) if number == 0 else (_LAST if last else _MIDDLE)
        chunk = body[start:end]
        stream.write(_HEADER.pack(MAGIC, part << _LENGTH_BITS | len(chunk)) + chunk + bytes(-len(chunk) % 4))


def _skip(stream: BinaryIO, count: int) -> None:
    """Skip bytes with a seek, or by reading them if the stream cannot seek."""
    if stream.seekable():
        stream.seek(count, 1)
    else:
        stream.read(count)
