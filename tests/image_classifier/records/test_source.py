"""Batches of records from files and FIFOs, on one host and on several."""

import dataclasses
import gzip
import logging
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from algorithms.image_classifier.data.source import DeclaredCounts, Host, ReadOptions
from algorithms.image_classifier.records import streams
from algorithms.image_classifier.records.opening import has_records, open_records
from algorithms.image_classifier.training.train import describe_preprocessing
from sample_records import Feeder, make_example, pack_images, pack_manifest, write_tfrecords
from tandem.errors import UserError
from tandem.jobs.channels import Channel

ALONE = Host(0, 1, lambda own: [own])


def png(shade):
    """Return an image whose pixels all have this value, so that a batch shows which records it has."""
    return cv2.imencode(".png", np.full((8, 8, 3), shade, np.uint8))[1].tobytes()


def pairs(count, first=0, labels=3):
    return [(number % labels, png(first + number)) for number in range(count)]


def read(source, epoch=1, start=0):
    """Return each batch as its (shade, label, weight) rows."""
    batches = source.batches(epoch, start).as_numpy_iterator()
    return [
        [(int(pixels[row, 0, 0, 0]), int(labels[row]), float(weights[row])) for row in range(len(labels))]
        for pixels, labels, weights in batches
    ]


def flat(batches):
    return [row for batch in batches for row in batch]


@pytest.fixture
def options():
    def make(batch_size=4, unreadable_share=0.2, seed=0, validation_share=0.2):
        return ReadOptions(
            describe_preprocessing(8, "RGB"), batch_size, seed, validation_share, unreadable_share
        )

    return make


@pytest.fixture
def channel(tmp_path):
    """`channel("training", {"a.rec": content})` makes a channel of files; without files, a Pipe channel."""

    def make(name, files=None, **options):
        folder = tmp_path / name
        if files is None:
            return Channel(name, folder, "Pipe", **options)
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_bytes(content)
        return Channel(name, folder, **options)

    return make


def open_all(channels, options, declared=None, host=ALONE, stop=None):
    by_name = {channel.name: channel for channel in channels}
    declared, stop = declared or DeclaredCounts(), stop or threading.Event()
    return open_records(by_name, dataclasses.replace(options, declared=declared, stop=stop), host)


def declare(training, validation, classes=3):
    return DeclaredCounts(classes, {"training": training, "validation": validation})


def list_unreadable(records):
    return records.training._reader.unreadable


def test_all_records_of_files_are_read_and_a_share_is_held_out(channel, options):
    """Every record is in one of the two sources, with its own label; one file is compressed."""
    files = {
        "a.rec": pack_images(pairs(10)),
        "b.rec.gz": gzip.compress(pack_images(pairs(10, 10))),
        "a.idx": b"0\t0\n",
        "a.lst": b"0\t1\ta.png\n",
    }
    records = open_all([channel("training", files)], options())
    assert records.training.labels == ("0", "1", "2")
    assert (records.training.rows, records.validation.rows) == (16, 4)
    trained, validated = flat(read(records.training)), flat(read(records.validation))
    expected = [(number + first, number % 3, 1.0) for first in (0, 10) for number in range(10)]
    assert sorted(trained + validated) == expected
    assert validated == sorted(validated)
    assert records.label_counts == [8, 6, 6]


def test_the_order_depends_on_the_epoch_and_start_skips_batches(channel, options, monkeypatch):
    """Also with a buffer that is smaller than the channel."""
    monkeypatch.setattr(streams, "BUFFERED_RECORDS", 5)
    files = {f"{number}.rec": pack_images(pairs(10, 10 * number)) for number in range(4)}
    channels = [channel("training", files), channel("validation", {"v.rec": pack_images(pairs(3))})]
    first, again = (open_all(channels, options()).training for _ in range(2))
    assert read(first, 1) == read(again, 1) != read(again, 2)
    assert sorted(flat(read(first, 2))) == sorted(flat(read(first, 1)))
    assert read(first, 2, start=7) == read(first, 2)[7:]
    assert read(first, 2, start=10) == []


def test_labels_are_named_by_the_texts_of_tfrecords(channel, options, tmp_path):
    """This needs one text for each number; some records may have none."""
    examples = [
        make_example(number % 2, png(number), ["cat", "dog"][number % 2] if number < 6 else None)
        for number in range(10)
    ]
    content = write_tfrecords(tmp_path / "x", examples).read_bytes()
    records = open_all([channel("training", {"a.tfrecord": content})], options())
    assert records.training.labels == ("cat", "dog")
    assert {label for _, label, _ in flat(read(records.training))} == {0, 1}
    assert records.label_counts == [5, 5]


def test_texts_without_numbers_are_labels(channel, options, tmp_path):
    examples = [make_example(None, png(number), ["dog", "cat"][number % 2]) for number in range(10)]
    content = write_tfrecords(tmp_path / "x", examples, "GZIP").read_bytes()
    channels = [channel("training", {"0-of-1": content}, content_type="application/x-tfrecord")]
    records = open_all(channels, options())
    assert records.training.labels == ("cat", "dog")
    assert all(label == 1 - shade % 2 for shade, label, _ in flat(read(records.training)))


@pytest.mark.parametrize("pack", [pack_images, pack_manifest])
def test_the_first_pass_reads_the_first_fifo_in_any_epoch(channel, options, tmp_path, pack):
    """A job that continues at epoch 5 has new FIFOs; each pass reads the next one."""
    channels = [channel("training"), channel("validation")]
    records = open_all(channels, options(), declare(10, 4))
    with (
        Feeder(tmp_path / "training", [pack(pairs(10)), pack(pairs(10, 100))]) as training,
        Feeder(tmp_path / "validation", [pack(pairs(4, 50))]),
    ):
        assert sorted(shade for shade, _, _ in flat(read(records.training, 5))) == list(range(10))
        assert [shade for shade, _, _ in flat(read(records.validation, 5))] == [50, 51, 52, 53]
        assert sorted(shade for shade, _, _ in flat(read(records.training, 6))) == list(range(100, 110))
        assert training.finish() == 2
    assert records.validation.name(2) == "validation/record 2"
    assert sorted(records.validation.sample(3)[:, 0, 0, 0].tolist()) == [50, 51, 52]
    assert records.label_counts is None


@pytest.mark.parametrize("there", [7, 13])
def test_the_number_of_batches_is_the_declared_one(channel, options, tmp_path, caplog, there):
    """Missing rows do not count, further ones are ignored, and the log names the number to correct."""
    records = open_all([channel("training"), channel("validation")], options(), declare(10, 4))
    with Feeder(tmp_path / "training", [pack_images(pairs(there))]) as feeder:
        batches = read(records.training)
        assert feeder.finish() == 1
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(shade for shade, _, weight in flat(batches) if weight) == list(range(min(there, 10)))
    found = "only 7 of the 10" if there == 7 else "more than the 10"
    assert f"a pass had {found} records expected; correct num_training_samples" in caplog.text
    records.training.check()


def test_an_invalid_record_ends_the_pass_and_check_raises_the_error(channel, options, tmp_path):
    records = open_all([channel("training"), channel("validation")], options(), declare(10, 4))
    contents = [pack_images([*pairs(9), (7, png(0))]), pack_images(pairs(10))[:-20], b""]
    messages = [
        "record 9 has the label 7; expected one of 3",
        "training_1 ends within",
        "has no record in this pass",
    ]
    with Feeder(tmp_path / "training", contents):
        for message in messages:
            assert len(read(records.training)) < 3
            with pytest.raises(UserError, match=message):
                records.training.check()


def test_a_stop_ends_a_pass_that_waits_for_data(channel, options):
    stop = threading.Event()
    records = open_all([channel("training"), channel("validation")], options(), declare(10, 4), stop=stop)
    threading.Timer(0.2, stop.set).start()
    assert read(records.training) == []
    records.training.check()


def test_after_a_stop_one_of_several_hosts_continues_with_empty_rows(channel, options):
    """Its rows do not count, and all hosts leave after the same step."""
    stop = threading.Event()
    stop.set()
    host = Host(1, 2, lambda own: [own] * 2)
    records = open_all([channel("training"), channel("validation")], options(), declare(10, 4), host, stop)
    assert read(records.training, start=1) == [[(0, 0, 0.0)], [(0, 0, 0.0)]]
    records.training.check()


def test_an_unreadable_image_keeps_its_row_but_does_not_count(channel, options, caplog):
    """It has the pixels of a readable image, and two epochs count it once."""
    caplog.set_level(logging.INFO, "algorithms")
    broken = [*pairs(5), (1, b"no image"), *pairs(4, 6)]
    files = {"a.rec": pack_images(broken)}
    channels = [channel("training", files), channel("validation", {"v.rec": pack_images(pairs(3))})]
    records = open_all(channels, options(batch_size=10))
    for epoch in (1, 2):
        (rows,) = read(records.training, epoch)
        assert len(rows) == 10
        (skipped,) = [shade for shade, _, weight in rows if not weight]
        assert skipped in {shade for shade, _, weight in rows if weight}
    assert caplog.text.count("Skipped the unreadable image training/record 5") == 1
    records.training.check()


def test_too_many_unreadable_images_end_the_pass(channel, options):
    broken = [*pairs(5), *((1, b"no image %d" % number) for number in range(15))]
    records = open_all([channel("training", {"a.rec": pack_images(broken)})], options())
    assert len(read(records.training)) < records.training.steps
    with pytest.raises(UserError, match="images were unreadable so far.*training/record"):
        records.training.check()


def test_unreadable_records_with_equal_content_are_each_counted_once(channel, options, tmp_path):
    """Even if their order differs between passes, and one of them pads batches."""
    passes = [[(0, b""), *pairs(6), (1, b""), (2, b"")], [*pairs(6), (1, b""), (2, b""), (0, b"")]]
    declared = declare(15, 4)  # more than there are, so the first record pads batches
    records = open_all([channel("training"), channel("validation")], options(3, 0.5), declared)
    with Feeder(tmp_path / "training", [pack_images(some) for some in passes]):
        for epoch in (1, 2):
            batches = read(records.training, epoch)
            assert sum(weight for _, _, weight in flat(batches)) == 6
            assert len(list_unreadable(records)) == 3
    assert len(records.training.sample(20))  # decodes the broken ones again
    assert len(list_unreadable(records)) == 3


def test_unreadable_records_with_equal_content_reach_the_limit(channel, options):
    """Fifteen empty images count as fifteen."""
    files = {"a.rec": pack_images([*pairs(5), *((1, b"") for _ in range(15))])}
    records = open_all([channel("training", files)], options(unreadable_share=0.5))
    assert len(read(records.training)) < records.training.steps
    with pytest.raises(UserError, match="images were unreadable so far"):
        records.training.check()


@pytest.mark.parametrize("count", [23, 24, 25])
def test_hosts_with_the_same_records_share_each_batch(channel, options, count):
    """Together the shares are the batches of one host; each share has at least one row."""
    channels = [
        channel("training", {"a.rec": pack_images(pairs(count))}),
        channel("validation", {"v.rec": pack_images(pairs(5))}),
    ]
    alone = open_all(channels, options(batch_size=8))
    hosts = [
        open_all(channels, options(batch_size=8), host=Host(rank, 3, lambda own: [own] * 3))
        for rank in range(3)
    ]
    for name in ("training", "validation"):
        shares = [read(getattr(host, name)) for host in hosts]
        whole = read(getattr(alone, name))
        assert {len(share) for share in shares} == {len(whole)}
        for number, batch in enumerate(whole):
            assert [row for share in shares for row in share[number] if row[2]] == batch
            assert all(share[number] for share in shares)


def test_hosts_with_different_shards_agree_on_steps_and_labels(channel, options, tmp_path):
    """One shard is larger; both hosts have equally many batches, and every record counts once."""
    stats, hosts = {}, []
    contents = [pairs(30, labels=2), [(2, png(100 + number)) for number in range(10)]]
    validation = channel("validation", {"v.rec": pack_images(pairs(4))})
    channels = []
    for rank, content in enumerate(contents):
        folder = tmp_path / str(rank)
        folder.mkdir()
        (folder / "a.rec").write_bytes(pack_images(content))
        channels.append(Channel("training", folder, sharded=True))
        stats[rank] = streams.FileStream(channels[-1], [folder / "a.rec"]).survey().as_json()
    for rank in range(2):
        host = Host(rank, 2, lambda _: [stats[0], stats[1]])
        hosts.append(open_all([channels[rank], validation], options(batch_size=8), host=host))
    batches = [read(host.training) for host in hosts]
    assert [len(some) for some in batches] == [5, 5]
    assert hosts[0].training.labels == hosts[1].training.labels == ("0", "1", "2")
    assert [sorted(shade for shade, _, weight in flat(some) if weight) for some in batches] == [
        list(range(30)),
        list(range(100, 110)),
    ]


def test_sharded_fifos_are_cut_to_equal_numbers_of_batches(channel, options, tmp_path):
    """Of 10 declared records, each of two hosts has 5, whatever its FIFO contains."""
    made = []
    for rank, there in ((0, 8), (1, 2)):
        channels = [
            Channel("training", tmp_path / f"host{rank}" / "training", "Pipe", sharded=True),
            Channel("validation", tmp_path / f"host{rank}" / "validation", "Pipe"),
        ]
        records = open_all(channels, options(), declare(10, 4), host=Host(rank, 2, lambda own: [own] * 2))
        with Feeder(channels[0].directory, [pack_images(pairs(there))]):
            made.append(read(records.training))
    assert [len(batches) for batches in made] == [3, 3]
    assert [sum(weight for _, _, weight in flat(batches)) for batches in made] == [5, 2]


@pytest.mark.parametrize(
    ("pipes", "declared", "message"),
    [
        (["training"], declare(10, 4), "nothing can be held out of it; add a channel validation"),
        (["training", "validation"], declare(10, 4, None), "set the hyperparameter num_classes"),
        (["training", "validation"], declare(None, 4), "set the hyperparameter num_training_samples"),
        (["training", "validation"], declare(10, None), "set the hyperparameter num_validation_samples"),
        (["training", "validation", "test"], declare(10, 4), "channel test uses Pipe mode"),
    ],
)
def test_the_counts_of_pipe_channels_must_be_declared(channel, options, pipes, declared, message):
    with pytest.raises(UserError, match=message):
        open_all([channel(name) for name in pipes], options(), declared)


def test_a_validation_label_that_training_lacks_is_an_error(channel, options):
    validation = channel("validation", {"v.rec": pack_images([(5, png(0))])})
    with pytest.raises(UserError, match="channel validation has the label 5, .* training is 2"):
        open_all([channel("training", {"a.rec": pack_images(pairs(9))}), validation], options())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"a.rec": pack_images(pairs(9, labels=1))},
            "only images of the label 0; expected two or more labels",
        ),
        ({"a.rec": b""}, "channel training has no records"),
        ({"a.rec": b"neither format"}, "channel training, a.rec begins with"),
        ({"a.rec": pack_images(pairs(1, labels=2) * 1)}, "only images of the label 0"),
    ],
)
def test_files_without_the_expected_records_are_an_error(channel, options, files, message):
    with pytest.raises(UserError, match=message):
        open_all([channel("training", files)], options())


def test_an_id_as_label_is_rejected(channel, options):
    """Nothing of that size is allocated."""
    files = {"a.rec": pack_images([(0, png(0)), (1_500_000, png(1))])}
    with pytest.raises(UserError, match="channel training has the label 1500000, expected numbers from 0"):
        open_all([channel("training", files)], options())


def test_images_in_folders_are_not_records(channel, tmp_path):
    folder = channel("training", {})
    (folder.directory / "cat").mkdir()
    (folder.directory / "cat" / "1.png").write_bytes(png(1))
    assert not has_records(folder)
    assert not has_records(Channel("training", Path(tmp_path / "nowhere")))
    assert has_records(channel("validation"))
