"""Gzip is decompressed, and damaged gzip is rejected with one sentence."""

import gzip
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.errors import UserError
from tandem.records.compression import decompress


def unpack(content):
    with decompress(io.BufferedReader(io.BytesIO(content)), "here") as stream:
        return stream.read()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.binary(max_size=1000), min_size=1, max_size=4))
def test_consecutive_members_are_one_stream(parts):
    """As S3 objects that were compressed one by one."""
    assert unpack(b"".join(map(gzip.compress, parts))) == b"".join(parts)


@pytest.mark.parametrize("content", [b"", b"\x1f", b"\x1f\x8b", b"plain text", b"\x89PNG"])
def test_other_content_is_unchanged(content):
    assert unpack(content) == content


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b"x" * 1000)[:-4],
        gzip.compress(b"x" * 1000)[:15],
        gzip.compress(b"x") + b"what is this",
        gzip.compress(b"x" * 1000)[:-8] + bytes(8),
        b"\x1f\x8b\x08" + bytes(7) + b"\xff\xff\xff",
    ],
    ids=["no length", "cut off", "rubbish behind", "wrong checksum", "no deflate"],  # the bytes hold the time
)
def test_damaged_gzip_is_one_sentence(content):
    with pytest.raises(
        UserError, match="here: its gzip cannot be unpacked: .*; the file is damaged or cut off"
    ):
        unpack(content)


def test_closing_closes_the_stream_below():
    below = io.BufferedReader(io.BytesIO(gzip.compress(b"x")))
    decompress(below, "here").close()
    assert below.closed
