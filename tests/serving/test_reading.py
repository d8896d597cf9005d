"""When a request is ready for a thread, however its bytes come."""

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from processes import render_request
from tandem.serving.reading import MAX_CHUNK_LINE, MAX_HEAD, MAX_READ_AHEAD, Reading


def ready(received):
    return Reading().is_ready(bytearray(received))


def find_first_ready(request):
    """Give after how many bytes, that come one by one, it is ready; and what was found in it."""
    reading, received = Reading(), bytearray()
    for count, byte in enumerate(request, 1):
        received.append(byte)
        if reading.is_ready(received):
            return count, reading
    return None, reading


@hypothesis_settings(deadline=None, max_examples=100)
@given(
    body=st.binary(max_size=300),
    name=st.sampled_from([b"Content-Length", b"content-length", b"CONTENT-LENGTH"]),
    more=st.binary(max_size=20),
)
def test_a_request_is_ready_with_its_last_byte_and_not_before(body, name, more):
    request = render_request(body, b"%s: %d" % (name, len(body)))
    count, reading = find_first_ready(request)
    assert (count, reading.length) == (len(request), len(request))
    assert reading.is_whole(bytearray(request + more))


@hypothesis_settings(deadline=None, max_examples=100)
@given(
    parts=st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    extension=st.sampled_from([b"", b";a=b"]),
    trailer=st.sampled_from([b"", b"X-Sum: 1\r\n", b"A: 1\r\nB: 2\r\n"]),
)
def test_a_chunked_request_is_ready_with_its_last_byte_and_not_before(parts, extension, trailer):
    """Though its parts may look like an end, and with what may stand around the last chunk."""
    parts = [*parts, b"0\r\n\r\n"]
    chunks = b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts)
    request = render_request(
        chunks + b"0" + extension + b"\r\n" + trailer + b"\r\n", b"Transfer-Encoding: chunked"
    )
    count, reading = find_first_ready(request)
    assert (count, reading.length) == (len(request), len(request))
    together = bytearray(request + render_request(b"", b"Content-Length: 0"))
    late = Reading()
    assert late.is_ready(together)
    assert late.length == len(request)


@pytest.mark.parametrize("zeros", [1, 30])
def test_a_length_may_begin_with_zeros(zeros):
    request = render_request(b"abc", b"Content-Length: " + b"0" * zeros + b"3")
    assert find_first_ready(request)[0] == len(request)


@pytest.mark.parametrize("zeros", [1, 30])
def test_a_chunks_size_may_begin_with_zeros(zeros):
    chunk = b"0" * zeros + b"7\r\n[1\r\n\r\n]\r\n0\r\n\r\n"
    request = render_request(chunk, b"Transfer-Encoding: chunked")
    assert find_first_ready(request)[0] == len(request)


def test_a_chunk_larger_than_any_is_handed_on():
    request = render_request(b"1" * 16 + b"\r\n", b"Transfer-Encoding: chunked")
    count, reading = find_first_ready(request)
    assert (count, reading.length) == (len(request), None)


@pytest.mark.parametrize("length", [b"", b"x", b"-1", b"3, 3", b"1" * 16])
def test_a_length_that_is_none_makes_nothing_whole(length):
    """It is handed on at once, to a thread that may wait."""
    head = render_request(b"", b"Content-Length: " + length)
    count, reading = find_first_ready(head)
    assert count == len(head)
    assert not reading.is_whole(bytearray(head))


def test_what_never_ends_is_handed_on():
    """A head without an end, and a body beyond what the loop reads."""
    assert ready(b"x" * MAX_HEAD)
    assert ready(render_request(b"x" * MAX_READ_AHEAD, b"Content-Length: %d" % (MAX_READ_AHEAD * 10)))
    assert ready(
        render_request(b"%x\r\n" % MAX_READ_AHEAD + b"x" * MAX_READ_AHEAD, b"Transfer-Encoding: chunked")
    )


@pytest.mark.parametrize(
    "request_",
    [
        render_request(b"zz\r\n", b"Transfer-Encoding: chunked"),
        render_request(b"1" * (MAX_CHUNK_LINE + 1), b"Transfer-Encoding: chunked"),
        render_request(b"", b"Content-Length: 5", b"Expect: a miracle"),
        render_request(b"", b"Content-Length: " + b"9" * 5000),
    ],
)
def test_what_the_parser_will_refuse_is_ready_at_once(request_):
    assert ready(request_)


def test_a_client_may_wait_to_be_told_to_go_on():
    reading = Reading()
    head = bytearray(render_request(b"", b"Content-Length: 5", b"Expect: 100-Continue"))
    assert not reading.is_ready(head)
    assert reading.awaits_word
    assert reading.is_ready(head + b"12345")
