"""Files that are not whole images, or cost more than a request may, are rejected with a reason."""

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picture_files import (
    HEIGHT,
    KINDS,
    PICTURE,
    WIDTH,
    animated_png,
    animated_webp,
    bmp,
    chunk,
    encode,
    jpeg_with,
    paged_tiff,
    png,
    progressive_jpeg,
    rgb_tiff,
    riff,
    segment,
    tiff,
)
from tandem.errors import IMAGE_REFUSALS, ImageError
from tandem.images import limits
from tandem.images.codec import decode, from_array
from tandem.images.headers import read_header

README = Path(__file__).resolve().parents[2] / "README.md"


def expect_refusal(body, kind, sentence="."):
    with pytest.raises(ImageError, match=sentence) as caught:
        decode(body)
    assert (caught.value.kind, caught.value.status) == (kind, IMAGE_REFUSALS[kind]), caught.value
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_header_gives_kind_and_size_without_decoding(kind):
    header = read_header(KINDS[kind][0])
    assert (header.kind.lower(), header.width, header.height) == (kind.split()[0], WIDTH, HEIGHT)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"tiff pages"}))  # its second page is never decoded
def test_an_image_cut_off_anywhere_is_rejected(kind):
    """A truncated image never decodes with grey below; most cuts are reported as truncated."""
    body = KINDS[kind][0]
    lengths = {*range(1, len(body), max(1, len(body) // 60)), *range(len(body) - 20, len(body))}
    kinds = []
    for length in lengths:
        with pytest.raises(ImageError) as caught:
            decode(body[:length])
        kinds.append(caught.value.kind)
    assert kinds.count("image_truncated") > 0.6 * len(kinds), set(kinds)


def test_the_end_of_an_embedded_thumbnail_is_not_the_end_of_the_image():
    body = jpeg_with(segment(0xE2, encode(".jpg", PICTURE[:8, :8])), encode(".jpg"))
    assert decode(body).shape == PICTURE.shape
    expect_refusal(body[:-2], "image_truncated", "JPEG image is cut off")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"GIF89a" + bytes(60), "this is a GIF; expected JPEG, PNG, BMP, WebP or TIFF"),
        (b"\0\0\0\x18ftypheic" + bytes(60), "a HEIC image"),
        (b"\0\0\0\x1cftypmif1" + bytes(60), "a HEIC image"),
        (b"\0\0\0\x1cftypavif" + bytes(60), "an AVIF image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"<?xml version='1.0'?>\n<!-- made by hand -->\n<svg/>", "an SVG drawing"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\0\0\1\0\1\0\x10\x10", "icon"),
        (b"P6\n2 2\n255\n", "PNM"),
        (bytes(128) + b"DICM", "DICOM"),
    ],
)
def test_an_image_of_another_type_is_named(body, sentence):
    expect_refusal(body, "image_type_unsupported", sentence)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"hello, I am text", r"it begins with b'hello, I am .*expected JPEG, PNG, BMP, WebP or TIFF"),
        (b"BMW is a maker of cars", "not an image"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "not an image"),
        (b"\xff\xd8", "not an image"),
        (b"%PDF-1.7", "this is a PDF document; expected JPEG"),
        (b"\0\0\0\x18ftypmp42", "a video"),
        (b"PK\x03\x04", "an archive"),
        (b"\x93NUMPY\x01\0", "application/x-npy"),
        (b"/9j/4AAQSkZJRg==", "base64 text; send the bytes"),
        (b"data:image/png;base64,iVBORw0KGgo=", "base64 text"),
        (b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n', "a form"),
        (b"\n<!DOCTYPE html>", "a web page"),
        (b'{"instances": []}', "application/json"),
    ],
)
def test_a_file_that_is_not_an_image_is_named(body, sentence):
    expect_refusal(body, "not_an_image", sentence)


def change(body, position, content):
    return body[:position] + content + body[position + len(content) :]


JPEG = encode(".jpg")
FRAME = JPEG.index(b"\xff\xc0")
WIDE_FRAME = segment(0xC0, struct.pack(">BHHB", 8, 60_000, 60_000, 1) + b"\1\x11\0")
TWO_STRIPS = [bytes(300), bytes(300)]


@pytest.mark.parametrize(
    ("body", "kind", "sentence"),
    [
        (b"", "image_empty", "is empty; expected an image: JPEG"),
        (b"\xff\xd8\xff\xd9", "image_damaged", "JPEG image is damaged: its header says 0 x 0"),
        (b"\xff\xd8\xff\xe0\x00", "image_truncated", "JPEG image is cut off"),
        (encode(".png").replace(b"IDAT", b"IDAX", 1), "image_damaged", "PNG .*: the checksum"),
        (png(8, 1, 8, 0, bytes(9), chunk(b"ABCD", b"")), "image_damaged", "b'ABCD' is not allowed there"),
        (png(0, 1, 8, 0, b""), "image_damaged", "its header says 0 x 1"),
        (png(8, 8, 8, 0, b"\0short"), "image_damaged", "PNG image of 8 x 8 pixels is damaged"),
        (png(8, 8, 3, 0, bytes(72)), "image_damaged", "valid header"),
        (b"\x89PNG\r\n\x1a\n" + encode(".png")[33:], "image_damaged", "valid header"),
        (b"II*\0\xff\xff\xff\xff", "image_truncated", "TIFF image is cut off"),
        (b"II*\0\x08\0\0\0\0\0\0\0\0\0", "image_damaged", "its header says 0 x 0"),
        (tiff(1, 1, [b"\0"])[:-1], "image_truncated", "cut off"),
        (rgb_tiff().replace(struct.pack("<HHI", 256, 3, 1), struct.pack("<HHI", 256, 2, 1)), "image_damaged",
         "tag 256 is not an integer"),
        (tiff(1, 1, [b"\0"], t322=8, t323=16), "image_damaged", "its tiles have 8 x 16"),
    ],
)  # fmt: skip
def test_a_damaged_image_is_rejected_with_a_reason(body, kind, sentence):
    expect_refusal(body, kind, sentence)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (change(JPEG, FRAME + 1, b"\xc3"), "process is 3 with 3 samples of 8 bits"),
        (change(JPEG, FRAME + 4, b"\x0c"), "samples of 12 bits"),
        (change(JPEG, FRAME + 9, b"\2"), "2 samples"),
        (rgb_tiff(PICTURE.astype(np.float32), t339=[3, 3, 3]), "samples are floating-point numbers"),
        (rgb_tiff(t339=[2, 2, 2]), "samples are signed integers"),
        (tiff(4, 4, [bytes(64)], t258=32), "samples have 32 bits"),
        (tiff(4, 4, [bytes(80)], t258=[8] * 5, t277=5), "5 samples"),
        (tiff(4, 4, [bytes(16)], t259=34712), "compression is JPEG 2000, expected none, CCITT, LZW"),
        (tiff(4, 4, [bytes(16)], t259=50002), "compression is JPEG XL"),
        (tiff(4, 4, [bytes(16)], t259=7777), "compression is number 7777"),
    ],
)
def test_a_variant_that_cannot_be_read_is_named(body, sentence):
    """OpenCV returns a black image for a compression of TIFF that it does not know."""
    expect_refusal(body, "image_variant_unsupported", sentence)


HUGE = {
    "jpeg": change(JPEG, FRAME + 5, struct.pack(">HH", 65000, 65000)),
    "png": png(65000, 65000, 8, 0, b""),
    "bmp": bmp(65000, -65000, 8, 1, b"\0\1"),
    "webp": change(encode(".webp"), 21, struct.pack("<I", 16383 << 14 | 16383)),
    "webp extended": change(animated_webp(), 24, b"\xff\xff\0" * 2),
    "tiff": tiff(65000, 65000, [b""]),
    "big tiff": tiff(65000, 65000, [b""], big=True),
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_header_over_the_limit_is_rejected_before_memory_is_allocated(kind):
    expect_refusal(HUGE[kind], "image_too_large", r"has \d{5} x \d{5} pixels, the limit is 100000000")


@pytest.mark.parametrize(
    "kind", ["jpeg", "png", "bmp", "webp", "webp lossy", "webp alpha", "tiff", "tiff big"]
)
def test_the_limit_counts_the_pixels_of_every_kind(kind, monkeypatch):
    monkeypatch.setattr(limits, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    expect_refusal(KINDS[kind][0], "image_too_large", "has 60 x 40 pixels, the limit is 2399")
    monkeypatch.setattr(limits, "MAX_PIXELS", HEIGHT * WIDTH)
    decode(KINDS[kind][0])


def test_a_file_of_too_many_bytes_is_rejected(monkeypatch):
    monkeypatch.setattr(limits, "MAX_BYTES", len(JPEG) - 1)
    expect_refusal(JPEG, "image_too_large", f"has {len(JPEG)} bytes, the limit is {len(JPEG) - 1}")


@pytest.mark.parametrize(("width", "height"), [(101, 1), (1, 1000), (65501, 700)])
def test_a_side_far_longer_than_the_other_is_rejected(width, height):
    rows = bytes(height * (width + 1))
    expect_refusal(
        png(width, height, 8, 0, rows), "image_out_of_proportion", f"{width} x {height}.*100 times"
    )
    with pytest.raises(ImageError, match="100 times"):
        from_array(np.zeros((height, width), np.uint8))


def test_a_side_a_hundred_times_the_other_is_accepted():
    assert decode(png(100, 1, 8, 0, bytes(101))).shape == (1, 100, 3)


@pytest.mark.parametrize("behind", [False, True])
def test_a_second_header_cannot_hide_the_size_of_the_first(behind):
    """The decoder uses the first header of a file, so a smaller second one must not be trusted."""
    scan = JPEG.index(b"\xff\xda")
    own = JPEG[FRAME : FRAME + 19]
    small = change(own, 5, struct.pack(">HH", 8, 8))
    body = JPEG[:-2] + small + b"\xff\xd9" if behind else JPEG[:scan] + small + JPEG[scan:]
    expect_refusal(body, "image_damaged", "two headers")


def test_a_marker_without_a_length_cannot_hide_a_header():
    """Decoders skip FF 01 alone; a reader that took the next bytes as its length would miss a header."""
    expect_refusal(JPEG[:2] + b"\xff\x01" + WIDE_FRAME + JPEG[2:], "image_too_large", "60000 x 60000")


def test_the_first_of_two_tags_counts():
    """As it does for libtiff."""
    entry = struct.pack("<HHII", 256, 4, 1, 1)
    body = paged_tiff(1)
    doubled = change(body[:10] + struct.pack("<HHII", 256, 4, 1, 65_000) + body[10:], 8, b"\4\0")
    assert entry in doubled
    expect_refusal(doubled, "image_out_of_proportion", "65000 x 1")


@pytest.mark.parametrize(
    "body",
    [
        change(JPEG, FRAME + 5, struct.pack(">HH", 9000, 9000)),
        png(9000, 9000, 8, 0, bytes(1000)),
    ],
)
def test_a_header_larger_than_its_bytes_allocates_no_memory(body):
    """Otherwise a kilobyte would cost the time and memory of 81 megapixels."""
    expect_refusal(body, "image_truncated")


def test_a_solid_image_is_not_taken_for_a_truncated_one():
    """An image of one color is as small as a file can be."""
    white = np.full((1000, 1000, 3), 255, np.uint8)
    for suffix in (".jpg", ".png", ".webp", ".tif"):
        assert (decode(encode(suffix, white)) == 255).all()


def test_the_limit_of_scans_depends_on_the_pixels():
    """Each scan passes over all pixels: 100 of them over 16 megapixels take 1.8 s."""
    assert decode(progressive_jpeg(64, 64, 100)).shape == (64, 64, 3)
    expect_refusal(
        progressive_jpeg(64, 64, 101), "image_too_complex", "101 scans, the limit at 64 x 64 pixels is 100"
    )
    expect_refusal(progressive_jpeg(8000, 8000, 26), "image_too_complex", "26 scans.*is 25")


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_compressed_texts_of_a_png_are_not_inflated(name):
    """Each would take libpng 40 ms, and a request of 25 MB has space for 3000 of them."""
    bomb = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"k\0\0"}[name]
    bomb += zlib.compress(bytes(7_900_000))
    plain = png(8, 8, 8, 0, bytes(72))
    bombed = png(8, 8, 8, 0, bytes(72), *[chunk(name, bomb)] * 200)
    assert read_header(bombed).body == plain
    np.testing.assert_array_equal(decode(bombed), decode(plain))


@pytest.mark.parametrize("interlaced", [0, 1])
def test_data_behind_the_last_row_is_rejected(interlaced):
    """The PNG library would inflate all of it and throw it away."""
    bomb = png(8, 8, 8, 0, bytes(100_000_000), interlaced=interlaced)
    expect_refusal(bomb, "image_damaged", "more data than its pixels need")


def test_surplus_behind_incompressible_pixels_is_found_by_inflating():
    noise = np.random.default_rng(7).integers(0, 256, (1000, 1201), np.uint8)
    noise[:, 0] = 0
    body = png(1200, 1000, 8, 0, noise.tobytes())
    assert len(body) > 1 << 20
    assert decode(body).shape == (1000, 1200, 3)
    expect_refusal(png(1200, 1000, 8, 0, noise.tobytes() + bytes(10_000_000)), "image_damaged", "more data")
    start = body.index(b"IDAT") - 4
    broken = body[:start] + chunk(b"IDAT", b"\0\0" + body[start + 10 : -16]) + body[-12:]
    expect_refusal(broken, "image_damaged", "cannot be inflated")


def many(count):
    return {
        "jpeg": jpeg_with(b"\xff\xe0\0\2" * count, JPEG),
        "png": png(8, 1, 8, 0, bytes(9), *[chunk(b"teXt", b"")] * count),
        "webp": riff((b"VP8X", bytes(10)), *[(b"abcd", b"")] * count),
        "tiff": b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + struct.pack("<Q", count) + bytes(20 * count + 8),
    }


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_a_file_with_very_many_parts_is_rejected(kind):
    expect_refusal(many(66_000)[kind], "image_too_complex", "more than 65536 parts")


@pytest.mark.parametrize(
    "body",
    [
        animated_webp(1001),
        paged_tiff(1001),
        animated_png().replace(
            chunk(b"acTL", bytes(3) + b"\1" + bytes(4)), chunk(b"acTL", b"\0\1" + bytes(6))
        ),
    ],
    ids=["webp", "tiff", "png"],
)
def test_a_file_with_too_many_frames_is_rejected(body):
    expect_refusal(body, "image_too_many_frames", "more than 1000 frames or pages")


def test_the_first_of_a_thousand_pages_is_read():
    assert decode(animated_webp(1000)).shape == PICTURE.shape
    assert read_header(paged_tiff(1000))[:3] == ("TIFF", 1, 1)


@pytest.mark.parametrize("following", [8, 0])
def test_an_endless_list_of_pages_is_rejected(following):
    body = tiff(1, 1, [b"\0"], following=following)
    if following:
        expect_refusal(body, "image_damaged", "list of pages never ends")
    else:
        decode(body)


def test_tiles_far_larger_than_the_image_are_rejected():
    packed = zlib.compress(bytes(1 << 24))
    assert decode(tiff(16, 16, [packed], t259=8, t322=4096, t323=4096)).shape == (16, 16, 3)
    expect_refusal(
        tiff(16, 16, [packed], t259=8, t322=8192, t323=4096), "image_damaged", "tiles have 8192 x 4096"
    )


def test_each_refusal_has_a_status_and_is_in_the_readme():
    assert set(IMAGE_REFUSALS.values()) == {400, 413, 415}
    listed = re.findall(r"`((?:not_an_)?image[a-z_]*)`", README.read_text())
    assert set(listed) - {"image_size"} == set(IMAGE_REFUSALS)


@given(st.sampled_from(sorted(KINDS)), st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_image_is_decoded_or_rejected(kind, data):
    """Changed bytes give an array or an ImageError, never another exception."""
    body = bytearray(KINDS[kind][0])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode(bytes(body))
    except ImageError:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3


@given(
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0"]),
    st.binary(max_size=200),
)
@settings(max_examples=150, deadline=None)
def test_random_bytes_are_rejected(start, rest):
    with pytest.raises(ImageError):
        decode(start + rest)
