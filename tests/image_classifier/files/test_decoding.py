"""The parallel decoding of files: the memory cache, and the replacement of unreadable images."""

import logging

import numpy as np
import pytest

from algorithms.image_classifier.data.images import ImageReader
from algorithms.image_classifier.files.source import Decoder
from algorithms.image_classifier.training import train
from sample_images import write_images
from tandem.images import codec
from tandem.runtime import resources

SPEC = train.describe_preprocessing(8, "RGB")
ROW = 8 * 8 * 3


@pytest.fixture
def paths(tmp_path):
    """Return the paths of six images, of which the second is invalid."""
    write_images(tmp_path, labels=["red", "green"], count=3)
    listed = sorted(tmp_path.rglob("*.png"))
    listed[1].write_bytes(b"no image")
    return listed


def expect(path):
    return codec.preprocess(codec.read(path), SPEC)


@pytest.mark.parametrize("memory", [0, None])
def test_rows_equal_those_of_serving_in_the_requested_order(paths, memory):
    """Cached or not; an unreadable image is replaced by another one of the same call."""
    decoder = Decoder(paths, ImageReader(SPEC, 6, 1), memory)
    for chosen in ([5, 1, 0], [2, 3], [4, 1, 5, 3]):
        pixels, readable = decoder.read(np.array(chosen))
        assert readable.tolist() == [index != 1 for index in chosen]
        for row, index in zip(pixels, chosen, strict=True):
            np.testing.assert_array_equal(row, expect(paths[chosen[0] if index == 1 else index]))


@pytest.mark.parametrize("memory", [0, None])
def test_a_single_unreadable_image_is_replaced_by_the_first_readable_one(paths, memory):
    """BatchNormalization would learn from black rows."""
    pixels, readable = Decoder(paths, ImageReader(SPEC, 6, 1), memory).read(np.array([1]))
    assert readable.tolist() == [False]
    np.testing.assert_array_equal(pixels[0], expect(paths[0]))


def test_rows_are_black_if_no_image_is_readable(paths):
    for path in paths:
        path.write_bytes(b"no image")
    pixels, readable = Decoder(paths, ImageReader(SPEC, 6, 1)).read(np.arange(6))
    assert not readable.any()
    assert not pixels.any()


def test_cached_images_are_read_once_and_others_again(paths):
    """Cached rows are available after their files are deleted."""
    cached, uncached = (Decoder(paths, ImageReader(SPEC, 6, 1), memory) for memory in (6 * ROW, 6 * ROW - 1))
    chosen = np.array([0, 2, 3, 4, 5])
    before = [decoder.read(chosen)[0] for decoder in (cached, uncached)]
    for path in paths:
        path.unlink()
    np.testing.assert_array_equal(cached.read(chosen)[0], before[0])
    assert not uncached.read(chosen)[1].any()


def test_the_log_has_one_line_on_whether_images_are_kept_in_memory(paths, caplog, monkeypatch):
    """They are if those of all channels fit in half of the container's memory."""
    caplog.set_level(logging.INFO, "algorithms")
    monkeypatch.setattr(resources, "count_memory", lambda: 2 * 6 * ROW + 2 * 2 * ROW)
    reader = ImageReader(SPEC, 6, 1)
    for count in (6, 3, 2, 1):
        Decoder(paths[:count], reader)
    lines = [record.getMessage() for record in caplog.records]
    assert ["kept in memory" in line for line in lines] == [True, False, True, False]
    assert "decoded again in each epoch" in lines[1]


def test_nothing_is_read_after_the_reader_has_given_up(paths):
    """Of six invalid images with none allowed, only one is opened."""
    for path in paths:
        path.write_bytes(b"no image")
    reader = ImageReader(SPEC, 6, 0)
    Decoder(paths, reader).read(np.array([0]))
    Decoder(paths, reader).read(np.arange(6))
    assert len(reader.unreadable) == 1
