"""Parsing of images and labels from three kinds of records, and the errors of invalid ones."""

import io
import struct

import cv2
import pytest

from algorithms.image_classifier.records import parsing
from sample_images import paint
from sample_records import frame, make_example, pack_image, pack_images, pack_manifest, write_tfrecords
from tandem.errors import UserError
from tandem.records import recordio

PNG = cv2.imencode(".png", paint("red", 0))[1].tobytes()
JPEG = cv2.imencode(".jpg", paint("blue", 1))[1].tobytes()


def read(content, content_type="", **options):
    stream = io.BufferedReader(io.BytesIO(content))
    return list(parsing.read_images(stream, "here", content_type, **options))


@pytest.fixture
def tfrecords(tmp_path):
    return lambda bodies: write_tfrecords(tmp_path / "x", bodies).read_bytes()


@pytest.mark.parametrize("content_type", ["", "application/x-recordio", "application/x-image"])
@pytest.mark.parametrize("pack", [pack_images, pack_manifest])
def test_both_kinds_of_recordio_are_read(pack, content_type):
    """The image records of im2rec, and the alternating images and labels of an augmented manifest."""
    assert read(pack([(3, PNG), (0, JPEG)]), content_type) == [(PNG, 3, ""), (JPEG, 0, "")]


@pytest.mark.parametrize("content_type", ["", "application/x-tfrecord", "application/tfrecord"])
def test_tensorflow_examples_are_read(tfrecords, content_type):
    content = tfrecords([make_example(3, PNG), make_example(1, JPEG, "cat"), make_example(None, PNG, "dog")])
    assert read(content, content_type) == [(PNG, 3, ""), (JPEG, 1, "cat"), (PNG, -1, "dog")]


def test_a_label_may_follow_the_header():
    """With one label im2rec may store it as an array of one value."""
    record = struct.pack("<IfQQf", 1, 0, 0, 0, 4) + PNG
    assert read(frame([record])) == [(PNG, 4, "")]


def test_labels_are_read_from_the_first_bytes_of_records():
    """The survey of a channel reads no more than these."""
    for pack in (pack_images, pack_manifest):
        found = read(pack([(3, PNG), (1, JPEG)]), head=parsing.LABEL_BYTES)
        assert [record.label for record in found] == [3, 1]
        assert max(len(record.image) for record in found) <= parsing.LABEL_BYTES


def test_images_are_counted_from_headers(tfrecords):
    for content in (pack_images([(1, PNG)] * 3), pack_manifest([(1, PNG)] * 3), tfrecords([b"anything"] * 3)):
        assert parsing.count_images(io.BufferedReader(io.BytesIO(content)), "here") == 3


def test_an_empty_stream_has_no_images():
    assert read(b"") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PNG + JPEG, "a series of images with nothing between them.*augmented manifest"),
        (b"label,pixel\n1,2\n", "begins with b'label.*neither RecordIO nor TFRecord"),
        (frame([pack_image(1.5, PNG)]), "here: record 0 has the label 1.5; expected an integer"),
        (frame([pack_image(float("nan"), PNG)]), "record 0 has the label nan"),
        (frame([pack_image(-1, PNG)]), "record 0 has the label -1"),
        (frame([b"short"]), "record 0 has 5 bytes, too few"),
        (
            frame([struct.pack("<IfQQ", 5, 0, 0, 0) + PNG]),
            "record 0 has 5 labels according to its header, expected one",
        ),
        (frame([PNG, b"1", PNG]), "record 2 is an image, and nothing follows"),
        (frame([PNG, PNG]), r"record 0 is an image, and b'\\x89PNG.* follows; .*AttributeNames"),
        (frame([PNG, b"9" * 400]), "record 0 has the label 9{40};"),
        (frame([PNG, b"true"]), "record 0 is an image, and b'true' follows"),
        (frame([PNG, b"0", PNG, b'{"a": 1}']), "record 2 is an image"),
        (frame([frame([pack_image(1, PNG)])[:40]]), "RecordWrapperType"),
    ],
)
def test_an_invalid_record_is_rejected(content, message):
    with pytest.raises(UserError, match=message):
        read(content)


def test_an_invalid_example_is_rejected(tfrecords):
    import tensorflow as tf

    empty = tf.train.Example().SerializeToString()
    for body, message in (
        (b"\xff\xff", "record 0 is not a tf.train.Example"),
        (empty, "record 0 has no image: .*image/encoded.* found no feature"),
        (
            make_example(None, PNG),
            "record 0 has no label: .*image/class/label.*found the features image/encoded",
        ),
        (make_example(-2, PNG), "record 0 has the label -2"),
    ):
        with pytest.raises(UserError, match=message):
            read(tfrecords([body]))


def test_a_file_of_records_wrapped_as_a_record_is_rejected(tfrecords):
    """RecordWrapperType RecordIO on a channel of TFRecord files."""
    with pytest.raises(UserError, match="record 0 contains records itself: .*set it to None"):
        read(frame([tfrecords([make_example(1, PNG)])]))


def test_a_wrong_content_type_is_rejected(tfrecords):
    with pytest.raises(UserError, match="here is RecordIO, but its channel's ContentType says TFRecord"):
        read(pack_images([(1, PNG)]), "application/x-tfrecord")
    with pytest.raises(UserError, match="here is TFRecord, but its channel's ContentType says RecordIO"):
        read(tfrecords([b"x"]), "application/x-recordio")


def test_an_image_may_contain_the_magic_number():
    """A record that is split into parts is joined again."""
    image = PNG + bytes(-len(PNG) % 4) + recordio.MAGIC * 3 + b"x"
    assert read(pack_images([(1, image)])) == [(image, 1, "")]
