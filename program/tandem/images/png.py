"""What a PNG file says of itself, and the parts of it that a decoder needs."""

import struct
import zlib

from tandem.errors import ImageError
from tandem.images.limits import check_frames, check_parts, check_size

# Text, profiles and animations are not for a classifier, and libpng inflates a text of a few kilobytes to
# megabytes: 50 of them cost it 1.6 s.
_NEEDED = frozenset({b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"})
# By colour type: samples of a pixel, and how many bits one may have.
_COLORS = {0: (1, (1, 2, 4, 8, 16)), 2: (3, (8, 16)), 3: (1, (1, 2, 4, 8)), 4: (2, (8, 16)), 6: (4, (8, 16))}
_HEADER = ">I4sIIBBBBB"
_DEFLATES_BEST = 1032  # bytes from one, at most
_UNCOUNTED = 1 << 20  # inflated in full these are 1 GB at most, a second's work


def read_png(body: bytes) -> tuple[int, int, bytes]:
    """Give a PNG's width, its height, and the file without what is not needed.

    Raises struct.error where the file ends too early, ImageError where it is damaged or over a limit.
    """
    *start, width, height, depth, color, packing, filters, interlaced = struct.unpack_from(_HEADER, body, 8)
    samples, depths = _COLORS.get(color, (0, ()))
    if start != [13, b"IHDR"] or depth not in depths or packing or filters or interlaced > 1:
        raise _damaged("it does not begin with a valid header")
    check_size("PNG", width, height)
    needed, data = _list_needed(body)
    row = 1 + (width * depth * samples + 7) // 8
    _check_data(data, height * row, 4 * height + 64 if interlaced else 0)
    kept = sum(map(len, needed)) + 8
    return width, height, body if kept == len(body) else b"".join([body[:8], *needed])


def _list_needed(body: bytes) -> tuple[list[memoryview], list[memoryview]]:
    """Give the parts that a decoder needs, and what those of them that are pixels hold."""
    view, position, name = memoryview(body), 8, b""
    needed: list[memoryview] = []
    data: list[memoryview] = []
    seen: set[bytes] = set()
    count = 0
    while name != b"IEND":
        count += 1
        check_parts("PNG", count)
        length, name = struct.unpack_from(">I4s", body, position)
        (checksum,) = struct.unpack_from(">I", body, position + 8 + length)
        end = position + 12 + length
        if name in _NEEDED or not name[0] & 0x20:  # a capital: no decoder may pass over it
            if zlib.crc32(view[position + 4 : end - 4]) != checksum:
                raise _damaged(f"the checksum of its part {name!r} is wrong")
            if name not in _NEEDED or (name == b"IHDR" and needed):
                raise _damaged(f"it has a part {name!r} where none can be")
            if name == b"IDAT":
                data.append(view[position + 8 : end - 4])
            if name == b"IDAT" or name not in seen:  # libpng passes over others, each with a line in the log
                seen.add(name)
                needed.append(view[position:end])
        elif name == b"acTL" and length == 8:
            check_frames("PNG", struct.unpack_from(">I", body, position + 8)[0])
        position = end
    return needed, data


def _check_data(data: list[memoryview], rows: int, interlacing: int) -> None:
    """Compare what the pixels take with what they are said to take: libpng would inflate any surplus too."""
    packed = sum(map(len, data))
    if packed * _DEFLATES_BEST < rows:
        raise struct.error("no more can be in so few bytes")
    most = rows + interlacing
    surplus = packed > most + most // 8 + 65_536
    if not surplus and packed > _UNCOUNTED:
        surplus = _inflates_to_more(data, most)
    if surplus:
        raise _damaged("it holds more data than its pixels take")


def _inflates_to_more(data: list[memoryview], most: int) -> bool:
    inflate = zlib.decompressobj()
    try:
        for part in data:
            rest: bytes | memoryview = part
            while rest and most >= 0:
                most -= len(inflate.decompress(rest, 1 << 20))
                rest = inflate.unconsumed_tail
    except zlib.error as error:
        raise _damaged(f"its pixels cannot be inflated ({error})") from error
    return most < 0


def _damaged(why: str) -> ImageError:
    return ImageError("image_damaged", f"the PNG picture is damaged: {why}")
