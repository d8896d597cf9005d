"""Batches of image files: their order, the shares of hosts, and resumed epochs."""

import numpy as np
import pytest

from algorithms.image_classifier.data import order
from algorithms.image_classifier.data.images import ImageReader
from algorithms.image_classifier.data.source import Batching
from algorithms.image_classifier.files import listing
from algorithms.image_classifier.files.source import FileSource
from algorithms.image_classifier.training import train
from sample_images import make_channels, write_images
from tandem.errors import UserError

# TensorFlow's tensors do not know NumPy 2's `copy`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SPEC = train.describe_preprocessing(8, "RGB")


@pytest.fixture
def listed(tmp_path):
    """Return the listing of 36 images, 27 of which are for training."""
    return listing.list_images(make_channels({"training": write_images(tmp_path / "in")}), 0.25, 0)


def make(listed, *, seed=5, unreadable_share=0.0, rank=0, hosts=1, memory=None):
    reader = ImageReader(SPEC, len(listed.training), unreadable_share)
    batching = Batching(len(listed.training), 8, seed, rank, hosts)
    return FileSource(listed.training, listed.labels, reader, batching, memory)


def take(source, epoch=1, start=0):
    """Return a pass's batches as arrays."""
    batches = source.batches(epoch, start)
    return [tuple(part.numpy() for part in batch) for batch in batches]


def sums(batches):
    """Identify images by their sums, with their labels; those that do not count are left out."""
    return [
        (int(row.sum()), int(label))
        for pixels, labels, weights in batches
        for row, label, weight in zip(pixels, labels, weights, strict=True)
        if weight
    ]


@pytest.mark.parametrize("memory", [0, None])
def test_the_order_depends_only_on_the_seed_and_the_epoch(listed, memory):
    """Earlier passes and the threads of another source do not change it."""
    source = make(listed, memory=memory)
    first, second = sums(take(source, 1)), sums(take(source, 2))
    assert sorted(first) == sorted(second)
    assert first != second
    assert sums(take(source, 1)) == first
    assert sums(take(make(listed), 2)) == second
    assert sums(take(make(listed, seed=6), 1)) != first


def test_without_a_seed_the_order_is_that_of_the_list(listed):
    """Validation uses no seed."""
    source = make(listed, seed=None)
    assert [label for _, label in sums(take(source))] == [label for _, label in listed.training]
    assert source.name(26) == "/".join(listed.training[26][0].parts[-2:])


def test_batches_have_the_shapes_and_types_of_the_element_spec(listed):
    """All batches but the last one are full."""
    source = make(listed)
    assert (source.rows, source.steps, source.labels) == (27, 4, ("blue", "green", "red"))
    batches = take(source)
    assert [len(labels) for _, labels, _ in batches] == [8, 8, 8, 3]
    for pixels, labels, weights in batches:
        assert [part.dtype for part in (pixels, labels, weights)] == [np.uint8, np.int64, np.float32]
        assert (weights == 1).all()
    declared = source.batches(1).element_spec
    assert [spec.shape.as_list() for spec in declared] == [[None, 8, 8, 3], [None], [None]]
    assert [spec.dtype.as_numpy_dtype for spec in declared] == [np.uint8, np.int64, np.float32]


def test_a_resumed_epoch_has_the_same_batches_and_skips_earlier_files(listed):
    """The images of the skipped batches may even be deleted."""
    whole = take(make(listed))
    source = make(listed, memory=0)
    for index in order.shuffle(27, 5, 1)[:16]:
        listed.training[index][0].unlink()
    rest = take(source, start=2)
    assert len(rest) == 2
    for ours, theirs in zip(rest, whole[2:], strict=True):
        for part, expected in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(part, expected)
    assert take(source, start=4) == []


@pytest.mark.parametrize("hosts", [2, 3, 5])
def test_hosts_share_each_global_batch(listed, hosts):
    """In rank order the shares are the batches of one host; each host has a row of the last batch."""
    alone = take(make(listed))
    shares = [take(make(listed, rank=rank, hosts=hosts)) for rank in range(hosts)]
    for step, batch in enumerate(alone):
        assert sums([one[step] for one in shares]) == sums([batch])
        assert all(len(one[step][1]) for one in shares)


def test_hosts_with_different_shards_take_equally_many_steps_and_use_each_image_once(listed):
    """Of 27 images one host has 25 and the other 2; both take four steps."""
    items = listed.training
    parts = [items[:25], items[25:]]
    sources = [
        FileSource(own, listed.labels, ImageReader(SPEC, len(own), 0), Batching(27, 8, 5, rank, 2, (25, 2)))
        for rank, own in enumerate(parts)
    ]
    passes = [take(source) for source in sources]
    assert [len(batches) for batches in passes] == [4, 4]
    assert [source.rows for source in sources] == [27, 27]
    assert sorted(sums(passes[0] + passes[1])) == sorted(sums(take(make(listed))))


def test_an_unreadable_image_does_not_count_and_changes_no_other_batch(listed):
    """Its row repeats another one of its batch."""
    whole = take(make(listed))
    listed.training[3][0].write_bytes(b"no image")
    source = make(listed, unreadable_share=0.1)
    found = take(source)
    source.check()
    assert sum(int((weights == 0).sum()) for _, _, weights in found) == 1
    for (pixels, labels, weights), (expected, expected_labels, _) in zip(found, whole, strict=True):
        np.testing.assert_array_equal(labels, expected_labels)
        real = weights > 0
        np.testing.assert_array_equal(pixels[real], expected[real])
        assert all(any((row == other).all() for other in pixels[real]) for row in pixels[~real])


def test_a_pass_ends_early_after_too_many_unreadable_images(listed):
    """`check` then raises the error."""
    for path, _ in listed.training:
        path.write_bytes(b"no image")
    source = make(listed)
    assert take(source) == []
    with pytest.raises(UserError, match="of 27 images were unreadable"):
        source.check()


def test_nothing_is_written_into_the_channel(listed, tmp_path):
    """A FastFile channel is read-only."""
    folders = [tmp_path / "in", *(tmp_path / "in").iterdir()]
    before = {path: path.stat().st_mtime_ns for path in [*folders, *(path for path, _ in listed.training)]}
    assert len(take(make(listed))) == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before
