"""Reading many pictures at once: what is kept, and what stands for one that cannot be read."""

import logging

import numpy as np
import pytest

from algorithms.image_classifier.data import dataset
from algorithms.image_classifier.data.decoding import Decoder
from algorithms.image_classifier.training import train
from painted import write_pictures
from tandem.images import codec
from tandem.runtime import resources

SPEC = train.describe_preprocessing(8, "RGB")
ROW = 8 * 8 * 3


@pytest.fixture
def paths(tmp_path):
    """Give six pictures, of which the second is none."""
    write_pictures(tmp_path, labels=["red", "green"], count=3)
    listed = sorted(tmp_path.rglob("*.png"))
    listed[1].write_bytes(b"no picture")
    return listed


def expect(path):
    return codec.preprocess(codec.read(path), SPEC)


@pytest.mark.parametrize("memory", [0, None])
def test_rows_are_what_serving_would_see_and_come_in_the_order_asked_for(paths, memory):
    """Kept or not, with one that cannot be read replaced by another of the same call."""
    decoder = Decoder(paths, dataset.Reader(SPEC, 6, 1), memory)
    for chosen in ([5, 1, 0], [2, 3], [4, 1, 5, 3]):
        pixels, readable = decoder.read(np.array(chosen))
        assert readable.tolist() == [index != 1 for index in chosen]
        for row, index in zip(pixels, chosen, strict=True):
            np.testing.assert_array_equal(row, expect(paths[chosen[0] if index == 1 else index]))


@pytest.mark.parametrize("memory", [0, None])
def test_the_first_readable_picture_stands_for_a_lone_unreadable_one(paths, memory):
    """A normalization would learn from black rows."""
    pixels, readable = Decoder(paths, dataset.Reader(SPEC, 6, 1), memory).read(np.array([1]))
    assert readable.tolist() == [False]
    np.testing.assert_array_equal(pixels[0], expect(paths[0]))


def test_where_nothing_can_be_read_rows_are_black(paths):
    """There is no picture to show."""
    for path in paths:
        path.write_bytes(b"no picture")
    pixels, readable = Decoder(paths, dataset.Reader(SPEC, 6, 1)).read(np.arange(6))
    assert not readable.any()
    assert not pixels.any()


def test_kept_pictures_are_read_once_and_others_anew(paths):
    """Kept rows outlive their files."""
    kept, anew = (Decoder(paths, dataset.Reader(SPEC, 6, 1), memory) for memory in (6 * ROW, 6 * ROW - 1))
    chosen = np.array([0, 2, 3, 4, 5])
    before = [decoder.read(chosen)[0] for decoder in (kept, anew)]
    for path in paths:
        path.unlink()
    np.testing.assert_array_equal(kept.read(chosen)[0], before[0])
    assert not anew.read(chosen)[1].any()


def test_one_line_says_whether_pictures_are_kept_and_why(paths, caplog, monkeypatch):
    """They are where they fit half of the memory that the container allows, all channels together."""
    caplog.set_level(logging.INFO, "algorithms")
    monkeypatch.setattr(resources, "count_memory", lambda: 2 * 6 * ROW + 2 * 2 * ROW)
    reader = dataset.Reader(SPEC, 6, 1)
    for count in (6, 3, 2, 1):
        Decoder(paths[:count], reader)
    lines = [record.getMessage() for record in caplog.records]
    assert ["kept in memory" in line for line in lines] == [True, False, True, False]
    assert "read anew each epoch" in lines[1]


def test_no_more_is_read_once_the_reader_has_given_up(paths):
    """Of six broken pictures with none allowed, few are opened."""
    for path in paths:
        path.write_bytes(b"no picture")
    reader = dataset.Reader(SPEC, 6, 0)
    Decoder(paths, reader).read(np.array([0]))
    Decoder(paths, reader).read(np.arange(6))
    assert len(reader.unreadable) == 1
