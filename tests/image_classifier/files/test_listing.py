"""The image files of a job: what is listed, held out and skipped."""

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
from algorithms.image_classifier.files import listing
from sample_images import make_channels, make_job, write_images
from tandem.errors import UserError
from tandem.jobs.channels import Channel

# TensorFlow's tensors do not know NumPy 2's `copy`; Keras's saving asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def info(caplog):
    """Return the log at the level of a job's log."""
    caplog.set_level(logging.INFO, "algorithms")
    return caplog


def test_unreadable_images_are_skipped_named_once_and_counted(tmp_path, info):
    """A job with a few of them continues; two epochs name each only once."""
    folder = write_images(tmp_path / "in")
    (folder / "red" / "broken.png").write_bytes(b"no image")
    (folder / "red" / "empty.jpg").write_bytes(b"")
    image_classifier.train(make_job(tmp_path, {"training": folder}, epochs=2, unreadable_share=0.2))
    named = [
        record.getMessage() for record in info.records if "Skipped the unreadable" in record.getMessage()
    ]
    assert len(named) == 2
    assert any("broken.png" in line for line in named)
    assert any("empty.jpg" in line for line in named)
    assert "Skipped 2 of 38 images" in info.text


def test_too_many_unreadable_images_end_the_job_at_once(tmp_path):
    """The error has the counts and examples, and most images were never read."""
    folder = write_images(tmp_path / "in", count=4)
    for number in range(300):
        (folder / "red" / f"broken{number}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"of 312 images were unreadable.*red/broken") as caught:
        image_classifier.train(make_job(tmp_path, {"training": folder}, unreadable_share=0.02))
    assert int(re.match(r"(\d+) of", str(caught.value))[1]) < 150


def test_a_class_without_readable_images_does_not_count(tmp_path):
    """One class cannot be learned, however many unreadable images are allowed."""
    folder = write_images(tmp_path / "in", labels=["red"])
    (folder / "green").mkdir()
    for number in range(8):
        (folder / "green" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="two or more"):
        image_classifier.train(make_job(tmp_path, {"training": folder}, unreadable_share=1))


def test_a_validation_channel_without_a_readable_image_is_an_error(tmp_path):
    folders = {"training": write_images(tmp_path / "in"), "validation": tmp_path / "validation"}
    (tmp_path / "validation" / "red").mkdir(parents=True)
    (tmp_path / "validation" / "red" / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="validation"):
        image_classifier.train(make_job(tmp_path, folders, unreadable_share=1))


def test_a_single_class_is_an_error(tmp_path):
    folders = {"training": write_images(tmp_path / "in", labels=["red"])}
    with pytest.raises(UserError, match="training"):
        image_classifier.train(make_job(tmp_path, folders))


def test_validation_labels_that_training_lacks_are_named(tmp_path):
    folders = {
        "training": write_images(tmp_path / "in", labels=["red", "green"]),
        "validation": write_images(tmp_path / "validation", labels=["red", "blue"]),
    }
    with pytest.raises(UserError, match="blue"):
        listing.list_images(make_channels(folders), 0.2, 0)


def test_with_a_validation_channel_nothing_is_held_out(tmp_path):
    """All images of channel training are for training."""
    folders = {
        "training": write_images(tmp_path / "in"),
        "validation": write_images(tmp_path / "validation", labels=["red"], count=3, first=50),
    }
    listed = listing.list_images(make_channels(folders), 0.2, 0)
    assert (len(listed.training), len(listed.validation)) == (36, 3)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=5), st.floats(0.01, 0.5), st.integers(0, 9))
def test_the_split_takes_its_share_of_every_class_and_leaves_each_some_images(sizes, share, seed):
    """No image is lost or used twice; of two or more images of a class at least one is on each side."""
    items = [(Path(f"{label}/{n}"), label) for label, size in enumerate(sizes) for n in range(size)]
    if max(sizes) == 1:
        with pytest.raises(UserError, match="held out"):
            listing._split(items, share, seed)
        return
    kept, held_out = listing._split(items, share, seed)
    assert sorted(kept + held_out) == sorted(items)
    assert (kept, held_out) == listing._split(items, share, seed)
    for label, size in enumerate(sizes):
        count = sum(1 for item in held_out if item[1] == label)
        assert count == (0 if size == 1 else max(1, round(size * share)))


class Hosts:
    """Hosts that exchange values, each in a thread."""

    def __init__(self, hosts: int) -> None:
        self.values: list[object] = [None] * hosts
        self.barrier = threading.Barrier(hosts, timeout=30)

    def exchange(self, rank: int, value: object) -> list[object]:
        """Return every host's value after a round trip through JSON."""
        self.values[rank] = json.loads(json.dumps(value))
        self.barrier.wait()
        return list(self.values)


def list_on_hosts(folders_of_hosts, sharded=("training", "validation")):
    """Return each host's listing, or the text of its error."""
    hosts = Hosts(len(folders_of_hosts))

    def run(rank: int):
        folders = {
            name: Channel(name, folder, sharded=name in sharded)
            for name, folder in folders_of_hosts[rank].items()
        }
        try:
            return listing.list_images(folders, 0.25, 0, lambda own: hosts.exchange(rank, own))
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(folders_of_hosts)) as pool:
        return list(pool.map(run, range(len(folders_of_hosts))))


def test_hosts_with_shards_of_a_channel_agree_on_labels_and_counts(tmp_path):
    """A host whose shard lacks a label has the same label indices."""
    first = write_images(tmp_path / "0", labels=["red", "green"], count=4)
    second = write_images(tmp_path / "1", labels=["blue"], count=8)
    found = list_on_hosts([{"training": first}, {"training": second}])
    assert [one.labels for one in found] == [("blue", "green", "red")] * 2
    assert [one.training_parts for one in found] == [(6, 6)] * 2
    assert [one.validation_parts for one in found] == [(2, 2)] * 2
    assert {label for _, label in found[1].training} == {0}


def test_a_channel_that_is_not_sharded_has_no_parts(tmp_path):
    """Only validation is sharded here."""
    whole = write_images(tmp_path / "in", count=2)
    parts = [write_images(tmp_path / label, labels=[label], count=1) for label in ("red", "blue")]
    folders = [{"training": whole, "validation": part} for part in parts]
    found = list_on_hosts(folders, sharded=("validation",))
    assert [(one.training_parts, one.validation_parts) for one in found] == [(None, (1, 1))] * 2


def test_a_single_host_has_all_of_a_sharded_channel(tmp_path):
    folders = {"training": Channel("training", write_images(tmp_path), sharded=True)}
    listed = listing.list_images(folders, 0.25, 0)
    assert (listed.training_parts, listed.validation_parts) == (None, None)


def test_an_error_on_one_host_ends_all_with_the_same_message(tmp_path):
    """In this case a host received no object at all."""
    (tmp_path / "1").mkdir()
    folders = [{"training": write_images(tmp_path / "0")}, {"training": tmp_path / "1"}]
    found = list_on_hosts(folders)
    assert found[0] == found[1]
    assert found[0].startswith("host 2 of 2: the channel 'training'")
    assert "is empty" in found[0]


def test_shards_with_only_one_label_in_total_are_an_error(tmp_path):
    folders = [{"training": write_images(tmp_path / name, labels=["red"])} for name in "01"]
    assert set(list_on_hosts(folders)) == {
        "channel training has only images of the label red; expected two or more labels."
    }


def test_the_error_of_an_index_in_a_sharded_channel_has_a_remedy(tmp_path):
    """The index lists images that only another host has."""
    folder = write_images(tmp_path)
    (folder / "a.lst").write_text("0\t1\telsewhere.png\n")
    with pytest.raises(UserError, match=r"line 1: there is no file .*use FullyReplicated"):
        listing.list_images({"training": Channel("training", folder, sharded=True)}, 0.25, 0)


def test_labels_that_are_numbers_are_sorted_as_numbers():
    """If they count from 0, a label's index is its number."""
    assert listing.sort_labels(["10", "9", "0", "9"]) == ("0", "9", "10")
    assert listing.sort_labels(["10", "9", "x"]) == ("10", "9", "x")


def test_another_channel_uses_the_label_indices_of_training(tmp_path):
    folder = write_images(tmp_path / "test", labels=["red"], count=2)
    listed = listing.list_labelled(Channel("test", folder), ("blue", "red"))
    assert [(path.name, label) for path, label in listed] == [("000.png", 1), ("001.png", 1)]
    with pytest.raises(UserError, match="channel test has labels .*: red"):
        listing.list_labelled(Channel("test", folder), ("blue", "green"))
