"""The plain request: what is taken the short way is what gunicorn's parser would have read."""

import pytest
from gunicorn.config import Config
from gunicorn.http import wsgi
from gunicorn.http.body import LengthReader
from gunicorn.http.parser import RequestParser
from hypothesis import example, given
from hypothesis import strategies as st

from tandem.serving.plain import MOST_BYTES, answer_plain, read_plain

LINE = b"POST /invocations HTTP/1.1\r\n"
LENGTH = b"Content-Length: 3\r\n"
#: Headers that mean something to a server, as they are and as they should not be.
NAMES = st.sampled_from(
    [
        *(b"Host", b"host", b"Content-Type", b"Content-Length", b"content-length", b"Content_Length"),
        *(b"Transfer-Encoding", b"Connection", b"Expect", b"Upgrade", b"TE", b"Trailer", b"Accept", b"X-A"),
        *(
            b"X-Forwarded-Proto",
            b"X-Forwarded-SSL",
            b"X-Forwarded-Protocol",
            b"X-Amzn-SageMaker-Custom-Attributes",
            b"SCRIPT_NAME",
            b"Script-Name",
            b" Host",
        ),
        *(b"Keep-Alive", b"Proxy-Connection", b"HTTP2-Settings", b"Host ", b"H\xc3\xb6st", b"", b"a\x00b"),
    ]
)
VALUES = st.one_of(
    st.sampled_from(
        [b"3", b"03", b"+3", b"3, 3", b"0x3", b"", b"chunked", b"keep-alive", b"close", b"Keep-Alive, close"]
    ),
    st.sampled_from(
        [b"100-continue", b"h2c", b"upgrade", b"https", b"\xe9", b"a\x7f", b"a\tb", b" a ", b"a\x00"]
    ),
    st.binary(max_size=12),
)
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\n ", b" \r\n"])
BROKEN = st.builds(
    lambda *parts: b"".join(parts), NAMES, st.sampled_from([b": ", b":", b" : ", b":\t", b""]), VALUES, ENDS
)
SOUND = st.builds(
    lambda name, value: f"{name}:{value}\r\n".encode(),
    st.from_regex(r"[!#$%&'*+.^`|~0-9A-Za-z-]{1,6}", fullmatch=True),
    st.from_regex(r"[\t -~]{0,9}", fullmatch=True),
)
LINES = st.sampled_from(
    [*[LINE] * 8, LINE.replace(b"1.1", b"1.0"), LINE.lower(), LINE.replace(b" /", b"  /")]
)
HEADS = st.builds(
    lambda line, before, after: b"".join([line, *before, LENGTH, *after]),
    LINES,
    st.lists(st.one_of(SOUND, SOUND, SOUND, BROKEN), max_size=4),
    st.lists(st.one_of(SOUND, SOUND, SOUND, BROKEN), max_size=2),
)


def read_by_gunicorn(head):
    """Give WSGI's environment by gunicorn, as for any request."""
    config = Config()
    parser = RequestParser(config, iter([head + b"\r\nabc"]), ("127.0.0.1", 4711))
    request = next(parser)
    assert not request.should_close()
    assert not request._expected_100_continue
    assert isinstance(request.body.reader, LengthReader)
    assert request.body.reader.length == int(dict(request.headers)["CONTENT-LENGTH"])
    _, environ = wsgi.create(request, None, ("127.0.0.1", 4711), ("127.0.0.1", 8080), config)
    return environ


@given(HEADS)
@example(LINE + LENGTH)
@example(LINE + b"Content-Length: 3\r\nContent-Length: 3\r\n")
@example(LINE + LENGTH + b"Transfer-Encoding: chunked\r\n")
@example(LINE + LENGTH + b"X-Forwarded-Proto: https\r\nX-Forwarded-SSL: off\r\n")
@example(LINE + LENGTH + b"Host: a\r\nX-Amzn-SageMaker-Custom-Attributes:\t a=b \r\n")
def test_what_is_plain_is_read_as_gunicorn_reads_it(head):
    plain = read_plain(head)
    if plain is None:
        return
    whole = read_by_gunicorn(head)
    asked = {
        "REQUEST_METHOD",
        "PATH_INFO",
        "SCRIPT_NAME",
        "QUERY_STRING",
        "SERVER_PROTOCOL",
        "CONTENT_LENGTH",
    }
    for key in asked:
        assert plain[key] == whole[key], key
    names = {key for key in whole if key.startswith(("HTTP_", "CONTENT_"))}
    assert {key for key in plain if key.startswith(("HTTP_", "CONTENT_"))} == names
    for key in names:
        assert plain[key] == whole[key], key


@pytest.mark.parametrize("more", [b"", b"Connection: Keep-Alive\r\n", b"Host: a:8080\r\nAccept: */*\r\n"])
def test_what_clients_send_is_plain(more):
    environ = read_plain(LINE + b"content-type: image/jpeg\r\n" + LENGTH + more)
    assert (environ["CONTENT_TYPE"], environ["CONTENT_LENGTH"]) == ("image/jpeg", "3")


@pytest.mark.parametrize(
    "head",
    [
        LINE,
        LINE.replace(b"1.1", b"1.0") + LENGTH,
        LINE.replace(b"/invocations", b"/invocations?a=b") + LENGTH,
        LINE.replace(b"POST", b"PUT") + LENGTH,
        LINE + LENGTH + LENGTH,
        LINE + LENGTH + b"Connection: close\r\n",
        LINE + LENGTH + b"Expect: 100-continue\r\n",
        LINE + LENGTH + b"A: " + b"x" * MOST_BYTES + b"\r\n",
        LINE + LENGTH + b"A\xe9: b\r\n",
        LINE + LENGTH + b" folded\r\n",
        LINE + LENGTH + b"".join(b"A%d: b\r\n" % number for number in range(60)),
    ],
)
def test_anything_else_is_left_to_gunicorn(head):
    assert read_plain(head) is None


def test_an_answer_has_its_head_before_its_pieces_and_closes_what_it_came_from():
    closed = []

    class Pieces(list):
        def close(self):
            closed.append(True)

    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "6")])
        return Pieces([environ["wsgi.input"].read(), b"def"])

    head, *pieces = answer_plain(app, read_plain(LINE + LENGTH), b"abc", keep=False)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert head.endswith(b"GMT\r\nConnection: close\r\nContent-Length: 6\r\n\r\n")
    assert (pieces, closed) == ([b"abc", b"def"], [True])
