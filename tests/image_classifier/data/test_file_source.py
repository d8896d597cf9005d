"""Batches from files: their order, the hosts' shares of them, and where a resumed epoch begins."""

import numpy as np
import pytest

from algorithms.image_classifier.data import dataset, order
from algorithms.image_classifier.data.file_source import FileSource
from algorithms.image_classifier.training import train
from painted import make_channels, write_pictures

# TensorFlow's tensors do not know NumPy 2's `copy`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SPEC = train.describe_preprocessing(8, "RGB")


@pytest.fixture
def listed(tmp_path):
    """Give a channel of 36 pictures, 27 of which train."""
    return dataset.list_pictures(make_channels({"training": write_pictures(tmp_path / "in")}), 0.25, 0)


def make(listed, batch_size=8, seed=5, unreadable_share=0.0, **options):
    reader = dataset.Reader(SPEC, len(listed.training), unreadable_share)
    return FileSource(listed.training, listed.labels, reader, batch_size, seed, **options)


def take(source, epoch=1, start=0):
    """Give a pass's batches as arrays."""
    batches = source.batches(epoch, start)
    return [tuple(part.numpy() for part in batch) for batch in batches]


def sums(batches):
    """Tell pictures apart by their sums, with their labels; those that do not count are left out."""
    return [
        (int(row.sum()), int(label))
        for pixels, labels, weights in batches
        for row, label, weight in zip(pixels, labels, weights, strict=True)
        if weight
    ]


@pytest.mark.parametrize("memory", [0, None])
def test_each_epoch_has_another_order_and_the_same_when_asked_again(listed, memory):
    """Nothing but seed and epoch decides: not what was read before, not another source's threads."""
    source = make(listed, memory=memory)
    first, second = sums(take(source, 1)), sums(take(source, 2))
    assert sorted(first) == sorted(second)
    assert first != second
    assert sums(take(source, 1)) == first
    assert sums(take(make(listed), 2)) == second
    assert sums(take(make(listed, seed=6), 1)) != first


def test_without_a_seed_the_order_is_the_lists(listed):
    """As for validation."""
    source = make(listed, seed=None)
    assert [label for _, label in sums(take(source))] == [label for _, label in listed.training]
    assert source.name(26) == "/".join(listed.training[26][0].parts[-2:])


def test_batches_have_the_shapes_and_types_that_are_announced(listed):
    """All are full but the last."""
    source = make(listed)
    assert (source.rows, source.steps, source.labels) == (27, 4, ("blue", "green", "red"))
    batches = take(source)
    assert [len(labels) for _, labels, _ in batches] == [8, 8, 8, 3]
    for pixels, labels, weights in batches:
        assert [part.dtype for part in (pixels, labels, weights)] == [np.uint8, np.int64, np.float32]
        assert (weights == 1).all()
    announced = source.batches(1).element_spec
    assert [spec.shape.as_list() for spec in announced] == [[None, 8, 8, 3], [None], [None]]
    assert [spec.dtype.as_numpy_dtype for spec in announced] == [np.uint8, np.int64, np.float32]


def test_a_resumed_epoch_goes_on_with_the_same_batches_and_reads_nothing_before(listed):
    """The pictures of the batches left out may even be gone."""
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
    """Put together in rank order their shares are the one host's batches; each host has a row of the last."""
    alone = take(make(listed))
    shares = [take(make(listed, rank=rank, hosts=hosts)) for rank in range(hosts)]
    for step, batch in enumerate(alone):
        assert sums([one[step] for one in shares]) == sums([batch])
        assert all(len(one[step][1]) for one in shares)


def test_hosts_with_their_own_pictures_take_as_many_steps_and_use_each_once(listed):
    """Of 27 pictures one host has 25 and the other 2: four steps for both."""
    items = listed.training
    parts = [items[:25], items[25:]]
    sources = [
        FileSource(
            own, listed.labels, dataset.Reader(SPEC, len(own), 0), 8, 5, rank=rank, hosts=2, parts=(25, 2)
        )
        for rank, own in enumerate(parts)
    ]
    passes = [take(source) for source in sources]
    assert [len(batches) for batches in passes] == [4, 4]
    assert [source.rows for source in sources] == [27, 27]
    assert sorted(sums(passes[0] + passes[1])) == sorted(sums(take(make(listed))))


def test_an_unreadable_picture_counts_nothing_and_changes_no_other_batch(listed):
    """Its row repeats one of its batch."""
    whole = take(make(listed))
    listed.training[3][0].write_bytes(b"no picture")
    source = make(listed, unreadable_share=0.1)
    found = take(source)
    source.check()
    assert sum(int((weights == 0).sum()) for _, _, weights in found) == 1
    for (pixels, labels, weights), (expected, expected_labels, _) in zip(found, whole, strict=True):
        np.testing.assert_array_equal(labels, expected_labels)
        real = weights > 0
        np.testing.assert_array_equal(pixels[real], expected[real])
        assert all(any((row == other).all() for other in pixels[real]) for row in pixels[~real])


def test_a_pass_ends_early_once_too_many_were_unreadable(listed):
    """Then `check` says so."""
    for path, _ in listed.training:
        path.write_bytes(b"no picture")
    source = make(listed)
    assert take(source) == []
    with pytest.raises(dataset.UserError, match="of 27 pictures were unreadable"):
        source.check()


def test_nothing_is_written_into_the_channel(listed, tmp_path):
    """A FastFile channel cannot be written to."""
    folders = [tmp_path / "in", *(tmp_path / "in").iterdir()]
    before = {path: path.stat().st_mtime_ns for path in [*folders, *(path for path, _ in listed.training)]}
    assert len(take(make(listed))) == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before
