"""Batches of records: from files and FIFOs, in an order of the epoch's, on one host and on several."""

import gzip
import logging
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from algorithms.image_classifier.data.sources import Reading
from algorithms.image_classifier.records import streams
from algorithms.image_classifier.records.channels import Place, Told, are_records, open_records
from algorithms.image_classifier.training.train import describe_preprocessing
from packed import Feeder, make_example, pack_images, pack_manifest, write_tfrecords
from tandem.errors import UserError
from tandem.jobs.channels import Channel

ALONE = Place(0, 1, lambda own: [own])


def png(shade):
    """Give a picture whose every pixel has this value: a batch shows which records it has."""
    return cv2.imencode(".png", np.full((8, 8, 3), shade, np.uint8))[1].tobytes()


def pairs(count, first=0, labels=3):
    return [(number % labels, png(first + number)) for number in range(count)]


def read(source, epoch=1, start=0):
    """Give each batch as its (shade, label, weight) rows."""
    batches = source.batches(epoch, start).as_numpy_iterator()
    return [
        [(int(pixels[row, 0, 0, 0]), int(labels[row]), float(weights[row])) for row in range(len(labels))]
        for pixels, labels, weights in batches
    ]


def flat(batches):
    return [row for batch in batches for row in batch]


@pytest.fixture
def reading():
    def make(batch_size=4, unreadable_share=0.2, seed=0, validation_share=0.2):
        return Reading(describe_preprocessing(8, "RGB"), batch_size, seed, validation_share, unreadable_share)

    return make


@pytest.fixture
def channel(tmp_path):
    """`channel("training", {"a.rec": content})` makes a channel of files; without any, a Pipe's."""

    def make(name, files=None, **options):
        folder = tmp_path / name
        if files is None:
            return Channel(name, folder, "Pipe", **options)
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_bytes(content)
        return Channel(name, folder, **options)

    return make


def open_all(channels, reading, told=None, place=ALONE, stop=None):
    by_name = {channel.name: channel for channel in channels}
    return open_records(by_name, reading, told or Told(), place, stop or threading.Event())


def tell(training, validation, classes=3):
    return Told(classes, {"training": training, "validation": validation})


def test_files_are_read_whole_and_a_share_is_held_out(channel, reading):
    """Every record is in one of both, with its own label; one file is compressed."""
    files = {
        "a.rec": pack_images(pairs(10)),
        "b.rec.gz": gzip.compress(pack_images(pairs(10, 10))),
        "a.idx": b"0\t0\n",
        "a.lst": b"0\t1\ta.png\n",
    }
    records = open_all([channel("training", files)], reading())
    assert records.training.labels == ("0", "1", "2")
    assert (records.training.rows, records.validation.rows) == (16, 4)
    trained, held = flat(read(records.training)), flat(read(records.validation))
    expected = [(number + first, number % 3, 1.0) for first in (0, 10) for number in range(10)]
    assert sorted(trained + held) == expected
    assert held == sorted(held)
    assert records.label_counts == [8, 6, 6]


def test_the_order_is_the_epochs_and_a_start_leaves_out_batches(channel, reading, monkeypatch):
    """Also where fewer records wait than there are."""
    monkeypatch.setattr(streams, "BUFFERED_RECORDS", 5)
    files = {f"{number}.rec": pack_images(pairs(10, 10 * number)) for number in range(4)}
    channels = [channel("training", files), channel("validation", {"v.rec": pack_images(pairs(3))})]
    first, again = (open_all(channels, reading()).training for _ in range(2))
    assert read(first, 1) == read(again, 1) != read(again, 2)
    assert sorted(flat(read(first, 2))) == sorted(flat(read(first, 1)))
    assert read(first, 2, start=7) == read(first, 2)[7:]
    assert read(first, 2, start=10) == []


def test_tfrecords_bring_names(channel, reading, tmp_path):
    """With one text for each number the labels are the texts; some records may lack theirs."""
    examples = [
        make_example(number % 2, png(number), ["cat", "dog"][number % 2] if number < 6 else None)
        for number in range(10)
    ]
    content = write_tfrecords(tmp_path / "x", examples).read_bytes()
    records = open_all([channel("training", {"a.tfrecord": content})], reading())
    assert records.training.labels == ("cat", "dog")
    assert {label for _, label, _ in flat(read(records.training))} == {0, 1}
    assert records.label_counts == [5, 5]


def test_texts_alone_are_labels_too(channel, reading, tmp_path):
    examples = [make_example(None, png(number), ["dog", "cat"][number % 2]) for number in range(10)]
    content = write_tfrecords(tmp_path / "x", examples, "GZIP").read_bytes()
    channels = [channel("training", {"0-of-1": content}, content_type="application/x-tfrecord")]
    records = open_all(channels, reading())
    assert records.training.labels == ("cat", "dog")
    assert all(label == 1 - shade % 2 for shade, label, _ in flat(read(records.training)))


@pytest.mark.parametrize("pack", [pack_images, pack_manifest])
def test_a_job_reads_the_first_fifo_first_whichever_epoch_it_is(channel, reading, tmp_path, pack):
    """A job that goes on at epoch 5 has FIFOs of its own; each pass takes the next."""
    channels = [channel("training"), channel("validation")]
    records = open_all(channels, reading(), tell(10, 4))
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
def test_the_number_of_batches_is_what_was_told(channel, reading, tmp_path, caplog, there):
    """What is missing does not count, what is too much is left out; the log says which number to correct."""
    records = open_all([channel("training"), channel("validation")], reading(), tell(10, 4))
    with Feeder(tmp_path / "training", [pack_images(pairs(there))]) as feeder:
        batches = read(records.training)
        assert feeder.finish() == 1
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(shade for shade, _, weight in flat(batches) if weight) == list(range(min(there, 10)))
    told = "only 7 of the 10" if there == 7 else "more than the 10"
    assert f"a pass held {told} records expected; correct num_training_samples" in caplog.text
    records.training.check()


def test_what_is_wrong_in_a_pass_ends_it_and_is_told_by_check(channel, reading, tmp_path):
    records = open_all([channel("training"), channel("validation")], reading(), tell(10, 4))
    contents = [pack_images([*pairs(9), (7, png(0))]), pack_images(pairs(10))[:-20], b""]
    sentences = [
        "record 9 has the label 7; expected one of 3",
        "training_1 ends within",
        "has no record in this pass",
    ]
    with Feeder(tmp_path / "training", contents):
        for sentence in sentences:
            assert len(read(records.training)) < 3
            with pytest.raises(UserError, match=sentence):
                records.training.check()


def test_a_stop_ends_a_pass_that_waits(channel, reading):
    stop = threading.Event()
    records = open_all([channel("training"), channel("validation")], reading(), tell(10, 4), stop=stop)
    threading.Timer(0.2, stop.set).start()
    assert read(records.training) == []
    records.training.check()


def test_a_stop_leaves_no_other_host_alone(channel, reading):
    """A host that waits in vain goes on with rows that do not count, until all leave after the same step."""
    stop = threading.Event()
    stop.set()
    place = Place(1, 2, lambda own: [own] * 2)
    records = open_all([channel("training"), channel("validation")], reading(), tell(10, 4), place, stop)
    assert read(records.training, start=1) == [[(0, 0, 0.0)], [(0, 0, 0.0)]]
    records.training.check()


def test_an_unreadable_picture_keeps_its_row_but_does_not_count(channel, reading, caplog):
    """It has the pixels of a readable one, and two epochs count it once."""
    caplog.set_level(logging.INFO, "algorithms")
    broken = [*pairs(5), (1, b"no picture"), *pairs(4, 6)]
    files = {"a.rec": pack_images(broken)}
    channels = [channel("training", files), channel("validation", {"v.rec": pack_images(pairs(3))})]
    records = open_all(channels, reading(batch_size=10))
    for epoch in (1, 2):
        (rows,) = read(records.training, epoch)
        assert len(rows) == 10
        (left,) = [shade for shade, _, weight in rows if not weight]
        assert left in {shade for shade, _, weight in rows if weight}
    assert caplog.text.count("Left out the picture training/record 5") == 1
    records.training.check()


def test_too_many_unreadable_pictures_end_the_pass(channel, reading):
    broken = [*pairs(5), *((1, b"no picture %d" % number) for number in range(15))]
    records = open_all([channel("training", {"a.rec": pack_images(broken)})], reading())
    assert len(read(records.training)) < records.training.steps
    with pytest.raises(UserError, match="pictures were unreadable so far.*training/record"):
        records.training.check()


def test_equal_unreadable_records_all_count_and_once_each(channel, reading, tmp_path):
    """Whatever their places in another pass, and also where one of them fills up batches."""
    passes = [[(0, b""), *pairs(6), (1, b""), (2, b"")], [*pairs(6), (1, b""), (2, b""), (0, b"")]]
    told = tell(15, 4)  # too many: the first record stands in
    records = open_all([channel("training"), channel("validation")], reading(3, 0.5), told)
    with Feeder(tmp_path / "training", [pack_images(some) for some in passes]):
        for epoch in (1, 2):
            batches = read(records.training, epoch)
            assert sum(weight for _, _, weight in flat(batches)) == 6
            assert len(records.reader.unreadable) == 3
    assert len(records.training.sample(20))  # goes through the broken ones again
    assert len(records.reader.unreadable) == 3


def test_equal_unreadable_records_reach_the_limit(channel, reading):
    """Fifteen empty pictures are fifteen."""
    files = {"a.rec": pack_images([*pairs(5), *((1, b"") for _ in range(15))])}
    records = open_all([channel("training", files)], reading(unreadable_share=0.5))
    assert len(read(records.training)) < records.training.steps
    with pytest.raises(UserError, match="pictures were unreadable so far"):
        records.training.check()


@pytest.mark.parametrize("count", [23, 24, 25])
def test_hosts_with_the_same_records_share_each_batch(channel, reading, count):
    """Together they give what one host gives; each has a row in every batch."""
    channels = [
        channel("training", {"a.rec": pack_images(pairs(count))}),
        channel("validation", {"v.rec": pack_images(pairs(5))}),
    ]
    alone = open_all(channels, reading(batch_size=8))
    hosts = [
        open_all(channels, reading(batch_size=8), place=Place(rank, 3, lambda own: [own] * 3))
        for rank in range(3)
    ]
    for name in ("training", "validation"):
        shares = [read(getattr(host, name)) for host in hosts]
        whole = read(getattr(alone, name))
        assert {len(share) for share in shares} == {len(whole)}
        for number, batch in enumerate(whole):
            assert [row for share in shares for row in share[number] if row[2]] == batch
            assert all(share[number] for share in shares)


def test_hosts_with_records_of_their_own_agree_on_steps_and_labels(channel, reading, tmp_path):
    """One has three times the other's; both give as many batches, and every record counts once."""
    said, hosts = {}, []
    contents = [pairs(30, labels=2), [(2, png(100 + number)) for number in range(10)]]
    validation = channel("validation", {"v.rec": pack_images(pairs(4))})
    channels = []
    for rank, content in enumerate(contents):
        folder = tmp_path / str(rank)
        folder.mkdir()
        (folder / "a.rec").write_bytes(pack_images(content))
        channels.append(Channel("training", folder, sharded=True))
        said[rank] = streams.FileStream(channels[-1], [folder / "a.rec"]).survey().as_json()
    for rank in range(2):
        place = Place(rank, 2, lambda _: [said[0], said[1]])
        hosts.append(open_all([channels[rank], validation], reading(batch_size=8), place=place))
    batches = [read(host.training) for host in hosts]
    assert [len(some) for some in batches] == [5, 5]
    assert hosts[0].training.labels == hosts[1].training.labels == ("0", "1", "2")
    assert [sorted(shade for shade, _, weight in flat(some) if weight) for some in batches] == [
        list(range(30)),
        list(range(100, 110)),
    ]


def test_sharded_fifos_are_cut_to_equal_numbers_of_batches(channel, reading, tmp_path):
    """Of 10 records told, each of two hosts gives 5, whatever its FIFO has."""
    made = []
    for rank, there in ((0, 8), (1, 2)):
        channels = [
            Channel("training", tmp_path / f"host{rank}" / "training", "Pipe", sharded=True),
            Channel("validation", tmp_path / f"host{rank}" / "validation", "Pipe"),
        ]
        records = open_all(channels, reading(), tell(10, 4), place=Place(rank, 2, lambda own: [own] * 2))
        with Feeder(channels[0].directory, [pack_images(pairs(there))]):
            made.append(read(records.training))
    assert [len(batches) for batches in made] == [3, 3]
    assert [sum(weight for _, _, weight in flat(batches)) for batches in made] == [5, 2]


@pytest.mark.parametrize(
    ("pipes", "told", "sentence"),
    [
        (["training"], tell(10, 4), "nothing can be held out of them; add a channel validation"),
        (["training", "validation"], tell(10, 4, None), "set the hyperparameter num_classes"),
        (["training", "validation"], tell(None, 4), "set the hyperparameter num_training_samples"),
        (["training", "validation"], tell(10, None), "set the hyperparameter num_validation_samples"),
        (["training", "validation", "test"], tell(10, 4), "channel test comes through pipes"),
    ],
)
def test_what_pipes_do_not_show_must_be_told(channel, reading, pipes, told, sentence):
    with pytest.raises(UserError, match=sentence):
        open_all([channel(name) for name in pipes], reading(), told)


def test_channels_that_do_not_agree_are_one_sentence(channel, reading):
    validation = channel("validation", {"v.rec": pack_images([(5, png(0))])})
    with pytest.raises(UserError, match="channel validation has the label 5, .* training is 2"):
        open_all([channel("training", {"a.rec": pack_images(pairs(9))}), validation], reading())


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"a.rec": pack_images(pairs(9, labels=1))}, "the label 0 only; expected two labels or more"),
        ({"a.rec": b""}, "channel training holds no record"),
        ({"a.rec": b"neither of both"}, "channel training, a.rec begins with"),
        ({"a.rec": pack_images(pairs(1, labels=2) * 1)}, "the label 0 only"),
    ],
)
def test_files_without_what_is_expected_are_one_sentence(channel, reading, files, sentence):
    with pytest.raises(UserError, match=sentence):
        open_all([channel("training", files)], reading())


def test_an_id_as_label_is_refused(channel, reading):
    """Nothing as large as the number is made."""
    files = {"a.rec": pack_images([(0, png(0)), (1_500_000, png(1))])}
    with pytest.raises(UserError, match="channel training has the label 1500000, expected numbers from 0"):
        open_all([channel("training", files)], reading())


def test_pictures_in_folders_are_no_records(channel, tmp_path):
    folder = channel("training", {})
    (folder.directory / "cat").mkdir()
    (folder.directory / "cat" / "1.png").write_bytes(png(1))
    assert not are_records(folder)
    assert not are_records(Channel("training", Path(tmp_path / "nowhere")))
    assert are_records(channel("validation"))
