"""The calibration rows of int8 are readable images of the job, and no more than requested."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from algorithms.image_classifier.training.calibration import add_int8, collect_rows, read_batches


@pytest.fixture
def source():
    """Ten rows in batches of four, filled with their number; the first two and the last are unreadable."""
    import tensorflow as tf

    pixels = np.repeat(np.arange(10, dtype=np.uint8), 12).reshape(10, 2, 2, 3)
    weights = np.array([0, 0, *[1] * 7, 0], np.float32)
    rows = tf.data.Dataset.from_tensor_slices((pixels, np.arange(10) + 100, weights))
    return SimpleNamespace(batches=lambda _epoch: rows.batch(4))


@pytest.mark.parametrize(("count", "numbers"), [(1, [2]), (3, [2, 3, 4]), (300, [2, 3, 4, 5, 6, 7, 8])])
def test_the_first_readable_rows_are_collected(source, count, numbers):
    rows = collect_rows(source, count)
    assert rows.dtype == np.uint8
    assert rows.shape[1:] == (2, 2, 3)
    assert rows[:, 0, 0, 0].tolist() == numbers


def test_a_pass_yields_readable_rows_with_their_labels(source):
    batches = list(read_batches(source, threading.Event()))
    assert [labels.tolist() for _, labels in batches] == [[102, 103], [104, 105, 106, 107], [108]]
    assert [pixels[:, 1, 1, 2].tolist() for pixels, _ in batches] == [[2, 3], [4, 5, 6, 7], [8]]


def test_a_stopped_pass_ends(source):
    stop = threading.Event()
    batches = read_batches(source, stop)
    next(batches)
    stop.set()
    assert list(batches) == []


def test_a_stopped_job_adds_no_int8_form(source, tmp_path, caplog):
    stop = threading.Event()
    stop.set()
    add_int8(tmp_path, SimpleNamespace(training=source, validation=source), stop)
    assert "no int8 form" in caplog.text
    assert list(tmp_path.iterdir()) == []
