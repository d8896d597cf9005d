"""Every kind of picture becomes the same array, and what is no whole picture is refused."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem import images
from tandem.errors import UserError
from tandem.images import Preprocessing, decode, from_array, preprocess

PROGRAM = Path(__file__).resolve().parent.parent / "program"
HEIGHT, WIDTH = 40, 60

# Red top left, blue bottom right, a ramp between: no symmetry hides a turned or mirrored picture.
PICTURE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
PICTURE[..., 1] = np.linspace(0, 200, WIDTH, dtype=np.uint8)
PICTURE[:20, :30, 0] = 255
PICTURE[20:, 30:, 2] = 255


def encode(suffix, picture=PICTURE, *options):
    """Encode RGB (or grey, or RGBA) as the file of that suffix."""
    channels = picture.shape[2] if picture.ndim == 3 else 1
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(channels)
    encoded, body = cv2.imencode(suffix, picture if order is None else picture[..., order], list(options))
    assert encoded
    return body.tobytes()


def with_alpha(picture, alpha=255):
    return np.dstack([picture, np.full(picture.shape[:2], alpha, np.uint8)])


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, depth, color, rows, *chunks):
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def exif(orientation):
    return b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0) + bytes(4)


def jpeg_with(segment, body):
    return body[:2] + segment + body[2:]


def jpeg_with_orientation(orientation):
    content = b"Exif\0\0" + exif(orientation)
    return jpeg_with(
        b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content, encode(".jpg", PICTURE, *FINE)
    )


def cmyk_jpeg(*ink):
    """Write 8 x 8 pixels of one colour as Adobe does, inverted: 255 is no ink. A block is its mean alone."""
    count = len(ink)
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 8 + 3 * count, 8, 8, 8, count)
    frame += b"".join(bytes([index, 0x11, 0]) for index in range(count))
    tables = b"\xff\xdb\x00\x43\x00" + b"\x01" * 64
    tables += b"\xff\xc4" + struct.pack(">H", 31) + bytes([0, 0, 0, 0, 12, *[0] * 12, *range(12)])
    tables += b"\xff\xc4" + struct.pack(">H", 20) + bytes([0x10, 1, *[0] * 15, 0])
    scan = b"\xff\xda" + struct.pack(">HB", 6 + 2 * count, count)
    scan += b"".join(bytes([index, 0]) for index in range(count)) + b"\0\x3f\0"
    bits = ""
    for value in ink:
        mean = (value - 128) * 8
        size = abs(mean).bit_length()
        number = mean if mean > 0 else mean + (1 << size) - 1
        bits += f"{size:04b}" + (f"{number:0{size}b}" if size else "") + "0"
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
    return b"\xff\xd8" + adobe + tables + frame + scan + data + b"\xff\xd9"


FINE = (cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
KINDS = {
    "jpeg": (encode(".jpg", PICTURE, *FINE), 2),
    "jpeg progressive": (encode(".jpg", PICTURE, *FINE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1), 2),
    "jpeg with restarts": (encode(".jpg", PICTURE, *FINE, cv2.IMWRITE_JPEG_RST_INTERVAL, 4), 2),
    "png": (encode(".png"), 0),
    "png 16 bit": (encode(".png", PICTURE.astype(np.uint16) * 257), 0),
    "png alpha": (encode(".png", with_alpha(PICTURE, 0)), 0),
    "bmp": (encode(".bmp"), 0),
    "bmp alpha": (encode(".bmp", with_alpha(PICTURE)), 0),
    "webp": (encode(".webp"), 0),
    "webp lossy": (encode(".webp", PICTURE, cv2.IMWRITE_WEBP_QUALITY, 90), 4),
    "webp alpha": (encode(".webp", with_alpha(PICTURE)), 0),
    "tiff": (encode(".tif"), 0),
    "tiff plain": (encode(".tif", PICTURE, cv2.IMWRITE_TIFF_COMPRESSION, 1), 0),
    "tiff 16 bit": (encode(".tif", PICTURE.astype(np.uint16) * 257), 0),
    "tiff alpha": (encode(".tif", with_alpha(PICTURE)), 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_rgb_bytes(kind):
    body, tolerance = KINDS[kind]
    picture = decode(body)
    assert (picture.shape, picture.dtype) == (PICTURE.shape, np.uint8)
    assert np.abs(picture.astype(int) - PICTURE).mean() <= tolerance


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tif", ".jpg"])
def test_grey_becomes_three_equal_channels(suffix):
    grey = np.full((8, 8), 77, np.uint8)
    np.testing.assert_array_equal(decode(encode(suffix, grey)), np.full((8, 8, 3), 77))


@pytest.mark.parametrize(
    ("body", "pixels"),
    [
        pytest.param(
            png(2, 1, 16, 0, b"\0\x80\xff\xff\x00"), [[128] * 3, [255] * 3], id="16-bit grey: the high byte"
        ),
        pytest.param(png(2, 1, 8, 4, b"\0\x64\0\xc8\xff"), [[100] * 3, [200] * 3], id="alpha is dropped"),
        pytest.param(
            png(8, 1, 1, 0, b"\0\xa0"), [[255 * bit] * 3 for bit in (1, 0, 1, 0, 0, 0, 0, 0)], id="1 bit"
        ),
        pytest.param(
            png(
                2,
                1,
                8,
                3,
                b"\0\0\1",
                chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0])),
                chunk(b"tRNS", b"\0\xff"),
            ),
            [[255, 0, 0], [0, 255, 0]],
            id="a palette with a transparent entry",
        ),
    ],
)
def test_unusual_pngs_become_rgb(body, pixels):
    np.testing.assert_array_equal(decode(body), [pixels])


@pytest.mark.parametrize(
    ("ink", "color"),
    [
        ((255, 255, 255, 255), (255, 255, 255)),
        ((0, 255, 255, 255), (0, 255, 255)),
        ((255, 0, 0, 255), (255, 0, 0)),
        ((255, 255, 255, 0), (0, 0, 0)),
    ],
)
def test_cmyk_becomes_rgb(ink, color):
    """No ink is white, cyan takes the red, magenta and yellow leave it, black is black."""
    np.testing.assert_allclose(decode(cmyk_jpeg(*ink)), np.broadcast_to(color, (8, 8, 3)), atol=2)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, PICTURE),
        (2, PICTURE[:, ::-1]),
        (3, PICTURE[::-1, ::-1]),
        (4, PICTURE[::-1]),
        (5, PICTURE.transpose(1, 0, 2)),
        (6, np.rot90(PICTURE, -1)),
        (7, PICTURE[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(PICTURE)),
    ],
)
def test_a_jpeg_is_turned_upright(orientation, upright):
    np.testing.assert_allclose(decode(jpeg_with_orientation(orientation)), upright.astype(int), atol=8)


def test_a_png_is_turned_upright():
    body = encode(".png")
    turned = body[:33] + chunk(b"eXIf", exif(6)) + body[33:]
    np.testing.assert_array_equal(decode(turned), np.rot90(PICTURE, -1))


def test_the_first_page_and_the_first_frame_are_taken():
    frames = [PICTURE[..., ::-1].copy(), PICTURE[::-1, :, ::-1].copy()]
    assert (decode(cv2.imencodemulti(".tif", frames)[1].tobytes()) == PICTURE).all()
    animation = cv2.Animation()
    animation.frames = [with_alpha(frame) for frame in frames]
    animation.durations = [100, 100]
    moving = decode(cv2.imencodeanimation(".webp", animation)[1].tobytes())
    assert np.abs(moving.astype(int) - PICTURE).mean() <= 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_cut_off_anywhere_is_refused(kind):
    """At no length does half a picture pass for a whole one with grey below; most cuts are named as such."""
    body = KINDS[kind][0]
    lengths = {*range(1, len(body), max(1, len(body) // 60)), *range(len(body) - 20, len(body))}
    messages = []
    for length in lengths:
        with pytest.raises(UserError) as caught:
            decode(body[:length])
        messages.append(str(caught.value))
    named = sum("cut off" in message for message in messages)
    assert named > len(messages) * (0.6 if "tiff" not in kind else 0.1), set(messages)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_after_a_whole_picture_do_not_matter(kind):
    body, _ = KINDS[kind]
    np.testing.assert_array_equal(decode(body + b"\0garbage\xff\xd8"), decode(body))


def test_the_end_of_an_embedded_thumbnail_is_not_the_end_of_the_picture():
    thumbnail = encode(".jpg", PICTURE[:8, :8])
    segment = b"\xff\xe2" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    body = jpeg_with(segment, encode(".jpg"))
    assert decode(body).shape == PICTURE.shape
    with pytest.raises(UserError, match="JPEG picture is cut off"):
        decode(body[:-2])


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "no bytes at all, expected a picture: JPEG"),
        (
            b"hello, I am text",
            r"not a picture: it begins with b'hello, I am .*expected JPEG, PNG, BMP, WebP or TIFF",
        ),
        (b"BMW is a maker of cars", "not a picture"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "not a picture"),
        (b"GIF89a" + bytes(60), "not a picture"),
        (b"\xff\xd8\xff\xd9", "JPEG picture is damaged"),
        (b"\xff\xd8\xff\xe0\x00", "JPEG picture is cut off"),
        (encode(".png").replace(b"IDAT", b"IDAX", 1), "PNG picture is damaged: the checksum"),
        (png(0, 1, 8, 0, b""), "PNG picture is damaged: its header says 0 x 1"),
        (png(8, 8, 8, 0, b"\0short"), "PNG picture of 8 x 8 pixels is damaged"),
        (encode(".tif", PICTURE.astype(np.float32)), "TIFF picture .* of a kind that cannot be read"),
        (b"II*\0\xff\xff\xff\xff", "TIFF picture is cut off"),
        (b"II*\0\x08\0\0\0\0\0", "TIFF picture is damaged"),
    ],
)
def test_what_is_no_whole_picture_is_refused_by_its_own_reason(body, sentence):
    with pytest.raises(UserError, match=sentence):
        decode(body)


def huge_jpeg():
    body = bytearray(encode(".jpg"))
    place = body.index(b"\xff\xc0") + 5
    body[place : place + 4] = struct.pack(">HH", 65000, 65000)
    return bytes(body)


def huge_bmp():
    body = bytearray(encode(".bmp"))
    body[18:26] = struct.pack("<ii", 65000, -65000)
    body[30] = 1  # run-length coded: the rows' size cannot be told from the header
    return bytes(body)


def huge_webp():
    content = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\0" * 2 + encode(".webp")[12:]
    return b"RIFF" + struct.pack("<I", len(content) + 4) + b"WEBP" + content


def huge_tiff():
    entries = struct.pack("<HHIIHHII", 256, 4, 1, 65000, 257, 4, 1, 65000)
    return b"II*\0\x08\0\0\0\x02\0" + entries + bytes(4)


@pytest.mark.parametrize(
    "body",
    [huge_jpeg(), png(65000, 65000, 8, 0, b""), huge_bmp(), huge_webp(), huge_tiff()],
    ids=["jpeg", "png", "bmp", "webp", "tiff"],
)
def test_a_header_over_the_limit_is_refused_before_memory_is_taken(body):
    with pytest.raises(UserError, match=r"has 6\d+ x 6\d+ pixels, the limit is 100000000"):
        decode(body)


@pytest.mark.parametrize("kind", ["jpeg", "png", "bmp", "webp", "webp lossy", "webp alpha", "tiff"])
def test_the_limit_counts_the_pixels_of_every_kind(kind, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    with pytest.raises(UserError, match="has 60 x 40 pixels, the limit is 2399"):
        decode(KINDS[kind][0])
    monkeypatch.setattr(images, "MAX_PIXELS", HEIGHT * WIDTH)
    decode(KINDS[kind][0])


def test_an_old_bmp_header_is_read():
    rows = b"".join(bytes([index * 40] * 3 + [0]) for index in range(4))
    body = b"BM" + struct.pack("<IIIIHHHH", 26 + 16, 0, 26, 12, 1, 4, 1, 24) + rows
    np.testing.assert_array_equal(decode(body)[::-1, 0, 0], [0, 40, 80, 120])


@given(st.sampled_from(sorted(KINDS)), st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_picture_is_a_picture_or_a_user_error(kind, data):
    """Whatever bytes change, the answer is an array or a sentence, never another exception."""
    body = bytearray(KINDS[kind][0])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        picture = decode(bytes(body))
    except UserError:
        return
    assert picture.dtype == np.uint8
    assert picture.ndim == 3


@given(
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*"]), st.binary(max_size=200)
)
@settings(max_examples=150, deadline=None)
def test_random_bytes_are_a_user_error(start, rest):
    with pytest.raises(UserError):
        decode(start + rest)


def test_refusals_are_silent_on_standard_error(tmp_path):
    """OpenCV and its libraries would each print of what they cannot read; bad requests must not fill logs."""
    for index, kind in enumerate(KINDS):
        body = KINDS[kind][0]
        (tmp_path / f"{index}-cut").write_bytes(body[: len(body) // 2])
    (tmp_path / "damaged").write_bytes(encode(".png").replace(b"IDAT", b"IDAX", 1))
    (tmp_path / "text").write_bytes(b"text")
    script = """
import sys
from pathlib import Path
from tandem.errors import UserError
from tandem.images import decode
for path in Path(sys.argv[1]).iterdir():
    try:
        decode(path.read_bytes())
    except UserError:
        continue
    sys.exit(f"{path} was decoded")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        env=os.environ | {"PYTHONPATH": str(PROGRAM)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("array", "pixels"),
    [
        (np.array([[0, 255]], np.uint8), [[[0] * 3, [255] * 3]]),
        (np.array([[[7], [9]]], np.int64), [[[7] * 3, [9] * 3]]),
        (np.array([[[1, 2, 3]]], np.float64), [[[1, 2, 3]]]),
        (np.array([[0.4, 254.6]]), [[[0] * 3, [255] * 3]]),
        (np.array([[0.0, 1.0]]), [[[0] * 3, [1] * 3]]),
        ([[[1, 2, 3]]], [[[1, 2, 3]]]),
    ],
)
def test_arrays_become_rgb_bytes(array, pixels):
    picture = from_array(array)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous
    np.testing.assert_array_equal(picture, pixels)


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros((2, 2, 4), np.uint8), r"shape \(2, 2, 4\)"),
        (np.zeros((1, 2, 2, 3), np.uint8), r"shape \(1, 2, 2, 3\)"),
        (np.zeros((0, 2, 3), np.uint8), r"shape \(0, 2, 3\)"),
        (np.zeros(3), r"shape \(3,\)"),
        (np.array([[256]]), "from 0 to 255"),
        (np.array([[-1.0]]), "from 0 to 255"),
        (np.array([[np.nan]]), "from 0 to 255"),
        (np.array([[np.inf]]), "from 0 to 255"),
        (np.array([["a"]]), "from 0 to 255"),
        (np.array([[True]]), "from 0 to 255"),
        (np.array([[None]]), "from 0 to 255"),
        (np.array([[0.25, 1.0]]), "between 0 and 1"),
        ([[1, 2], [3]], "differ in length"),
    ],
)
def test_arrays_that_are_no_picture_are_refused(array, sentence):
    with pytest.raises(UserError, match=sentence):
        from_array(array)


def test_preprocessing_at_the_pictures_own_size_changes_nothing():
    row = preprocess(PICTURE, Preprocessing(HEIGHT, WIDTH))
    assert row.dtype == np.uint8
    np.testing.assert_array_equal(row, PICTURE)


def test_the_color_order_is_the_models():
    bgr = preprocess(PICTURE, Preprocessing(HEIGHT, WIDTH, color_order="BGR"))
    np.testing.assert_array_equal(bgr, PICTURE[..., ::-1])
    grey = preprocess(PICTURE, Preprocessing(HEIGHT, WIDTH, 1, "GRAY"))
    assert grey.shape == (HEIGHT, WIDTH, 1)
    np.testing.assert_allclose(grey[..., 0], PICTURE @ [0.299, 0.587, 0.114], atol=1)


def test_scale_and_offset_give_float32():
    row = preprocess(PICTURE, Preprocessing(HEIGHT, WIDTH, scale=2 / 255, offset=-1.0))
    assert row.dtype == np.float32
    np.testing.assert_allclose(row, PICTURE / 127.5 - 1, atol=1e-6)


def test_stretch_ignores_the_proportions():
    row = preprocess(PICTURE, Preprocessing(20, 20))
    assert row[0, 0, 0] == 255
    assert row[19, 19, 2] == 255


def test_pad_keeps_the_proportions_between_black_bars():
    row = preprocess(np.full((10, 20, 3), 200, np.uint8), Preprocessing(8, 8, resize="pad"))
    np.testing.assert_array_equal(row[..., 0], [[0] * 8] * 2 + [[200] * 8] * 4 + [[0] * 8] * 2)


def test_crop_keeps_the_proportions_and_the_middle():
    picture = np.zeros((10, 30, 3), np.uint8)
    picture[:, 10:20] = 200
    row = preprocess(picture, Preprocessing(5, 5, resize="crop", interpolation="area_or_linear"))
    np.testing.assert_array_equal(row, np.full((5, 5, 3), 200))


def test_shrinking_averages_all_pixels():
    """Each output is the mean of its own block, so that fine patterns do not turn into others."""
    checks = np.indices((40, 40)).sum(axis=0) % 2 * 200
    row = preprocess(np.repeat(checks.astype(np.uint8)[..., None], 3, axis=2), Preprocessing(10, 10))
    np.testing.assert_array_equal(row, np.full((10, 10, 3), 100))


def test_a_side_that_shrinks_is_averaged_though_the_other_grows():
    stripes = np.zeros((4, 40, 3), np.uint8)
    stripes[:, ::2] = 200
    row = preprocess(stripes, Preprocessing(8, 10, interpolation="area_or_linear"))
    np.testing.assert_array_equal(row, np.full((8, 10, 3), 100))


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    spec=st.builds(
        Preprocessing,
        height=st.integers(1, 40),
        width=st.integers(1, 40),
        channels=st.just(1),
        color_order=st.just("GRAY"),
        resize=st.sampled_from(["stretch", "pad", "crop"]),
        interpolation=st.sampled_from(["area_or_cubic", "area_or_linear", "nearest"]),
        scale=st.sampled_from([1.0, 0.5]),
    ),
)
@settings(max_examples=200, deadline=None)
def test_any_size_becomes_the_shape_and_type_asked_for(height, width, spec):
    row = preprocess(np.full((height, width, 3), 100, np.uint8), spec)
    assert row.shape == spec.shape
    assert row.dtype == spec.dtype
    assert row.flags.c_contiguous
    assert row[(spec.height - 1) // 2, (spec.width - 1) // 2, 0] == 100 * spec.scale


def test_preprocessing_travels_as_plain_data():
    spec = Preprocessing(8, 9, 1, "GRAY", "pad", "nearest", 1 / 255, -0.5)
    assert Preprocessing.from_dict(spec.as_dict()) == spec
    assert set(map(type, spec.as_dict().values())) <= {int, float, str}


@pytest.mark.parametrize(
    "wrong",
    [
        {"height": 0},
        {"width": True},
        {"width": 8.0},
        {"channels": 4},
        {"channels": 1},
        {"channels": 3.0},
        {"color_order": "rgb"},
        {"color_order": []},
        {"resize": "squash"},
        {"interpolation": "lanczos"},
        {"interpolation": {}},
        {"scale": 0},
        {"scale": float("nan")},
        {"offset": "1"},
        {"colour": "RGB"},
    ],
)
def test_wrong_preprocessing_data_is_refused_by_name(wrong):
    with pytest.raises(UserError, match=f"preprocessing: .*{next(iter(wrong))}"):
        Preprocessing.from_dict(Preprocessing(8, 8).as_dict() | wrong)
