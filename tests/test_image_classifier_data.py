"""The pictures of a job: what is listed, held out, left out, and in which order it comes."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms import image_classifier
from algorithms.image_classifier import data, training
from painted import make_channels, make_job, write_pictures
from tandem.errors import UserError

# TensorFlow's tensors do not know NumPy 2's `copy`; Keras's saving asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def info(caplog):
    """Give the log, with what a job's log has."""
    caplog.set_level(logging.INFO, "algorithms")
    return caplog


def test_unreadable_pictures_are_left_out_named_once_and_counted(tmp_path, info):
    """A job with a few of them goes on; two epochs name each only once."""
    folder = write_pictures(tmp_path / "in")
    (folder / "red" / "broken.png").write_bytes(b"no picture")
    (folder / "red" / "empty.jpg").write_bytes(b"")
    image_classifier.train(make_job(tmp_path, {"training": folder}, epochs=2, unreadable_share=0.2))
    named = [record.getMessage() for record in info.records if "Left out" in record.getMessage()]
    assert len(named) == 2
    assert any("broken.png" in line for line in named)
    assert any("empty.jpg" in line for line in named)
    assert "2 of 38 pictures were left out" in info.text


def test_more_unreadable_pictures_than_allowed_end_the_job_at_once(tmp_path):
    """The sentence has the counts and examples, and most pictures were never read."""
    folder = write_pictures(tmp_path / "in", count=4)
    for number in range(300):
        (folder / "red" / f"broken{number}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"of 312 pictures were unreadable.*red/broken") as caught:
        image_classifier.train(make_job(tmp_path, {"training": folder}, unreadable_share=0.02))
    assert int(re.match(r"(\d+) of", str(caught.value))[1]) < 150


def test_a_class_of_which_nothing_is_readable_leaves_too_few_classes(tmp_path):
    """However many unreadable pictures are allowed, one class cannot be learnt."""
    folder = write_pictures(tmp_path / "in", labels=["red"])
    (folder / "green").mkdir()
    for number in range(8):
        (folder / "green" / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="two or more"):
        image_classifier.train(make_job(tmp_path, {"training": folder}, unreadable_share=1))


def test_a_validation_channel_without_a_readable_picture_is_an_error(tmp_path):
    """There would be nothing to tell whether the model is any good."""
    folders = {"training": write_pictures(tmp_path / "in"), "validation": tmp_path / "held"}
    (tmp_path / "held" / "red").mkdir(parents=True)
    (tmp_path / "held" / "red" / "0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="validation"):
        image_classifier.train(make_job(tmp_path, folders, unreadable_share=1))


def test_a_single_class_is_an_error(tmp_path):
    """There is nothing to tell apart."""
    folders = {"training": write_pictures(tmp_path / "in", labels=["red"])}
    with pytest.raises(UserError, match="training"):
        image_classifier.train(make_job(tmp_path, folders))


def test_validation_labels_that_training_lacks_are_named(tmp_path):
    """They could never be right."""
    folders = {
        "training": write_pictures(tmp_path / "in", labels=["red", "green"]),
        "validation": write_pictures(tmp_path / "held", labels=["red", "blue"]),
    }
    with pytest.raises(UserError, match="blue"):
        data.list_pictures(make_channels(folders), 0.2, 0)


def test_with_a_validation_channel_nothing_is_held_out(tmp_path):
    """All of training trains."""
    folders = {
        "training": write_pictures(tmp_path / "in"),
        "validation": write_pictures(tmp_path / "held", labels=["red"], count=3, first=50),
    }
    listed = data.list_pictures(make_channels(folders), 0.2, 0)
    assert (len(listed.training), len(listed.validation)) == (36, 3)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=5), st.floats(0.01, 0.5), st.integers(0, 9))
def test_the_split_takes_its_share_of_every_class_and_leaves_each_some_training(sizes, share, seed):
    """Nothing is lost or used twice; a class of two or more gives one picture at least and keeps one."""
    items = [(Path(f"{label}/{n}"), label) for label, size in enumerate(sizes) for n in range(size)]
    if max(sizes) == 1:
        with pytest.raises(UserError, match="held out"):
            data._split(items, share, seed)
        return
    kept, held = data._split(items, share, seed)
    assert sorted(kept + held) == sorted(items)
    assert (kept, held) == data._split(items, share, seed)
    for label, size in enumerate(sizes):
        count = sum(1 for item in held if item[1] == label)
        assert count == (0 if size == 1 else max(1, round(size * share)))


def test_each_pass_has_another_order_and_the_same_for_the_same_seed(tmp_path):
    """Nothing but the seed decides the order in which pictures come."""
    listed = data.list_pictures(make_channels({"training": write_pictures(tmp_path / "in")}), 0.2, 0)
    spec = training.describe_preprocessing(8, "RGB")

    def passes() -> list[list[int]]:
        stream = data.stream(listed.training, data.Reader(spec, 36, 0), 8, seed=5)
        return [[int(total) for pixels, _ in stream for total in np.sum(pixels, (1, 2, 3))] for _ in range(2)]

    first, second = passes()
    assert sorted(first) == sorted(second)
    assert first != second
    assert passes() == [first, second]
