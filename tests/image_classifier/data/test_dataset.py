"""The pictures of a job: what is listed, held out, left out, and in which order it comes."""

import json
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms import image_classifier
from algorithms.image_classifier.data import dataset
from painted import make_channels, make_job, write_pictures
from tandem.errors import UserError
from tandem.jobs.channels import Channel

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
        dataset.list_pictures(make_channels(folders), 0.2, 0)


def test_with_a_validation_channel_nothing_is_held_out(tmp_path):
    """All of training trains."""
    folders = {
        "training": write_pictures(tmp_path / "in"),
        "validation": write_pictures(tmp_path / "held", labels=["red"], count=3, first=50),
    }
    listed = dataset.list_pictures(make_channels(folders), 0.2, 0)
    assert (len(listed.training), len(listed.validation)) == (36, 3)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=5), st.floats(0.01, 0.5), st.integers(0, 9))
def test_the_split_takes_its_share_of_every_class_and_leaves_each_some_training(sizes, share, seed):
    """Nothing is lost or used twice; a class of two or more gives one picture at least and keeps one."""
    items = [(Path(f"{label}/{n}"), label) for label, size in enumerate(sizes) for n in range(size)]
    if max(sizes) == 1:
        with pytest.raises(UserError, match="held out"):
            dataset._split(items, share, seed)
        return
    kept, held = dataset._split(items, share, seed)
    assert sorted(kept + held) == sorted(items)
    assert (kept, held) == dataset._split(items, share, seed)
    for label, size in enumerate(sizes):
        count = sum(1 for item in held if item[1] == label)
        assert count == (0 if size == 1 else max(1, round(size * share)))


class Meeting:
    """Hosts that exchange values, each in a thread."""

    def __init__(self, hosts: int) -> None:
        self.said: list[object] = [None] * hosts
        self.barrier = threading.Barrier(hosts, timeout=30)

    def exchange(self, rank: int, value: object) -> list[object]:
        """Give every host's value, as it comes through JSON."""
        self.said[rank] = json.loads(json.dumps(value))
        self.barrier.wait()
        return list(self.said)


def list_on_hosts(folders_of_hosts, sharded=("training", "validation")):
    """Give each host's pictures, or the sentence of its error."""
    meeting = Meeting(len(folders_of_hosts))

    def run(rank: int):
        folders = {
            name: Channel(name, folder, sharded=name in sharded)
            for name, folder in folders_of_hosts[rank].items()
        }
        try:
            return dataset.list_pictures(folders, 0.25, 0, lambda own: meeting.exchange(rank, own))
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(folders_of_hosts)) as pool:
        return list(pool.map(run, range(len(folders_of_hosts))))


def test_hosts_with_parts_of_a_channel_agree_on_labels_and_counts(tmp_path):
    """A host whose part lacks a label still has it in its place."""
    first = write_pictures(tmp_path / "0", labels=["red", "green"], count=4)
    second = write_pictures(tmp_path / "1", labels=["blue"], count=8)
    found = list_on_hosts([{"training": first}, {"training": second}])
    assert [one.labels for one in found] == [("blue", "green", "red")] * 2
    assert [one.training_parts for one in found] == [(6, 6)] * 2
    assert [one.validation_parts for one in found] == [(2, 2)] * 2
    assert {label for _, label in found[1].training} == {0}


def test_a_channel_that_all_hosts_have_whole_has_no_parts(tmp_path):
    """Only validation is sharded here."""
    whole = write_pictures(tmp_path / "in", count=2)
    parts = [write_pictures(tmp_path / label, labels=[label], count=1) for label in ("red", "blue")]
    folders = [{"training": whole, "validation": part} for part in parts]
    found = list_on_hosts(folders, sharded=("validation",))
    assert [(one.training_parts, one.validation_parts) for one in found] == [(None, (1, 1))] * 2


def test_one_host_with_a_sharded_channel_has_all_of_it(tmp_path):
    """There is nobody to share it with."""
    folders = {"training": Channel("training", write_pictures(tmp_path), sharded=True)}
    listed = dataset.list_pictures(folders, 0.25, 0)
    assert (listed.training_parts, listed.validation_parts) == (None, None)


def test_what_is_wrong_on_one_host_ends_all_with_the_same_sentence(tmp_path):
    """Here a host got no object at all."""
    (tmp_path / "1").mkdir()
    folders = [{"training": write_pictures(tmp_path / "0")}, {"training": tmp_path / "1"}]
    found = list_on_hosts(folders)
    assert found[0] == found[1]
    assert found[0].startswith("host 2 of 2: the channel 'training'")
    assert "is empty" in found[0]


def test_parts_with_one_label_in_all_are_an_error(tmp_path):
    """It is named."""
    folders = [{"training": write_pictures(tmp_path / name, labels=["red"])} for name in "01"]
    assert set(list_on_hosts(folders)) == {
        "channel training has only pictures of the label red; expected two or more."
    }


def test_an_index_of_a_sharded_channel_says_what_to_do(tmp_path):
    """It lists what another host has."""
    folder = write_pictures(tmp_path)
    (folder / "a.lst").write_text("0\t1\telsewhere.png\n")
    with pytest.raises(UserError, match=r"line 1: there is no file .*use FullyReplicated"):
        dataset.list_pictures({"training": Channel("training", folder, sharded=True)}, 0.25, 0)


def test_labels_that_are_numbers_are_sorted_as_numbers():
    """So that a label's index is its number where they count from 0."""
    assert dataset.sort_labels(["10", "9", "0", "9"]) == ("0", "9", "10")
    assert dataset.sort_labels(["10", "9", "x"]) == ("10", "9", "x")


def test_a_further_channel_has_the_labels_of_training(tmp_path):
    """Their indices are the network's."""
    folder = write_pictures(tmp_path / "test", labels=["red"], count=2)
    listed = dataset.list_labelled(Channel("test", folder), ("blue", "red"))
    assert [(path.name, label) for path, label in listed] == [("000.png", 1), ("001.png", 1)]
    with pytest.raises(UserError, match="channel test has labels .*: red"):
        dataset.list_labelled(Channel("test", folder), ("blue", "green"))
