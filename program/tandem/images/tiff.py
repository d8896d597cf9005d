"""The header of a TIFF or BigTIFF file's first page."""

import struct
from dataclasses import dataclass

from tandem.errors import ImageError
from tandem.images.limits import MAX_FRAMES, check_frames, check_parts, check_size

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _FORMAT = 256, 257, 258, 259, 277, 339
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_OFFSETS = ((273, 279), (324, 325))  # of strips and tiles, with their lengths

_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}  # struct's, by TIFF's types
# OpenCV ignores a compression it does not know and returns a black image.
_COMPRESSIONS = {1: "none", 2: "CCITT", 3: "CCITT", 4: "CCITT", 5: "LZW", 7: "JPEG", 8: "deflate",
                 32773: "PackBits", 32946: "deflate"}  # fmt: skip
_OTHER_COMPRESSIONS = {6: "old JPEG", 34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA", 50000: "Zstandard",
                       50001: "WebP", 50002: "JPEG XL"}  # fmt: skip
_FORMATS = {1: "unsigned integers", 2: "signed integers", 3: "floating-point numbers", 5: "complex integers",
            6: "complex numbers"}  # fmt: skip
_SMALL_TILE = 1 << 24  # pixels that a tile may have in an image of any size


@dataclass(frozen=True)
class _Layout:
    """The fields of a directory in classic TIFF or BigTIFF, as struct formats."""

    first: int  # position of the first directory's offset
    count: str
    offset: str

    @property
    def inline(self) -> int:
        """Bytes of values that fit into an entry."""
        return struct.calcsize(self.offset)

    @property
    def entry(self) -> int:
        """Bytes of an entry: tag, type, count, and the values or their offset."""
        return 4 + 2 * self.inline


_CLASSIC, _BIG = _Layout(4, "H", "I"), _Layout(8, "Q", "Q")


class _Directory:
    """One page's entries, read on demand; the first entry of a tag counts, as for libtiff."""

    def __init__(self, body: bytes, order: str, layout: _Layout, start: int) -> None:
        self._body, self._order, self._layout = body, order, layout
        (count,) = struct.unpack_from(order + layout.count, body, start)
        check_parts("TIFF", count)
        first = start + struct.calcsize(order + layout.count)
        end = first + layout.entry * count
        (self.next,) = struct.unpack_from(order + layout.offset, body, end)
        self._positions: dict[int, int] = {}
        for position in range(first, end, layout.entry):
            self._positions.setdefault(struct.unpack_from(order + "H", body, position)[0], position)

    def get(self, tag: int, default: int) -> tuple[int, ...]:
        """Return a tag's integers."""
        position = self._positions.get(tag)
        if position is None:
            return (default,)
        head = f"{self._order}HH{self._layout.offset}"
        _, kind, count = struct.unpack_from(head, self._body, position)
        if kind not in _INTEGERS or not count:
            raise ImageError("image_damaged", f"the TIFF image is damaged: its tag {tag} is not an integer")
        if count > 1 << 20:  # a 100 megapixel image in the smallest tiles has fewer
            raise ImageError(
                "image_too_complex", f"the TIFF image has {count} values of tag {tag}: save it again"
            )
        text = f"{self._order}{count}{_INTEGERS[kind]}"
        position += struct.calcsize(head)
        if struct.calcsize(text) > self._layout.inline:
            (position,) = struct.unpack_from(self._order + self._layout.offset, self._body, position)
        return struct.unpack_from(text, self._body, position)


def read_tiff(body: bytes) -> tuple[int, int, bytes]:
    """Return the first page's width, its height and the whole file.

    Raises struct.error if the file ends too early, ImageError if it is damaged, over a limit or of an
    unsupported variant.
    """
    order = "<" if body.startswith(b"I") else ">"
    layout = _BIG if b"+" in body[2:4] else _CLASSIC
    (first,) = struct.unpack_from(order + layout.offset, body, layout.first)
    page = _Directory(body, order, layout, first)
    width, height = page.get(_WIDTH, 0)[0], page.get(_HEIGHT, 0)[0]
    check_size("TIFF", width, height)
    _check_variant(page)
    _check_tiles(page, width, height)
    _check_offsets(page, len(body))
    _check_pages(body, order, layout, first, page.next)
    return width, height, body


def _check_variant(page: _Directory) -> None:
    compression = page.get(_COMPRESSION, 1)[0]
    bits, samples, form = page.get(_BITS, 1), page.get(_SAMPLES, 1)[0], page.get(_FORMAT, 1)
    found = {*form} - {1, 4}  # 4: undefined
    if compression not in _COMPRESSIONS:
        name = _OTHER_COMPRESSIONS.get(compression, f"number {compression}")
        why = f"its compression is {name}, expected {', '.join(dict.fromkeys(_COMPRESSIONS.values()))}"
    elif found:
        why = f"its samples are {_FORMATS.get(min(found), 'of an unknown kind')}, expected {_FORMATS[1]}"
    elif {*bits} not in ({1}, {8}, {16}):
        why = f"its samples have {'/'.join(map(str, bits[:4]))} bits, expected 1, 8 or 16"
    elif not 1 <= samples <= 4:
        why = f"its pixels have {samples} samples, expected 1 to 4"
    else:
        return
    raise ImageError("image_variant_unsupported", f"the TIFF image cannot be read: {why}")


def _check_tiles(page: _Directory, width: int, height: int) -> None:
    """Reject tiles that would take far more memory than the image, or that are far too many."""
    wide, tall = page.get(_TILE_WIDTH, 16)[0], page.get(_TILE_HEIGHT, 16)[0]
    if wide < 16 or tall < 16 or wide * tall > max(2 * width * height, _SMALL_TILE):
        raise ImageError("image_damaged", f"the TIFF image is damaged: its tiles have {wide} x {tall} pixels")


def _check_offsets(page: _Directory, length: int) -> None:
    for begins, lengths in _OFFSETS:
        ends = map(sum, zip(page.get(begins, 0), page.get(lengths, 0), strict=False))
        if max(ends) > length:
            raise struct.error("a strip or tile is missing")


def _check_pages(body: bytes, order: str, layout: _Layout, first: int, following: int) -> None:
    seen = {first}
    while following and len(seen) <= MAX_FRAMES:
        if following in seen:
            raise ImageError("image_damaged", "the TIFF image is damaged: its list of pages never ends")
        seen.add(following)
        following = _Directory(body, order, layout, following).next
    check_frames("TIFF", len(seen))
