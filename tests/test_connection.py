"""When a request is ready for a thread."""

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tandem.connection import MAX_HEAD, MAX_READ_AHEAD, find_length, is_ready


def render(body=b"", *lines):
    return b"\r\n".join([b"POST /invocations HTTP/1.1", b"Host: a", *lines, b"", body])


def ready(received):
    return is_ready(received, find_length(received))


@hypothesis_settings(deadline=None, max_examples=100)
@given(
    body=st.binary(max_size=300),
    name=st.sampled_from([b"Content-Length", b"content-length", b"CONTENT-LENGTH"]),
)
def test_a_request_is_ready_with_its_last_byte_and_not_before(body, name):
    request = render(body, b"%s: %d" % (name, len(body)))
    assert ready(request)
    assert not any(ready(request[:end]) for end in range(len(request)))


def test_a_chunked_request_is_ready_with_its_last_chunk():
    request = render(b"5\r\nhello\r\n0\r\n\r\n", b"Transfer-Encoding: chunked")
    assert ready(request)
    assert not any(ready(request[:end]) for end in range(len(request)))


def test_what_never_ends_is_handed_on():
    """A head without an end, a body beyond what the loop reads, a client that waits to be told to go on."""
    assert ready(b"x" * MAX_HEAD)
    assert ready(render(b"x" * MAX_READ_AHEAD, b"Content-Length: %d" % (MAX_READ_AHEAD * 10)))
    assert ready(render(b"x" * MAX_READ_AHEAD, b"Transfer-Encoding: chunked"))
    assert ready(render(b"", b"Content-Length: 5", b"Expect: 100-continue"))
