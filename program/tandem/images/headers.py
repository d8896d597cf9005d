"""The headers of image files, checked before a decoder gets the file."""

import re
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

from tandem.errors import ImageError
from tandem.images.limits import check_bytes, check_frames, check_parts, check_scans, check_size
from tandem.images.tiff import read_tiff

EXPECTED = "JPEG, PNG, BMP, WebP or TIFF"


def identify(body: bytes) -> str:
    """Return an image file's kind by its first bytes; its name and `Content-Type` do not count.

    Raises ImageError for other files, which names their type if it is known.
    """
    for magic, kind in _IMAGES:
        if magic.match(body):
            return kind
    if not body:
        raise ImageError("image_empty", f"the body is empty; expected an image: {EXPECTED}")
    for magic, name in _OTHER_IMAGES:
        if magic.match(body):
            raise ImageError("image_type_unsupported", f"this is {name}; expected {EXPECTED}")
    for magic, name in _NOT_IMAGES:
        if magic.match(body):
            raise ImageError("not_an_image", f"this is {name}; expected {EXPECTED}")
    raise ImageError("not_an_image", f"not an image: it begins with {body[:12]!r}; expected {EXPECTED}")


def _compile(*table: tuple[bytes, str]) -> tuple[tuple[re.Pattern[bytes], str], ...]:
    return tuple((re.compile(magic, re.DOTALL | re.IGNORECASE), name) for magic, name in table)


_IMAGES = tuple(
    (re.compile(magic, re.DOTALL), kind)
    for magic, kind in (
        (rb"\xff\xd8\xff", "JPEG"),
        (rb"\x89PNG\r\n\x1a\n", "PNG"),
        (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "BMP"),
        (rb"RIFF.{4}WEBP", "WebP"),
        (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "TIFF"),
    )
)
_OTHER_IMAGES = _compile(
    (rb"GIF8[79]a", "a GIF"),
    (rb".{4}ftyp(avif|avis)", "an AVIF image"),
    (rb".{4}ftyp(hei[cmsx]|hev[cmx]|mif1|msf1)", "a HEIC image, as phones take"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "a JPEG XL image"),
    (rb"\s{0,64}(<\?xml.{0,1000}?)?<svg", "an SVG drawing"),
    (rb"8BPS", "a Photoshop file"),
    (rb"\0\0\x01\0[^\0]\0", "an icon (ICO)"),
    (rb"v/1\x01", "an OpenEXR image"),
    (rb"P[1-7]\s", "a PNM image"),
    (rb".{128}DICM", "a DICOM file"),
)
_NOT_IMAGES = _compile(
    (rb"%PDF-", "a PDF document"),
    (rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ", "a video"),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf", "an archive"),
    (rb"\x93NUMPY", "a NumPy array; send it as application/x-npy"),
    (
        rb"(data:[^,]{0,100},)?(/9j/|iVBORw0KGgo|UklGR|Qk[0-3]|SUkqA|TU0AK)",
        "base64 text; send the bytes themselves",
    ),
    (rb"--[^\r\n]{1,100}\r?\nContent-", "a form (multipart/form-data); send the image alone"),
    (rb"\s{0,64}<(!doctype html|html)", "a web page"),
    (rb"\s{0,64}[\[{]", "JSON; send it as application/json"),
)


class Header(NamedTuple):
    """An image's kind and size, and the part of its file that a decoder needs."""

    kind: str
    width: int
    height: int
    body: bytes


def read_header(body: bytes) -> Header:
    """Read and check an image file's header; bytes after the image are ignored.

    Raises ImageError for a file that is empty, of another type, cut off, over a limit or damaged. Decoders
    cannot be relied on for this: libjpeg may fill missing pixels with grey, and libpng prints to standard
    error.
    """
    check_bytes(len(body))
    kind = identify(body)
    try:
        return Header(kind, *_READERS[kind](body))
    except (struct.error, OverflowError) as error:  # an offset behind the end of the file
        raise ImageError(
            "image_truncated",
            f"the {kind} image is cut off: it ends after {len(body)} bytes; send the whole file",
        ) from error


# A marker with a length: 00 and FF are data and padding, 01 and D0 to D7 have no length.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])", re.DOTALL)
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_READ = {0xC0, 0xC1, 0xC2, 0xC9}  # baseline, extended, progressive, and extended with arithmetic coding
_JPEG_HUFFMAN = _JPEG_READ - {0xC9}
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9
_BMP_PLAIN = (0, 3, 6)  # uncompressed rows, with or without bit masks

# Each reader returns the width, the height and the bytes that a decoder needs. It raises struct.error if the
# file ends too early.


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
            if width:  # libjpeg uses the first
                raise ImageError("image_damaged", "the JPEG image is damaged: it has two headers")
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
            f"the JPEG image cannot be read: its process is {code - 0xC0} with {samples} samples of {bits} "
            "bits, expected baseline or progressive with 1, 3 or 4 of 8 bits",
        )
    if code in _JPEG_HUFFMAN and len(body) * 8 < width * height // 64:
        raise struct.error("8 x 8 pixels take at least one bit")
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
        raise struct.error("the RIFF size is larger")
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


# A classifier needs no text, profiles or animations, and libpng inflates a text chunk of a few kilobytes to
# megabytes: 50 of them take 1.6 s.
_PNG_NEEDED = frozenset({b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"})
# By color type: samples per pixel, and the allowed bits per sample.
_PNG_TYPES = {
    0: (1, (1, 2, 4, 8, 16)),
    2: (3, (8, 16)),
    3: (1, (1, 2, 4, 8)),
    4: (2, (8, 16)),
    6: (4, (8, 16)),
}
_PNG_HEADER = ">I4sIIBBBBB"
_MAX_DEFLATE_RATIO = 1032
_PNG_TRUSTED = 1 << 20  # bytes that inflate to 1 GB at most, which takes a second


def _read_png(body: bytes) -> tuple[int, int, bytes]:
    *start, width, height, depth, color, compression, filters, interlaced = struct.unpack_from(
        _PNG_HEADER, body, 8
    )
    samples, depths = _PNG_TYPES.get(color, (0, ()))
    if start != [13, b"IHDR"] or depth not in depths or compression or filters or interlaced > 1:
        raise _damaged_png("it does not begin with a valid header")
    check_size("PNG", width, height)
    needed, data = _list_png_chunks(body)
    row = 1 + (width * depth * samples + 7) // 8
    _check_png_data(data, height * row, 4 * height + 64 if interlaced else 0)
    kept = sum(map(len, needed)) + 8
    return width, height, body if kept == len(body) else b"".join([body[:8], *needed])


def _list_png_chunks(body: bytes) -> tuple[list[memoryview], list[memoryview]]:
    """Return the chunks that a decoder needs, and the contents of those with pixels."""
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
        if name in _PNG_NEEDED or not name[0] & 0x20:  # a capital letter: a critical chunk
            if zlib.crc32(view[position + 4 : end - 4]) != checksum:
                raise _damaged_png(f"the checksum of its chunk {name!r} is wrong")
            if name not in _PNG_NEEDED or (name == b"IHDR" and needed):
                raise _damaged_png(f"its chunk {name!r} is not allowed there")
            if name == b"IDAT":
                data.append(view[position + 8 : end - 4])
            if name == b"IDAT" or name not in seen:  # libpng ignores repeated ones and logs a line for each
                seen.add(name)
                needed.append(view[position:end])
        elif name == b"acTL" and length == 8:
            check_frames("PNG", struct.unpack_from(">I", body, position + 8)[0])
        position = end
    return needed, data


def _check_png_data(data: list[memoryview], rows: int, interlacing: int) -> None:
    """Compare the data with the pixels that the header declares: libpng would inflate any surplus too."""
    packed = sum(map(len, data))
    if packed * _MAX_DEFLATE_RATIO < rows:
        raise struct.error("too few bytes for the pixels")
    limit = rows + interlacing
    surplus = packed > limit + limit // 8 + 65_536
    if not surplus and packed > _PNG_TRUSTED:
        surplus = _inflates_to_more(data, limit)
    if surplus:
        raise _damaged_png("it has more data than its pixels need")


def _inflates_to_more(data: list[memoryview], limit: int) -> bool:
    inflate = zlib.decompressobj()
    try:
        for part in data:
            rest: bytes | memoryview = part
            while rest and limit >= 0:
                limit -= len(inflate.decompress(rest, 1 << 20))
                rest = inflate.unconsumed_tail
    except zlib.error as error:
        raise _damaged_png(f"its pixels cannot be inflated ({error})") from error
    return limit < 0


def _damaged_png(why: str) -> ImageError:
    return ImageError("image_damaged", f"the PNG image is damaged: {why}")


_READERS: dict[str, Callable[[bytes], tuple[int, int, bytes]]] = {
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "BMP": _read_bmp,
    "WebP": _read_webp,
    "TIFF": read_tiff,
}
