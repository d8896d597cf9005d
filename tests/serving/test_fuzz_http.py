"""The server under hostile requests: some hundreds here, 120,000 by `make fuzz-http`."""

import random

import pytest

from fuzz.http import Attack, find_fault
from fuzz.http_streams import Request, make_stream, read_requests


def test_each_answer_belongs_to_its_request(live_server):
    server = live_server("echo")
    attack = Attack(server.port, seed=20)
    attack.run(600)
    assert attack.faults == []
    assert attack.requests >= 600
    assert attack.statuses[200] > 50
    assert attack.statuses[400] > 50
    assert "Traceback" not in server.log
    assert server.ping() == 200


def test_the_same_seed_gives_the_same_streams():
    assert make_stream(random.Random(7), 1) == make_stream(random.Random(7), 1)
    assert make_stream(random.Random(7), 1) != make_stream(random.Random(8), 1)


HEAD = b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("stream", "bodies", "end"),
    [
        (HEAD + b"Content-Length: 3\r\n\r\n[1]", [b"[1]"], "whole"),
        (HEAD + b"Content-Length: 4\r\n\r\n[1]", [b"[1]"], "unfinished"),
        (HEAD + b"Content-Length: +3\r\n\r\n[1]", [b""], "broken"),
        (HEAD + b"Content-Length : 3\r\n\r\n[1]", [], "broken"),
        (HEAD + b"Content-Length: 3, 4\r\n\r\n[1]", [b""], "broken"),
        (
            HEAD + CHUNKED + b"Content-Length: 99\r\n\r\n3\r\n[1]\r\n0\r\n\r\nGET /x HTTP/1.1",
            [b"[1]"],
            "whole",
        ),
        (HEAD + CHUNKED + b"\r\n3;a=b\r\n[1]\r\n0\r\nA: b\r\n\r\n", [b"[1]"], "whole"),
        (HEAD + CHUNKED + b"\r\n3\n[1]\r\n0\r\n\r\n", [b""], "broken"),
        (HEAD + CHUNKED + b"\r\n3\r\n[1]XX0\r\n\r\n", [b"[1]"], "broken"),
        (HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n", [b""], "broken"),
    ],
)
def test_the_strict_reader_finds_where_a_request_ends(stream, bodies, end):
    requests, found = read_requests(stream)
    assert ([request.body for request in requests], found) == (bodies, end)


@pytest.mark.parametrize(
    "answers",
    [
        [(200, False, b'{"predictions": [2]}'), (200, False, b'{"predictions": [1]}')],
        [(200, False, b'{"predictions": [1]}')],
        [(400, True, b"the request could not be read")],
        [(500, False, b"")],
        [
            (200, False, b'{"predictions": [1]}'),
            (200, False, b'{"predictions": [2]}'),
            (404, False, b"GET /a:"),
        ],
    ],
)
def test_an_answer_that_is_wrong_missing_or_one_too_many_is_a_fault(answers):
    requests = [
        Request(b"POST", b"/invocations", body, is_json=True, is_whole=True) for body in (b"[1]", b"[2]")
    ]
    right = [(200, False, b'{"predictions": [1]}'), (200, False, b'{"predictions": [2]}')]
    assert find_fault(requests, right, b"") is None
    assert find_fault(requests, answers, b"")
