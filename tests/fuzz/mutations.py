"""Mutations of files: anywhere, or by the parts of their format."""

from __future__ import annotations

import random
import re
import struct
import zlib
from collections.abc import Callable, Sequence

from image_files import chunk, riff

NUMBERS = (0, 1, 2, 3, 7, 8, 16, 100, 127, 128, 255, 256, 4096, 10_000, 32_767, 65_500, 65_535, 65_536,
           1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]


def mutate(rng: random.Random, body: bytes, others: Sequence[bytes]) -> bytes:
    """Apply one to six mutations; half of them by parts, so that checksums stay valid."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        by_parts = next((change for magic, change in BY_PARTS if body.startswith(magic)), None)
        if by_parts is not None and rng.random() < 0.5:
            body = by_parts(rng, body)
        else:
            body = rng.choice(ANYWHERE)(rng, body, others)
    return body


def _span(rng: random.Random, body: bytes, longest: int = 200) -> tuple[int, int]:
    start = rng.randrange(len(body) + 1)
    return start, min(len(body), start + rng.randint(1, longest))


def _position(rng: random.Random, body: bytes) -> int:
    """Return a position in a file, half the time in its header."""
    return rng.randrange(min(len(body), 200) if rng.random() < 0.5 else len(body)) if body else 0


def flip(rng: random.Random, body: bytes, _others: Sequence[bytes]) -> bytes:
    changed = bytearray(body)
    for _ in range(rng.choice((1, 1, 4, 30)) if body else 0):
        changed[_position(rng, body)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def put_number(rng: random.Random, body: bytes, _others: Sequence[bytes]) -> bytes:
    position, form = _position(rng, body), rng.choice(("B", "<H", ">H", "<I", ">I", "<Q"))
    size = struct.calcsize(form)
    number = struct.pack(form, rng.choice(NUMBERS) % (1 << 8 * size))
    return body[:position] + number + body[position + size :]


def cut(rng: random.Random, body: bytes, _others: Sequence[bytes]) -> bytes:
    return body[: rng.randrange(len(body) + 1)]


def remove(rng: random.Random, body: bytes, _others: Sequence[bytes]) -> bytes:
    start, end = _span(rng, body)
    return body[:start] + body[end:]


def repeat(rng: random.Random, body: bytes, _others: Sequence[bytes]) -> bytes:
    start, end = _span(rng, body)
    return body[:start] + body[start:end] * rng.choice((2, 2, 3, 50)) + body[end:]


def insert(rng: random.Random, body: bytes, _others: Sequence[bytes]) -> bytes:
    position = rng.randrange(len(body) + 1)
    return (
        body[:position]
        + rng.choice((rng.randbytes(rng.randint(1, 40)), b"\xff" * 60, bytes(60)))
        + body[position:]
    )


def overwrite(rng: random.Random, body: bytes, _others: Sequence[bytes]) -> bytes:
    start, end = _span(rng, body)
    return body[:start] + rng.choice((rng.randbytes(end - start), bytes(end - start))) + body[end:]


def splice(rng: random.Random, body: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    return body[: rng.randrange(len(body) + 1)] + other[rng.randrange(len(other) + 1) :]


def append(rng: random.Random, body: bytes, others: Sequence[bytes]) -> bytes:
    return body + rng.choice((rng.randbytes(30), rng.choice(others)))


ANYWHERE: tuple[Mutation, ...] = (
    flip, flip, put_number, put_number, cut, remove, repeat, insert, overwrite, splice, append,
)  # fmt: skip


def _rearrange(rng: random.Random, parts: list[bytes]) -> list[bytes]:
    """Repeat, remove, swap, or mutate one of a file's parts."""
    index = rng.randrange(len(parts)) if parts else 0
    match rng.randrange(5) if parts else 5:
        case 0:
            return parts[:index] + parts[index : index + 1] * rng.choice((2, 3, 200)) + parts[index + 1 :]
        case 1:
            return parts[:index] + parts[index + 1 :]
        case 2:
            other = rng.randrange(len(parts))
            parts[index], parts[other] = parts[other], parts[index]
        case 3 | 4:
            parts[index] = rng.choice(ANYWHERE[:9])(rng, parts[index], ())
        case _:
            pass
    return parts


def change_png(rng: random.Random, body: bytes) -> bytes:
    """Rearrange or mutate the chunks, and update checksums and compression."""
    parts, position = [], 8
    while position + 12 <= len(body):
        (length,) = struct.unpack_from(">I", body, position)
        parts.append(body[position + 4 : position + 8 + length])
        position += 12 + length
    if rng.random() < 0.3:
        for index, part in enumerate(parts):
            if part[:4] == b"IDAT":
                rows = rng.choice(ANYWHERE[:9])(rng, _inflate(part[4:]), ())
                parts[index] = b"IDAT" + zlib.compress(rows)
    else:
        parts = _rearrange(rng, parts)
    return body[:8] + b"".join(chunk(part[:4].ljust(4, b"x"), part[4:]) for part in parts)


def _inflate(packed: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(packed, 1 << 20)
    except zlib.error:
        return packed


def change_jpeg(rng: random.Random, body: bytes) -> bytes:
    starts = [found.start() for found in re.finditer(rb"\xff[^\x00\xff\xd0-\xd7]", body)]
    ends = [*starts[1:], len(body)]
    return b"".join(_rearrange(rng, [body[start:end] for start, end in zip(starts, ends, strict=True)]))


def change_riff(rng: random.Random, body: bytes) -> bytes:
    parts, position = [], 12
    while position + 8 <= len(body):
        (length,) = struct.unpack_from("<I", body, position + 4)
        parts.append(body[position : position + 4] + body[position + 8 : position + 8 + length])
        position += 8 + length + length % 2
    return riff(*[(part[:4].ljust(4, b"x"), part[4:]) for part in _rearrange(rng, parts)])


def change_tiff(rng: random.Random, body: bytes) -> bytes:
    """Mutate one entry of the first directory: its tag, type, count, or first value."""
    order, big = ("<" if body[:1] == b"I" else ">"), body[2:4] in (b"+\0", b"\0+")
    try:
        (start,) = struct.unpack_from(order + ("Q" if big else "I"), body, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), body, start)
        place = start + (8 if big else 2) + (20 if big else 12) * rng.randrange(min(count, 30) or 1)
        offset, form = rng.choice(
            ((0, "H"), (2, "H"), (4, "I"), (12 if big else 8, "I"), (12 if big else 8, "H"))
        )
        if rng.random() < 0.5:
            changed = bytearray(body)
            number = rng.choice((*NUMBERS, *range(256, 300), *range(320, 326), 5, 32773))
            struct.pack_into(order + form, changed, place + offset, number % (1 << 8 * struct.calcsize(form)))
            return bytes(changed)
        size = 20 if big else 12
        entry, other = body[place : place + size], place + size * rng.randrange(-5, 5)
        return body[:other] + entry + body[other + size :] if other >= 0 else body
    except (struct.error, OverflowError):
        return body


BY_PARTS = (
    (b"\x89PNG", change_png),
    (b"\xff\xd8", change_jpeg),
    (b"RIFF", change_riff),
    (b"II", change_tiff),
    (b"MM", change_tiff),
)
