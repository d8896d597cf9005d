"""What a picture file says of itself, read before any decoder is trusted with it."""

import re
import struct
import zlib
from collections.abc import Callable

from tandem.errors import UserError

EXPECTED = "JPEG, PNG, BMP, WebP or TIFF"


def measure(body: bytes) -> tuple[str, int, int]:
    """Give a picture file's kind, width and height; bytes after the picture do not matter.

    UserError: empty, not a picture, cut off, or damaged as far as the file itself can tell. Decoders are not
    relied on for this: libjpeg may fill what is missing with grey, and libpng prints to standard error.
    """
    if not body:
        raise UserError(f"got no bytes at all, expected a picture: {EXPECTED}")
    matching = [(kind, read_size) for magic, kind, read_size in _KINDS if magic.match(body)]
    if not matching:
        raise UserError(f"not a picture: it begins with {body[:12]!r}, expected {EXPECTED}")
    kind, read_size = matching[0]
    try:
        width, height = read_size(body)
    except struct.error as error:
        raise UserError(
            f"the {kind} picture is cut off: it ends after {len(body)} bytes; send all of it"
        ) from error
    if width <= 0 or height <= 0:
        raise UserError(f"the {kind} picture is damaged: its header says {width} x {height} pixels")
    return kind, width, height


_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_END = 0xD9
_BMP_PLAIN = (0, 3, 6)  # rows as they are, with or without masks of the channels' bits

# Each function below gives (width, height), and raises struct.error where the file ends too early.


def _jpeg_size(body: bytes) -> tuple[int, int]:
    size, position = (0, 0), 2
    while marker := _JPEG_MARKER.search(body, position):
        code, position = marker[1][0], marker.end()
        if code == _JPEG_END:
            return size
        (length,) = struct.unpack_from(">H", body, position)
        if code in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", body, position + 3)
            size = (width, height)
        position += length
    raise struct.error("no end marker")


def _png_size(body: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", body, 16)
    view, position, name = memoryview(body), 8, b""
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", body, position)
        (checksum,) = struct.unpack_from(">I", body, position + 8 + length)
        if zlib.crc32(view[position + 4 : position + 8 + length]) != checksum:
            raise UserError(f"the PNG picture is damaged: the checksum of its part {name!r} is wrong")
        position += 12 + length
    return width, height


def _bmp_size(body: bytes) -> tuple[int, int]:
    offset, header = struct.unpack_from("<II", body, 10)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", body, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", body, 18)
    width, height = abs(width), abs(height)
    if compression in _BMP_PLAIN and len(body) < offset + (width * bits + 31) // 32 * 4 * height:
        raise struct.error("rows are missing")
    return width, height


def _webp_size(body: bytes) -> tuple[int, int]:
    size, form = struct.unpack_from("<I4x4s", body, 4)
    if len(body) < size + 8:
        raise struct.error("the RIFF size says more")
    if form == b"VP8X":
        low, high, wide, tall = struct.unpack_from("<HBHB", body, 24)
        return 1 + low + (high << 16), 1 + wide + (tall << 16)
    if form == b"VP8L":
        (bits,) = struct.unpack_from("<I", body, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", body, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff_size(body: bytes) -> tuple[int, int]:
    order = "<" if body.startswith(b"II") else ">"
    (directory,) = struct.unpack_from(f"{order}I", body, 4)
    (count,) = struct.unpack_from(f"{order}H", body, directory)
    found = {}
    for index in range(count):
        position = directory + 2 + 12 * index
        tag, kind = struct.unpack_from(f"{order}HH", body, position)
        (found[tag],) = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", body, position + 8)
    return found.get(256, 0), found.get(257, 0)


_KINDS: tuple[tuple[re.Pattern[bytes], str, Callable[[bytes], tuple[int, int]]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG", _jpeg_size),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG", _png_size),
    (re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL), "BMP", _bmp_size),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "WebP", _webp_size),
    (re.compile(rb"II\*\0|MM\0\*"), "TIFF", _tiff_size),
)
