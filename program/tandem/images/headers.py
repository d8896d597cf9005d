"""What a picture file says of itself, read before any decoder is trusted with it."""

import re
import struct
from collections.abc import Callable
from typing import NamedTuple

from tandem.errors import ImageError
from tandem.images.limits import check_bytes, check_frames, check_parts, check_scans, check_size
from tandem.images.png import read_png
from tandem.images.signatures import identify
from tandem.images.tiff import read_tiff


class Header(NamedTuple):
    """A picture's kind and size, and as much of its file as a decoder needs."""

    kind: str
    width: int
    height: int
    body: bytes


def read_header(body: bytes) -> Header:
    """Read a picture file's header; bytes after the picture do not matter.

    ImageError: empty, of another type, cut off, over a limit, or damaged as far as the file itself can tell.
    Decoders are not relied on for this: libjpeg may fill what is missing with grey, and libpng prints to
    standard error.
    """
    check_bytes(len(body))
    kind = identify(body)
    try:
        return Header(kind, *_READERS[kind](body))
    except (struct.error, OverflowError) as error:  # behind the end, or where no memory can be
        raise ImageError(
            "image_truncated",
            f"the {kind} picture is cut off: it ends after {len(body)} bytes; send all of it",
        ) from error


# A marker that has a length: 00 and FF are data and filling, 01 and D0 to D7 stand alone.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])", re.DOTALL)
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_READ = {0xC0, 0xC1, 0xC2, 0xC9}  # baseline, extended, progressive, and extended with arithmetic coding
_JPEG_HUFFMAN = _JPEG_READ - {0xC9}
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9
_BMP_PLAIN = (0, 3, 6)  # rows as they are, with or without masks of the channels' bits

# Each function below gives width, height and what a decoder needs, and raises struct.error where the file
# ends too early.


def _read_jpeg(body: bytes) -> tuple[int, int, bytes]:
    width, height, position, scans, parts = 0, 0, 2, 0, 0
    while marker := _JPEG_MARKER.search(body, position):
        code, position = marker[1][0], marker.end()
        if code == _JPEG_END:
            check_size("JPEG", width, height)
            check_scans(width, height, scans)
            return width, height, body
        parts += 1
        check_parts("JPEG", parts)
        (length,) = struct.unpack_from(">H", body, position)
        if code in _JPEG_FRAMES:
            if width:  # libjpeg goes by the first
                raise ImageError("image_damaged", "the JPEG picture is damaged: it has two headers")
            width, height = _read_jpeg_frame(code, body, position)
        scans += code == _JPEG_SCAN
        position += length
    raise struct.error("no end marker")


def _read_jpeg_frame(code: int, body: bytes, position: int) -> tuple[int, int]:
    bits, height, width, samples = struct.unpack_from(">BHHB", body, position + 2)
    check_size("JPEG", width, height)
    if code not in _JPEG_READ or bits != 8 or samples not in (1, 3, 4):
        raise ImageError(
            "image_variant_unsupported",
            f"the JPEG picture cannot be read: its process is {code - 0xC0} with {samples} samples of {bits} "
            "bits, expected baseline or progressive with 1, 3 or 4 of 8 bits",
        )
    if code in _JPEG_HUFFMAN and len(body) * 8 < width * height // 64:
        raise struct.error("8 x 8 pixels take one bit at least")
    return width, height


def _read_bmp(body: bytes) -> tuple[int, int, bytes]:
    offset, header = struct.unpack_from("<II", body, 10)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", body, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", body, 18)
    width, height = abs(width), abs(height)
    check_size("BMP", width, height)
    if compression in _BMP_PLAIN and len(body) < offset + (width * bits + 31) // 32 * 4 * height:
        raise struct.error("rows are missing")
    return width, height, body


def _read_webp(body: bytes) -> tuple[int, int, bytes]:
    size, form = struct.unpack_from("<I4x4s", body, 4)
    if len(body) < size + 8:
        raise struct.error("the RIFF size says more")
    if form == b"VP8X":
        low, high, wide, tall = struct.unpack_from("<HBHB", body, 24)
        width, height = 1 + low + (high << 16), 1 + wide + (tall << 16)
        _check_webp_parts(body, size + 8)
    elif form == b"VP8L":
        (bits,) = struct.unpack_from("<I", body, 21)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", body, 26))
    check_size("WebP", width, height)
    return width, height, body


def _check_webp_parts(body: bytes, end: int) -> None:
    position, parts, frames = 12, 0, 0
    while position + 8 <= end:
        name, length = struct.unpack_from("<4sI", body, position)
        position += 8 + length + length % 2
        parts, frames = parts + 1, frames + (name == b"ANMF")
        check_parts("WebP", parts)
        check_frames("WebP", frames)


_READERS: dict[str, Callable[[bytes], tuple[int, int, bytes]]] = {
    "JPEG": _read_jpeg,
    "PNG": read_png,
    "BMP": _read_bmp,
    "WebP": _read_webp,
    "TIFF": read_tiff,
}
