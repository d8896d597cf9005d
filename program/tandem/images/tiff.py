"""What the first page of a TIFF or BigTIFF file says of itself."""

import struct
from dataclasses import dataclass

from tandem.errors import ImageError
from tandem.images.limits import MAX_FRAMES, check_frames, check_parts, check_size

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _FORMAT = 256, 257, 258, 259, 277, 339
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_PLACES = ((273, 279), (324, 325))  # where strips and tiles begin, and their lengths

_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}  # struct's, by TIFF's types
# OpenCV passes over a compression it does not know, and gives a black picture.
_COMPRESSIONS = {1: "none", 2: "CCITT", 3: "CCITT", 4: "CCITT", 5: "LZW", 7: "JPEG", 8: "deflate",
                 32773: "PackBits", 32946: "deflate"}  # fmt: skip
_OTHER_COMPRESSIONS = {6: "old JPEG", 34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA", 50000: "Zstandard",
                       50001: "WebP", 50002: "JPEG XL"}  # fmt: skip
_FORMATS = {1: "unsigned integers", 2: "signed integers", 3: "floating-point numbers", 5: "complex integers",
            6: "complex numbers"}  # fmt: skip
_SMALL_TILE = 1 << 24  # pixels that a tile may have in however small a picture


@dataclass(frozen=True)
class _Layout:
    """How classic TIFF and BigTIFF write a directory, for struct."""

    first: int  # where the file says where its first directory is
    count: str
    offset: str

    @property
    def inline(self) -> int:
        """Bytes of values that an entry holds itself."""
        return struct.calcsize(self.offset)

    @property
    def entry(self) -> int:
        """Bytes of an entry: tag, type, how many values, the values or where they are."""
        return 4 + 2 * self.inline


_CLASSIC, _BIG = _Layout(4, "H", "I"), _Layout(8, "Q", "Q")


class _Directory:
    """One page's entries, read as far as they are asked for; the first of a tag counts, as for libtiff."""

    def __init__(self, body: bytes, order: str, layout: _Layout, position: int) -> None:
        self._body, self._order, self._layout = body, order, layout
        (count,) = struct.unpack_from(order + layout.count, body, position)
        check_parts("TIFF", count)
        start = position + struct.calcsize(order + layout.count)
        end = start + layout.entry * count
        (self.next,) = struct.unpack_from(order + layout.offset, body, end)
        self._places: dict[int, int] = {}
        for place in range(start, end, layout.entry):
            self._places.setdefault(struct.unpack_from(order + "H", body, place)[0], place)

    def get(self, tag: int, default: int) -> tuple[int, ...]:
        """Give a tag's integers."""
        place = self._places.get(tag)
        if place is None:
            return (default,)
        head = f"{self._order}HH{self._layout.offset}"
        _, kind, count = struct.unpack_from(head, self._body, place)
        if kind not in _INTEGERS or not count:
            raise ImageError("image_damaged", f"the TIFF picture is damaged: its tag {tag} is no number")
        if count > 1 << 20:  # a 100 megapixel picture in the smallest tiles has fewer
            raise ImageError("image_too_complex", f"the TIFF picture has {count} values of tag {tag}")
        text = f"{self._order}{count}{_INTEGERS[kind]}"
        place += struct.calcsize(head)
        if struct.calcsize(text) > self._layout.inline:
            (place,) = struct.unpack_from(self._order + self._layout.offset, self._body, place)
        return struct.unpack_from(text, self._body, place)


def read_tiff(body: bytes) -> tuple[int, int, bytes]:
    """Give the first page's width and height, and the file as it is.

    Raises struct.error where the file ends too early, ImageError where it is damaged, over a limit, or of a
    variant that cannot be read.
    """
    order = "<" if body.startswith(b"I") else ">"
    layout = _BIG if b"+" in body[2:4] else _CLASSIC
    (first,) = struct.unpack_from(order + layout.offset, body, layout.first)
    page = _Directory(body, order, layout, first)
    width, height = page.get(_WIDTH, 0)[0], page.get(_HEIGHT, 0)[0]
    check_size("TIFF", width, height)
    _check_variant(page)
    _check_tiles(page, width, height)
    _check_places(page, len(body))
    _check_pages(body, order, layout, first, page.next)
    return width, height, body


def _check_variant(page: _Directory) -> None:
    compression = page.get(_COMPRESSION, 1)[0]
    bits, samples, form = page.get(_BITS, 1), page.get(_SAMPLES, 1)[0], page.get(_FORMAT, 1)
    found = {*form} - {1, 4}  # 4: not said
    if compression not in _COMPRESSIONS:
        name = _OTHER_COMPRESSIONS.get(compression, f"number {compression}")
        why = f"its compression is {name}, expected {', '.join(dict.fromkeys(_COMPRESSIONS.values()))}"
    elif found:
        why = f"its samples are {_FORMATS.get(min(found), 'of no known kind')}, expected {_FORMATS[1]}"
    elif {*bits} not in ({1}, {8}, {16}):
        why = f"its samples have {'/'.join(map(str, bits[:4]))} bits, expected 1, 8 or 16"
    elif not 1 <= samples <= 4:
        why = f"its pixels have {samples} samples, expected 1 to 4"
    else:
        return
    raise ImageError("image_variant_unsupported", f"the TIFF picture cannot be read: {why}")


def _check_tiles(page: _Directory, width: int, height: int) -> None:
    """Refuse tiles that would take far more memory than the picture, or be far too many."""
    wide, tall = page.get(_TILE_WIDTH, 16)[0], page.get(_TILE_HEIGHT, 16)[0]
    if wide < 16 or tall < 16 or wide * tall > max(2 * width * height, _SMALL_TILE):
        raise ImageError(
            "image_damaged", f"the TIFF picture is damaged: its tiles have {wide} x {tall} pixels"
        )


def _check_places(page: _Directory, length: int) -> None:
    for begins, lengths in _PLACES:
        ends = map(sum, zip(page.get(begins, 0), page.get(lengths, 0), strict=False))
        if max(ends) > length:
            raise struct.error("a strip or tile is missing")


def _check_pages(body: bytes, order: str, layout: _Layout, first: int, following: int) -> None:
    seen = {first}
    while following and len(seen) <= MAX_FRAMES:
        if following in seen:
            raise ImageError("image_damaged", "the TIFF picture is damaged: its list of pages has no end")
        seen.add(following)
        following = _Directory(body, order, layout, following).next
    check_frames("TIFF", len(seen))
