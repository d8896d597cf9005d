"""TFRecord: TensorFlow's files are read, and damaged data is rejected with its position."""

import io
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packed import write_tfrecords
from tandem.errors import UserError
from tandem.records import tfrecord


def read(content, **options):
    return list(tfrecord.read_records(io.BytesIO(content), "here", **options))


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "some.tfrecord"
    return lambda bodies: write_tfrecords(path, bodies).read_bytes()


@settings(deadline=None, max_examples=50)
@given(bodies=st.lists(st.binary(max_size=200)))
def test_records_of_tensorflow_are_read(write, bodies):
    assert read(write(bodies)) == bodies


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_any_changed_byte_is_found(write, data):
    """In a length, a body or a checksum."""
    content = bytearray(write([b"first", b"second" * 5]))
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(UserError, match=f"at byte {0 if position < 21 else 21}[ ;]"):
        read(bytes(content))


@pytest.mark.parametrize("cut", [1, 11, 12, 14, 20])
def test_a_truncated_stream_is_rejected_with_its_position(write, cut):
    content = write([b"first", b"after"])
    with pytest.raises(UserError, match="here ends within the TFRecord at byte 21"):
        read(content[: 21 + cut])
    assert read(content[:21]) == [b"first"]


def test_a_record_over_the_limit_is_rejected_before_it_is_read(write):
    with pytest.raises(UserError, match="at byte 0 has 11 bytes, the limit is 10"):
        read(write([b"x" * 11]), limit=10)


def test_heads_are_beginnings_and_the_rest_is_skipped(write):
    """To count records, the bodies are not read, so their damage is not found."""
    content = bytearray(write([b"first", b"second" * 50]))
    assert read(bytes(content), head=0) == [b"", b""]
    content[-10] ^= 1
    assert read(bytes(content), head=6) == [b"first", b"second"]


@pytest.mark.parametrize("header", [b"", b"PNG", bytes(12), struct.pack("<QI", 5, 1)])
def test_other_bytes_are_not_a_header(header):
    assert not tfrecord.is_header(header)
