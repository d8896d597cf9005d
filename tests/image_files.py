"""Image files of every kind, written by hand if no library writes them."""

import struct
import zlib

import cv2
import numpy as np

HEIGHT, WIDTH = 40, 60

# Red top left, blue bottom right, and a ramp: a rotated or mirrored image is always different.
PICTURE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
PICTURE[..., 1] = np.linspace(0, 200, WIDTH, dtype=np.uint8)
PICTURE[:20, :30, 0] = 255
PICTURE[20:, 30:, 2] = 255
WHITE = np.full((16, 16), 255, np.uint8)

FINE = (cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)


def encode(suffix, image=PICTURE, *options):
    """Encode RGB (or grey, or RGBA) as a file with that suffix."""
    channels = image.shape[2] if image.ndim == 3 else 1
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(channels)
    encoded, body = cv2.imencode(suffix, image if order is None else image[..., order], list(options))
    assert encoded
    return body.tobytes()


def with_alpha(image, alpha=255):
    return np.dstack([image, np.full(image.shape[:2], alpha, np.uint8)])


def exif(orientation):
    return b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0) + bytes(4)


# PNG


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, depth, color, rows, *chunks, interlaced=0):
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def interlaced_png(image=PICTURE):
    passes = (
        (0, 8, 0, 8),
        (0, 8, 4, 8),
        (4, 8, 0, 4),
        (0, 4, 2, 4),
        (2, 4, 0, 2),
        (0, 2, 1, 2),
        (1, 2, 0, 1),
    )
    parts = (image[top::down, left::right] for top, down, left, right in passes)
    rows = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    return png(image.shape[1], image.shape[0], 8, 2, rows, interlaced=1)


def palette_png():
    rows = b"".join(b"\0" + bytes(index % 3 for index in range(row, row + 9)) for row in range(9))
    colors = chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]))
    return png(9, 9, 8, 3, rows, colors, chunk(b"tRNS", b"\0\xff"))


def animated_png():
    control = struct.pack(">IIIIIHHBB", 0, WIDTH, HEIGHT, 0, 0, 1, 10, 0, 0)
    body = encode(".png")
    return body[:33] + chunk(b"acTL", struct.pack(">II", 1, 0)) + chunk(b"fcTL", control) + body[33:]


# JPEG


def jpeg_with(segment, body):
    return body[:2] + segment + body[2:]


def segment(code, content):
    return bytes([0xFF, code]) + struct.pack(">H", len(content) + 2) + content


def jpeg_with_orientation(orientation):
    return jpeg_with(segment(0xE1, b"Exif\0\0" + exif(orientation)), encode(".jpg", PICTURE, *FINE))


def cmyk_jpeg(*ink, transform=0):
    """Write 8 x 8 pixels of one color as Adobe does, inverted (255 is no ink); blocks have only a mean.

    With the transform 2 the first three channels are Y, Cb and Cr of the inverted inks.
    """
    count = len(ink)
    parts = b"".join(bytes([index, 0x11, 0]) for index in range(count))
    tables = segment(0xDB, b"\0" + b"\x01" * 64)
    tables += segment(0xC4, bytes([0, 0, 0, 0, 12, *[0] * 12, *range(12)]))
    tables += segment(0xC4, bytes([0x10, 1, *[0] * 15, 0]))
    scan = segment(0xDA, bytes([count]) + b"".join(bytes([index, 0]) for index in range(count)) + b"\0\x3f\0")
    bits = ""
    for value in ink:
        mean = (value - 128) * 8
        size = abs(mean).bit_length()
        number = mean if mean > 0 else mean + (1 << size) - 1
        bits += f"{size:04b}" + (f"{number:0{size}b}" if size else "") + "0"
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    adobe = segment(0xEE, b"Adobe\x00\x64\x00\x00\x00\x00" + bytes([transform]))
    frame = segment(0xC0, struct.pack(">BHHB", 8, 8, 8, count) + parts)
    return b"\xff\xd8" + adobe + tables + frame + scan + data + b"\xff\xd9"


def progressive_jpeg(width, height, scans):
    """Write grey in many scans: the first one has the mean of each block, the others change nothing."""
    blocks = -(-width // 8) * -(-height // 8)
    bits = ("0" + "1" * 14) * (blocks // 32767 + 1)  # a run of 32767 empty blocks
    bits += "1" * (-len(bits) % 8)
    empty_scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    head = segment(0xDB, b"\0" + b"\x01" * 64)
    head += segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0")
    head += segment(0xC4, bytes([0, 1, *[0] * 15, 0])) + segment(0xC4, bytes([0x10, 1, *[0] * 15, 0xE0]))
    first = segment(0xDA, b"\1\1\0\0\0\1") + bytes(blocks // 8 + 1)
    others = (
        segment(0xDA, b"\1\1\0\1\x3f" + (b"\x10" if turn else b"\1")) + empty_scan
        for turn in range(scans - 1)
    )
    return b"\xff\xd8" + head + first + b"".join(others) + b"\xff\xd9"


# WebP


def riff(*parts):
    content = b"".join(
        name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in parts
    )
    return b"RIFF" + struct.pack("<I", len(content) + 4) + b"WEBP" + content


def webp_with_orientation(orientation):
    still = encode(".webp")
    canvas = b"\x08\0\0\0" + struct.pack("<I", WIDTH - 1)[:3] + struct.pack("<I", HEIGHT - 1)[:3]
    (length,) = struct.unpack_from("<I", still, 16)
    return riff((b"VP8X", canvas), (still[12:16], still[20 : 20 + length]), (b"EXIF", exif(orientation)))


def animated_webp(frames=2):
    """Write an animation that repeats one still image."""
    still = encode(".webp", with_alpha(PICTURE))
    sides = struct.pack("<I", WIDTH - 1)[:3] + struct.pack("<I", HEIGHT - 1)[:3]
    frame = bytes(6) + sides + b"\x64\0\0\2" + still[still.index(b"VP8L") :]
    return riff((b"VP8X", b"\x12\0\0\0" + sides), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * frames)


# BMP


def bmp(width, height, bits, compression, data, *, colors=()):
    palette = b"".join(bytes([*color[::-1], 0]) for color in colors)
    start = 14 + 40 + len(palette)
    head = b"BM" + struct.pack("<IIIIiiHHIIiiII", start + len(data), 0, start, 40, width, height, 1, bits,
                               compression, len(data), 0, 0, len(colors), 0)  # fmt: skip
    return head + palette + data


BMP_COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)] * 4
OLD_BMP = b"BM" + struct.pack("<IIIIHHHH", 26 + 16, 0, 26, 12, 1, 4, 1, 24) + bytes(
    value for index in range(4) for value in (index * 40, index * 40, index * 40, 0)
)  # fmt: skip


# TIFF


def _code_lzw(data):
    """Encode single bytes only, and clear the table before its codes become longer."""
    bits = ""
    for start in range(0, len(data), 250):
        bits += f"{256:09b}" + "".join(f"{value:09b}" for value in data[start : start + 250])
    bits += f"{257:09b}"
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def _pack_bits(data):
    parts = [data[start : start + 128] for start in range(0, len(data), 128)]
    return b"".join(bytes([len(part) - 1]) + part for part in parts)


TIFF_CODES = {1: bytes, 5: _code_lzw, 8: zlib.compress, 32946: zlib.compress, 32773: _pack_bits}
_TYPES = {3: "H", 4: "I", 16: "Q"}


def tiff(width, height, parts, *, order="<", big=False, following=0, **tags):
    """Write a page of strips or tiles; tags are given by number, as `t259=5` or `t258=[8, 8, 8]`."""
    entries = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1, 278: height}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    offset_tags = (324, 325) if 322 in entries else (273, 279)
    entries |= {offset_tags[0]: [0] * len(parts), offset_tags[1]: list(map(len, parts))}
    count, wide, kind = ("Q", "Q", 16) if big else ("H", "I", 4)
    inline = struct.calcsize(wide)
    head = 16 if big else 8
    start = head + struct.calcsize("<" + count) + (4 + 2 * inline) * len(entries) + inline
    outside = sum(inline * len(value) for value in entries.values() if isinstance(value, list))
    begin = start + outside
    entries[offset_tags[0]] = [begin + sum(map(len, parts[:index])) for index in range(len(parts))]
    table, extra = struct.pack(order + count, len(entries)), b""
    for tag, value in sorted(entries.items()):
        values = value if isinstance(value, list) else [value]
        short = max(values) < 1 << 16 and tag not in offset_tags
        packed = struct.pack(f"{order}{len(values)}{_TYPES[3 if short else kind]}", *values)
        table += struct.pack(f"{order}HH{wide}", tag, 3 if short else kind, len(values))
        if len(packed) <= inline:
            table += packed.ljust(inline, b"\0")
        else:
            table += struct.pack(order + wide, start + len(extra))
            extra += packed.ljust(inline * len(values), b"\0")
    table += struct.pack(order + wide, following)
    mark = {"<": b"II", ">": b"MM"}[order]
    first = struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8)
    return mark + first + table + extra.ljust(outside, b"\0") + b"".join(parts)


def rgb_tiff(image=PICTURE, *, compression=1, strips=1, tile=0, planar=False, **options):
    """Write an RGB image with or without compression, in strips, square tiles or planes."""
    height, width = image.shape[:2]
    if options.get("order") == ">":
        image = image.astype(image.dtype.newbyteorder(">"))
    tall = -(-height // strips)
    options |= {
        "t258": [image.dtype.itemsize * 8] * 3,
        "t259": compression,
        "t262": 2,
        "t277": 3,
        "t278": tall,
    }
    if tile:
        rows, columns = range(0, height, tile), range(0, width, tile)
        padded = np.pad(image, ((0, -height % tile), (0, -width % tile), (0, 0)))
        pieces = [padded[top : top + tile, left : left + tile] for top in rows for left in columns]
        options |= {"t322": tile, "t323": tile}
        del options["t278"]
    elif planar:
        pieces = list(image.transpose(2, 0, 1))
        options["t284"] = 2
    else:
        pieces = [image[top : top + tall] for top in range(0, height, tall)]
    return tiff(width, height, [TIFF_CODES[compression](piece.tobytes()) for piece in pieces], **options)


def jpeg_in_tiff(image=PICTURE):
    tags = {"t258": [8, 8, 8], "t259": 7, "t262": 6, "t277": 3, "t530": [1, 1]}
    return tiff(image.shape[1], image.shape[0], [encode(".jpg", image, *FINE)], **tags)


def paged_tiff(pages=2):
    """Write pages of one grey pixel each."""
    page = struct.pack("<H", 3) + struct.pack("<HHIIHHIIHHII", 256, 4, 1, 1, 257, 4, 1, 1, 258, 4, 1, 8)
    starts = [8 + index * (len(page) + 4) for index in range(pages)] + [0]
    table = b"".join(page + struct.pack("<I", following) for following in starts[1:])
    return b"II*\0\x08\0\0\0" + table


# Each file, and the maximum mean difference of its pixels from `PICTURE`.
KINDS = {
    "jpeg": (encode(".jpg", PICTURE, *FINE), 2),
    "jpeg progressive": (encode(".jpg", PICTURE, *FINE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1), 2),
    "jpeg with restarts": (encode(".jpg", PICTURE, *FINE, cv2.IMWRITE_JPEG_RST_INTERVAL, 4), 2),
    "png": (encode(".png"), 0),
    "png 16 bit": (encode(".png", PICTURE.astype(np.uint16) * 257), 0),
    "png alpha": (encode(".png", with_alpha(PICTURE, 0)), 0),
    "png interlaced": (interlaced_png(), 0),
    "png animated": (animated_png(), 0),
    "bmp": (encode(".bmp"), 0),
    "bmp alpha": (encode(".bmp", with_alpha(PICTURE)), 0),
    "webp": (encode(".webp"), 0),
    "webp lossy": (encode(".webp", PICTURE, cv2.IMWRITE_WEBP_QUALITY, 90), 4),
    "webp alpha": (encode(".webp", with_alpha(PICTURE)), 0),
    "webp animated": (animated_webp(), 0),
    "tiff": (encode(".tif"), 0),
    "tiff plain": (encode(".tif", PICTURE, cv2.IMWRITE_TIFF_COMPRESSION, 1), 0),
    "tiff 16 bit": (encode(".tif", PICTURE.astype(np.uint16) * 257), 0),
    "tiff alpha": (encode(".tif", with_alpha(PICTURE)), 0),
    "tiff strips": (rgb_tiff(strips=7), 0),
    "tiff tiles": (rgb_tiff(tile=16, compression=8), 0),
    "tiff planes": (rgb_tiff(planar=True), 0),
    "tiff lzw": (rgb_tiff(compression=5), 0),
    "tiff packbits": (rgb_tiff(compression=32773, strips=2), 0),
    "tiff old deflate": (rgb_tiff(compression=32946), 0),
    "tiff jpeg": (jpeg_in_tiff(), 2),
    "tiff big-endian": (rgb_tiff(PICTURE.astype(np.uint16) * 257, order=">"), 0),
    "tiff big": (rgb_tiff(big=True, compression=8, strips=3), 0),
    "tiff big big-endian": (rgb_tiff(big=True, order=">"), 0),
    "tiff pages": (cv2.imencodemulti(".tif", [PICTURE[..., ::-1].copy(), PICTURE.copy()])[1].tobytes(), 0),
}  # fmt: skip

# Other files, whose expected pixels are in the tests.
MORE = {
    "jpeg grey": encode(".jpg", PICTURE[..., 1].copy()),
    "jpeg exif": jpeg_with_orientation(6),
    "jpeg cmyk": cmyk_jpeg(0, 255, 255, 255),
    "jpeg ycck": cmyk_jpeg(179, 171, 1, 255, transform=2),
    "jpeg scans": progressive_jpeg(64, 64, 20),
    "png palette": palette_png(),
    "png 1 bit": png(8, 1, 1, 0, b"\0\xa0"),
    "png grey alpha": png(2, 1, 8, 4, b"\0\x64\0\xc8\xff"),
    "bmp old": OLD_BMP,
    "bmp palette": bmp(8, 2, 4, 0, bytes([0x01, 0x23, 0x01, 0x23] * 2), colors=BMP_COLORS),
    "bmp 16 bit": bmp(2, 2, 16, 0, b"\xff\x7f\0\0" * 2),
    "bmp run lengths": bmp(8, 2, 8, 1, b"\x08\1\0\0\4\2\4\0\0\1", colors=BMP_COLORS),
    "webp exif": webp_with_orientation(6),
    "tiff fax": tiff(16, 16, [b"\xa8" * 16], t258=1, t259=2, t262=0),
    "tiff fax 4": tiff(16, 16, [b"\xff\xff\0\x10\x01"], t258=1, t259=4, t262=0),
    "tiff 1 bit": tiff(16, 16, [b"\xff\0" * 16], t258=1),
    "tiff turned": rgb_tiff(t274=6),
    "tiff cmyk": tiff(2, 1, [b"\xff\0\0\0\0\0\0\0"], t258=[8] * 4, t262=5, t277=4),
}
