"""Every kind of image becomes the same array, and incomplete images are rejected."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picture_files import (
    BMP_COLORS,
    HEIGHT,
    KINDS,
    MORE,
    OLD_BMP,
    PICTURE,
    WIDTH,
    bmp,
    chunk,
    cmyk_jpeg,
    encode,
    exif,
    jpeg_with_orientation,
    png,
    rgb_tiff,
    tiff,
    webp_with_orientation,
)
from tandem.errors import ImageError, UserError
from tandem.images.codec import Preprocessing, decode, from_array, preprocess, read

PROGRAM = Path(__file__).resolve().parents[2] / "program"
UPRIGHT = {
    1: PICTURE,
    2: PICTURE[:, ::-1],
    3: PICTURE[::-1, ::-1],
    4: PICTURE[::-1],
    5: PICTURE.transpose(1, 0, 2),
    6: np.rot90(PICTURE, -1),
    7: PICTURE[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(PICTURE),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_rgb_bytes(kind):
    body, tolerance = KINDS[kind]
    image = decode(body)
    assert (image.shape, image.dtype) == (PICTURE.shape, np.uint8)
    assert np.abs(image.astype(int) - PICTURE).mean() <= tolerance


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
    """No ink is white, cyan removes red, magenta and yellow keep it, black is black."""
    np.testing.assert_allclose(decode(cmyk_jpeg(*ink)), np.broadcast_to(color, (8, 8, 3)), atol=2)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(
    ("write", "tolerance"),
    [
        (jpeg_with_orientation, 8),
        (
            lambda orientation: encode(".png")[:33] + chunk(b"eXIf", exif(orientation)) + encode(".png")[33:],
            0,
        ),
        (webp_with_orientation, 0),
        (lambda orientation: rgb_tiff(t274=orientation), 0),
    ],
    ids=["jpeg", "png", "webp", "tiff"],
)
def test_an_image_is_rotated_upright(write, tolerance, orientation):
    np.testing.assert_allclose(decode(write(orientation)), UPRIGHT[orientation].astype(int), atol=tolerance)


@pytest.mark.parametrize(
    ("body", "pixels"),
    [
        pytest.param(MORE["bmp palette"], [BMP_COLORS[0], BMP_COLORS[1]], id="a palette of 4 bits"),
        pytest.param(MORE["bmp run lengths"], [BMP_COLORS[2]] * 4 + [BMP_COLORS[4]] * 4, id="run lengths"),
        pytest.param(bmp(2, 1, 16, 0, b"\0\x7c\x1f\0"), [(248, 0, 0), (0, 0, 248)], id="16 bit"),
        pytest.param(OLD_BMP, [(120, 120, 120)], id="a header of 1987"),
        pytest.param(MORE["tiff 1 bit"], [(255,) * 3] * 8 + [(0,) * 3] * 8, id="tiff, 1 bit"),
        pytest.param(MORE["tiff fax"], [(255,) * 3] * 16, id="tiff, CCITT"),
        pytest.param(MORE["tiff fax 4"], [(255,) * 3] * 16, id="tiff, CCITT group 4"),
        pytest.param(MORE["tiff cmyk"], [(0, 255, 255), (255, 255, 255)], id="tiff, CMYK"),
        pytest.param(tiff(2, 1, [b"\x0a\xff"], t262=0), [(245,) * 3, (0,) * 3], id="tiff, white is zero"),
    ],
)
def test_rarer_kinds_become_rgb(body, pixels):
    np.testing.assert_array_equal(decode(body)[0, : len(pixels)], pixels)


@pytest.mark.parametrize("kind", MORE)
def test_every_other_kind_is_decoded(kind):
    assert decode(MORE[kind]).dtype == np.uint8


def test_ycck_becomes_rgb():
    np.testing.assert_allclose(decode(MORE["jpeg ycck"]), np.broadcast_to((255, 0, 0), (8, 8, 3)), atol=2)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_after_a_whole_image_are_ignored(kind):
    body, _ = KINDS[kind]
    np.testing.assert_array_equal(decode(body + b"\0garbage\xff\xd8"), decode(body))


@pytest.mark.parametrize("name", [b"gAMA", b"tEXt", b"iTXt", b"zTXt", b"iCCP", b"sRGB", b"cHRM", b"abCd"])
def test_unneeded_chunks_of_a_png_do_not_change_its_pixels(name):
    """Damage in such a chunk and its color data are ignored."""
    body = encode(".png")
    part = chunk(name, b"\0\1\0\0\0\0")[:-1] + b"?"
    np.testing.assert_array_equal(decode(body[:33] + part + body[33:-12] + part + body[-12:]), PICTURE)


def test_a_file_is_read_by_its_bytes_and_not_by_its_name(tmp_path):
    (tmp_path / "image.png").write_bytes(KINDS["webp"][0])
    np.testing.assert_array_equal(read(tmp_path / "image.png"), PICTURE)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "disk.tif").open("wb") as file:
        file.truncate(1 << 30)  # sparse
    with pytest.raises(ImageError, match="the limit is 400000000") as caught:
        read(tmp_path / "disk.tif")
    assert caught.value.kind == "image_too_large"


def test_rejected_images_print_nothing(tmp_path):
    """OpenCV and its libraries print errors of their own; bad requests must not fill the log."""
    for index, kind in enumerate(KINDS):
        body = KINDS[kind][0]
        (tmp_path / f"{index}-cut").write_bytes(body[: len(body) // 2])
    (tmp_path / "damaged").write_bytes(encode(".png").replace(b"IDAT", b"IDAX", 1))
    (tmp_path / "text").write_bytes(b"text")
    script = """
import sys
from pathlib import Path
from tandem.errors import UserError
from tandem.images.codec import decode
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
    image = from_array(array)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, pixels)


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
def test_arrays_that_are_not_images_are_rejected(array, sentence):
    with pytest.raises(UserError, match=sentence):
        from_array(array)


def test_preprocessing_to_the_same_size_changes_nothing():
    row = preprocess(PICTURE, Preprocessing(HEIGHT, WIDTH))
    assert row.dtype == np.uint8
    np.testing.assert_array_equal(row, PICTURE)


def test_the_color_order_is_that_of_the_spec():
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
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 200
    row = preprocess(image, Preprocessing(5, 5, resize="crop", interpolation="area_or_linear"))
    np.testing.assert_array_equal(row, np.full((5, 5, 3), 200))


def test_shrinking_averages_all_pixels():
    """Each output is the mean of its block, so fine patterns do not alias."""
    checks = np.indices((40, 40)).sum(axis=0) % 2 * 200
    row = preprocess(np.repeat(checks.astype(np.uint8)[..., None], 3, axis=2), Preprocessing(10, 10))
    np.testing.assert_array_equal(row, np.full((10, 10, 3), 100))


def test_a_shrinking_side_is_averaged_if_the_other_grows():
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
def test_any_size_becomes_the_shape_and_type_of_the_spec(height, width, spec):
    row = preprocess(np.full((height, width, 3), 100, np.uint8), spec)
    assert row.shape == spec.shape
    assert row.dtype == spec.dtype
    assert row.flags.c_contiguous
    assert row[(spec.height - 1) // 2, (spec.width - 1) // 2, 0] == 100 * spec.scale


def test_preprocessing_round_trips_as_plain_data():
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
def test_wrong_preprocessing_data_is_rejected_by_name(wrong):
    with pytest.raises(UserError, match=f"preprocessing.* .*{next(iter(wrong))}"):
        Preprocessing.from_dict(Preprocessing(8, 8).as_dict() | wrong)
