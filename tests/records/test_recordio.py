"""RecordIO: records round-trip, and damaged data is rejected with its position."""

import io
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packed import frame
from tandem.errors import UserError
from tandem.records import recordio

MAGIC = b"\x0a\x23\xd7\xce"

#: Bodies in which the magic number occurs, at multiples of 4 bytes and elsewhere.
BODIES = st.lists(
    st.one_of(st.binary(max_size=40), st.lists(st.sampled_from([MAGIC, b"1", b"1234"])).map(b"".join))
)


def read(content, **options):
    return list(recordio.read_records(io.BytesIO(content), "here", **options))


class Unseekable(io.BytesIO):
    def seekable(self):
        return False

    def seek(self, *_):
        raise AssertionError("a FIFO cannot be sought in")


@settings(deadline=None, max_examples=200)
@given(BODIES)
def test_records_round_trip(bodies):
    """With any bytes, including the magic number."""
    assert read(frame(bodies)) == bodies


@settings(deadline=None, max_examples=100)
@given(BODIES)
def test_only_headers_have_the_magic_number_at_a_multiple_of_four(bodies):
    """So a reader can search for the beginnings of records."""
    content, headers = frame(bodies), 0
    at = 0
    while at < len(content):
        word = struct.unpack_from("<I", content, at + 4)[0]
        length = word & (1 << 29) - 1
        at += 8 + length + -length % 4
        headers += 1
    assert [content[position : position + 4] for position in range(0, len(content), 4)].count(
        MAGIC
    ) == headers


def test_the_bytes_of_a_record():
    """Bytes written by hand: magic, part and length, body, zeros up to a multiple of four."""
    assert read(MAGIC + b"\x05\0\0\0hello\0\0\0" + MAGIC + b"\0\0\0\0") == [b"hello", b""]
    parts = MAGIC + b"\x04\0\0\x20abcd" + MAGIC + b"\0\0\0\x40" + MAGIC + b"\x01\0\0\x60x\0\0\0"
    assert read(parts) == [b"abcd" + MAGIC + MAGIC + b"x"]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.binary(max_size=20), min_size=1), st.data())
def test_a_truncated_stream_gives_the_complete_records_and_the_position_of_its_end(bodies, data):
    content = frame(bodies)
    starts = [len(frame(bodies[:count])) for count in range(len(bodies) + 1)]
    cut = data.draw(st.integers(0, len(content) - 1))
    whole = max(count for count, start in enumerate(starts) if start <= cut)
    found = []
    records = recordio.read_records(io.BytesIO(content[:cut]), "here")
    if cut in starts:
        assert list(records) == bodies[:whole]
        return
    with pytest.raises(UserError, match="here ends within the RecordIO record at byte"):
        found.extend(iter(lambda: next(records), None))
    assert found == [] or found == bodies[:whole]


def test_a_wrong_magic_number_is_rejected_with_its_position():
    content = frame([b"abcd"]) + b"\x1f\x8b\x08\x00 and more"
    with pytest.raises(UserError, match=r"here: .* at byte 12, beginning with 0a23d7ce; found 1f8b0800"):
        read(content)


@pytest.mark.parametrize("parts", [[2], [3], [1, 0], [1, 1], [5]])
def test_parts_out_of_order_are_rejected(parts):
    content = b"".join(MAGIC + struct.pack("<I", part << 29 | 4) + b"abcd" for part in parts)
    with pytest.raises(UserError, match=rf"at byte {12 * (len(parts) - 1)} is part {parts[-1]}"):
        read(content)


def test_a_record_over_the_limit_is_rejected_before_it_is_read():
    """The limit applies to the sum of a record's parts."""
    with pytest.raises(UserError, match="has 11 bytes or more, the limit is 10; if whole files were wrapped"):
        read(MAGIC + struct.pack("<I", 11), limit=10)
    with pytest.raises(UserError, match="at byte 16 has 12 bytes or more"):
        read(frame([b"12345678" + MAGIC + b"1234"]), limit=10)


@pytest.mark.parametrize("kind", [io.BytesIO, Unseekable])
def test_heads_are_the_beginnings_of_the_same_records(kind):
    bodies = [b"a" * 100, b"b" * 3, b"", b"1234" + MAGIC + b"5678" * 30]
    heads = list(recordio.read_records(kind(frame(bodies)), "here", head=8))
    assert [head[:8] for head in heads] == [body[:8] for body in bodies]
    assert max(map(len, heads)) <= 20
