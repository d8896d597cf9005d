"""HTTP over sockets: slow, absent and hostile clients, and what they cost others."""

import contextlib
import json
import re
import resource
import socket
import struct
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from processes import render_request, wait_for
from tandem.serving.fleet import MAX_BODY_BYTES
from tandem.serving.http import MAX_HEAD, MAX_PIPELINED

#: Bytes of a body that no socket buffer holds.
LONG = 8 * 1024 * 1024


@pytest.fixture
def connect():
    with contextlib.ExitStack() as stack:

        def make(server, sent=b""):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
            client.sendall(sent)
            return client

        yield make


def read_answer(client):
    """Return (status, body) of one answer with a Content-Length."""
    with client.makefile("rb") as stream:
        return read_stream(stream)


def read_stream(stream):
    status = int(stream.readline().split()[1])
    length = 0
    while (line := stream.readline()) not in {b"\r\n", b""}:
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return status, stream.read(length)


def test_slow_clients_cost_nobody_anything(live_server, connect):
    """Four times as many clients as threads stop in the middle of their bodies; others do not notice."""
    server = live_server("echo", SERVER_THREADS="16")
    request = post(b'{"instances": [1]}')
    slow = [connect(server, request[: -5 - number % 40]) for number in range(64)]
    silent = [connect(server) for _ in range(64)]
    assert server.ping() == 200
    assert server.invoke(b"[2]")[0] == 200
    for number, client in enumerate(slow):
        client.sendall(request[-5 - number % 40 :])
        assert read_answer(client) == (200, b'{"predictions": [1]}')
    for client in silent:
        client.sendall(request)
        assert read_answer(client)[0] == 200


def test_health_waits_for_no_client_that_announces_a_body(live_server, connect):
    """Health has no body; one that is announced and does not come holds nobody up."""
    server = live_server("echo")
    for _ in range(3):
        connect(server, b"GET /ping HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        connect(server, b"GET /ping HTTP/1.1\r\nHost: a\r\nContent-Length: %s5\r\n\r\n" % (b"0" * 20))
        connect(server, b"GET /ping HTTP/1.1\r\nHost: a\r\nContent-Length: %s\r\n\r\n" % (b"9" * 20))
    assert server.request("GET", "/ping", timeout=2)[0] == 200


def post(body):
    return render_request(body, b"Content-Type: application/json", b"Content-Length: %d" % len(body))


def test_slow_readers_cost_nobody_anything(live_server, connect):
    """More clients than threads ask for 4 MB each and read nothing for now."""
    server = live_server("any_thread", SERVER_THREADS="16")
    slow = [connect(server, post(b'[{"size": 4000000}]')) for _ in range(8)]
    wait_for(lambda: server.read_metric('tandem_requests_total{status="200"}') == 8, "eight answers")
    assert server.invoke(b"[2e-3]")[0] == 200
    for client in slow:
        status, body = read_answer(client)
        assert (status, len(body)) == (200, len(b'{"predictions": [""]}') + 4_000_000)
    slow[0].sendall(post(b"[1e-3]"))
    assert read_answer(slow[0])[0] == 200


def test_a_reader_that_leaves_frees_its_place(live_server, connect):
    server = live_server("any_thread", SERVER_THREADS="2")
    for _ in range(6):
        client = connect(server, post(b'[{"size": 4000000}]'))
        assert client.recv(100)
        client.close()
        wait_for(lambda: server.invoke(b"[0]")[0] == 200, "a place")


def test_a_request_that_waits_for_a_thread_is_counted_and_dropped_in_time(live_server, connect):
    """Requests of callers that hung up or waited too long are not computed; the latter get 503."""
    server = live_server("any_thread", SERVER_THREADS="16", SAGEMAKER_MODEL_SERVER_TIMEOUT="1")
    with ThreadPoolExecutor(8) as pool:
        first = [pool.submit(server.invoke, b"[1.5]") for _ in range(3)]  # one computes, two wait
        wait_for(lambda: server.read_metric("tandem_in_flight") == 3, "three requests in progress")
        connect(server, post(b'["never computed"]')).close()
        late = [pool.submit(server.invoke, b'["too late"]') for _ in range(2)]
        wait_for(lambda: server.read_metric("tandem_queued_rows") == 3, "three that wait")
        assert [future.result(30)[0] for future in first] == [200] * 3
        for status, headers, body in (future.result(30) for future in late):
            assert (status, headers["Retry-After"]) == (503, "1")
            assert "no answer within 1 seconds" in json.loads(body)["message"]
    assert server.read_metric('tandem_requests_total{status="200"}') == 3
    assert server.ping() == 200


@pytest.mark.parametrize(
    "unfinished",
    [
        post(b"[1]") + b"POST /invo",
        post(b"[1]") + b"\r\n",
        render_request(b"", b"Content-Length: 5", b"Expect: 100-continue"),
        render_request(b"30\r\n[0\r\n\r\n", b"Transfer-Encoding: chunked"),
        b"GET /ping HTTP/1.1\r\n" + b"".join(b"A%d: %s\r\n" % (number, b"x" * 5000) for number in range(12)),
    ],
)
def test_requests_without_an_end_take_no_thread(live_server, connect, unfinished):
    server = live_server("echo", SERVER_THREADS="2")
    for _ in range(8):
        connect(server, unfinished)
    wait_for(lambda: server.invoke(b"[2]")[0] == 200, "a thread", seconds=4)
    assert server.request("GET", "/ping?really", timeout=2)[0] == 200


@pytest.mark.parametrize("end", [b"0\r\n\r\n", b"0;a=b\r\n\r\n", b"0\r\nX-Sum: 1\r\n\r\n"])
def test_what_follows_a_chunked_request_at_once_is_answered_too(live_server, connect, end):
    server = live_server("echo")
    lines = (b"Content-Type: application/json", b"Transfer-Encoding: chunked")
    client = connect(server, render_request(b"3\r\n[1]\r\n" + end, *lines) + post(b"[2]") + post(b"[3]")[:-1])
    received = b""
    while received.count(b"predictions") < 2:
        received += client.recv(4096)
    client.sendall(b"]")
    while received.count(b"predictions") < 3:
        received += client.recv(4096)
    assert [f'{{"predictions": [{number}]}}'.encode() in received for number in (1, 2, 3)] == [True] * 3


def test_a_chunk_without_a_size_is_refused_at_once(live_server, connect):
    server = live_server("echo")
    client = connect(
        server, render_request(b"zz\r\n", b"Content-Type: text/csv", b"Transfer-Encoding: chunked")
    )
    status, body = read_answer(client)
    assert (status, json.loads(body)["error"]) == (400, "bad_request")


def test_health_is_answered_while_every_thread_is_busy_and_others_are_refused_at_once(live_server):
    server = live_server("slow_row", SERVER_THREADS="2")
    with ThreadPoolExecutor(3) as pool:
        requests = [pool.submit(server.invoke, b"[2]") for _ in range(3)]
        done, busy = wait(requests, return_when=FIRST_COMPLETED)
        (refused,) = done
        status, headers, body = refused.result()
        assert (status, headers["Retry-After"], json.loads(body)["error"]) == (503, "1", "overloaded")
        assert server.ping() == 200
        assert not any(request.done() for request in busy)
        assert [request.result(30)[0] for request in busy] == [200, 200]
    assert server.invoke(b"[0]")[0] == 200


def test_a_connection_is_kept_for_many_requests_in_pieces_or_together(live_server, connect):
    server = live_server("echo")
    request = post(b'{"instances": [1]}')
    client = connect(server)
    for _ in range(3):
        client.sendall(request[:30])
        client.sendall(request[30:])
        assert read_answer(client)[0] == 200
    client.sendall(request + request)  # pipelined
    received = b""
    while received.count(b'{"predictions": [1]}') < 2:
        piece = client.recv(4096)
        assert piece, received
        received += piece


def test_what_comes_while_a_request_is_handled_waits_for_its_turn(live_server, connect):
    """More of it than the loop keeps, and in the middle of a request."""
    server = live_server("slow_row")
    texts = [letter * 300_000 for letter in "abc"]
    late = b"".join(post(json.dumps([0, text]).encode()) for text in texts)
    client = connect(server, post(b"[0.5]"))
    wait_for(lambda: server.read_metric("tandem_in_flight") == 1, "a request in progress")
    client.sendall(late[:-1000])
    with client.makefile("rb") as stream:
        assert read_stream(stream) == (200, b'{"predictions": [0.5]}')
        for text in texts[:2]:
            assert read_stream(stream) == (200, json.dumps({"predictions": [0, text]}).encode())
        client.sendall(late[-1000:])
        assert read_stream(stream) == (200, json.dumps({"predictions": [0, texts[2]]}).encode())


def test_a_client_that_hangs_up_is_counted_as_such(live_server, connect):
    """Whether its request is computed or waits for a thread."""
    server = live_server("any_thread")
    clients = [connect(server, post(b"[1]")) for _ in range(5)]
    wait_for(lambda: server.read_metric("tandem_in_flight") == 5, "five requests in progress")
    for client in clients:
        client.close()
    wait_for(lambda: server.read_metric('tandem_requests_total{status="499"}') == 5, "five hang-ups")
    assert server.read_metric('tandem_requests_total{status="503"}') is None
    assert "Traceback" not in server.log


def test_a_client_that_leaves_while_its_request_is_handled_keeps_no_loop_busy(live_server, connect):
    server = live_server("any_thread")
    client = connect(server, post(b"[2]"))
    wait_for(lambda: server.read_metric("tandem_in_flight") == 1, "a request in progress")
    (worker,) = server.list_processes()[1:]
    before = read_cpu_seconds(worker)
    client.close()
    wait_for(lambda: server.read_metric("tandem_in_flight") == 0, "it to be done with")
    assert read_cpu_seconds(worker) - before < 1
    assert server.invoke(b"[0]")[0] == 200


def test_more_idle_connections_than_the_usual_limit_of_descriptors_hold_nobody_up(live_server, connect):
    server = live_server("echo", SERVER_THREADS="4")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    try:
        silent = [connect(server) for _ in range(1500)]
        unfinished = [connect(server, post(b"[1]")[:30]) for _ in range(1500)]
        assert server.request("GET", "/ping", timeout=10)[0] == 200
        assert read_answer(connect(server, post(b"[1]")))[0] == 200
        for client in (silent[0], silent[-1]):
            client.sendall(post(b"[2]"))
            assert read_answer(client)[0] == 200
        unfinished[0].sendall(post(b"[1]")[30:])
        assert read_answer(unfinished[0])[0] == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_bodies_that_do_not_end_take_no_more_memory_than_is_kept_for_them(live_server, connect):
    """Three times as much is sent. Those that arrived first are refused, and other requests are answered."""
    server = live_server("echo")
    piece = b"x" * (LONG - 1000)
    long = render_request(piece, b"Content-Type: application/json", b"Content-Length: %d" % LONG)
    with ThreadPoolExecutor(8) as pool:
        clients = list(pool.map(lambda _: connect(server, long), range(3 * MAX_BODY_BYTES // LONG)))
    (worker,) = server.list_processes()[1:]
    assert server.invoke(b"[1]")[0] == 200
    assert server.invoke(json.dumps(["x" * 5_000_000]).encode())[0] == 200
    assert read_own_memory(worker) < 2 * MAX_BODY_BYTES
    refused = 0
    for client in clients:
        client.settimeout(0.01)
        with contextlib.suppress(TimeoutError):
            refused += client.recv(12) == b"HTTP/1.1 503"
    assert 2 * MAX_BODY_BYTES <= refused * LONG < 2.5 * MAX_BODY_BYTES


def read_own_memory(pid):
    """Return the bytes of memory that a process does not share."""
    (line,) = re.findall(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(line) * 1024


def test_bodies_of_every_kind_arrive_whole(live_server, connect):
    """Chunked, announced by Expect, and longer than the loop reads ahead."""
    server = live_server("echo")
    chunked = render_request(
        b"8\r\n[1, 2, 3\r\n1\r\n]\r\n0\r\n\r\n",
        b"Content-Type: application/json",
        b"Transfer-Encoding: chunked",
    )
    assert read_answer(connect(server, chunked)) == (200, b'{"predictions": [1, 2, 3]}')
    waiting = connect(
        server,
        render_request(b"", b"Content-Type: application/json", b"Content-Length: 3", b"Expect: 100-continue"),
    )
    assert waiting.recv(1000).startswith(b"HTTP/1.1 100")
    waiting.sendall(b"[1]")
    assert read_answer(waiting) == (200, b'{"predictions": [1]}')
    text = "x" * (LONG + 1000)
    status, _, body = server.invoke(json.dumps([text]).encode())
    assert (status, json.loads(body)) == (200, {"predictions": [text]})


def test_a_long_body_that_is_cut_off_is_not_scored(live_server, connect):
    """A client that closes its side is gone: the connection is closed without an answer."""
    server = live_server("echo")
    client = connect(
        server,
        render_request(
            b"1\n" * (LONG // 2), b"Content-Type: text/csv", b"Content-Length: %d" % (LONG + 1_000_000)
        ),
    )
    client.sendall(b"1\n" * 1000)
    client.shutdown(socket.SHUT_WR)
    assert client.recv(100) == b""
    assert server.read_metric('tandem_requests_total{status="499"}') == 1
    assert server.read_metric('tandem_requests_total{status="200"}') == 0


def test_a_client_that_does_not_close_its_side_holds_nobody_up(live_server, connect):
    """After `Connection: close` the server does not wait for the client to close, too."""
    server = live_server("echo")
    request = b"GET /ping HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    clients = [connect(server, request) for _ in range(30)]
    assert {read_answer(client)[0] for client in clients} == {200}
    status, _, _ = server.request("GET", "/ping", timeout=5)
    assert status == 200


def test_clients_that_hang_up_in_any_way_leave_nothing_behind(live_server, connect):
    server = live_server("echo", SERVER_THREADS="4")
    for number in range(40):
        client = connect(server, render_request(b"[1", b"Content-Length: 30")[: 10 + number * 2])
        if number % 2:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # ends in a reset
        client.close()
    assert server.invoke(b"[1]")[0] == 200
    assert "Traceback" not in server.log


def test_without_a_free_descriptor_it_goes_on_with_the_connections_it_has(live_server, connect):
    """Others are closed at once, and accepted again when there are descriptors."""
    server = live_server("echo")
    request = post(b"[1]")
    kept = connect(server)
    kept.sendall(request)
    assert read_answer(kept)[0] == 200
    (worker,) = server.list_processes()[1:]
    used = len(list(Path(f"/proc/{worker}/fd").iterdir()))
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (used + 2, 4096))
    for _ in range(6):
        connect(server)
    kept.sendall(request)
    assert read_answer(kept)[0] == 200
    used = read_cpu_seconds(worker)
    time.sleep(1)  # the time in which it is measured how much the loop turns: nothing is waited for
    assert read_cpu_seconds(worker) - used < 0.5, "the loop must not turn as fast as it can"
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (4096, 4096))
    assert read_answer(connect(server, request))[0] == 200
    assert server.list_processes()[1:] == [worker]


def read_cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


@pytest.mark.parametrize(
    ("sent", "status", "error"),
    [
        (b"no HTTP at all\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", 400, "bad_request"),
        (b"GET /ping HTTP/1.1\r\nHo st: a\r\n\r\n", 400, "bad_request"),
        (b"GET /" + b"x" * 400_000, 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 400_000, 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 80_000, 431, "headers_too_large"),
        (b"x" * MAX_HEAD, 400, "bad_request"),
        (render_request(b"", b"Content-Length: " + b"9" * 5000), 400, "bad_request"),
        (render_request(b"", b"Content-Length: 5", b"Transfer-Encoding: chunked"), 400, "bad_request"),
        (render_request(b"", b"Transfer-Encoding: br"), 400, "bad_request"),
        (b"GET http://host HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request"),
        (b"CONNECT host:443 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request"),
    ],
)
def test_a_request_that_the_parser_refuses_is_answered_like_every_error(
    live_server, connect, sent, status, error
):
    server = live_server("echo")
    client = connect(server)
    with contextlib.suppress(ConnectionError):  # it may be refused before all of it is sent
        client.sendall(sent)
    got, body = read_answer(client)
    assert (got, json.loads(body)["error"]) == (status, error)
    assert json.loads(body)["message"].startswith("the request could not be read: ")
    assert "Traceback" not in server.log


@pytest.fixture
def hasty(monkeypatch, client):
    """An `echo` app whose clients have half a second for a request and for an answer."""
    monkeypatch.setattr("tandem.serving.http.CLIENT_SECONDS", 0.5)
    return client("echo")


@pytest.mark.parametrize("sent", [b"", b"GET /pi", post(b"[1, 2]")[:-3], post(b"[1]") + b"GET /p"])
def test_a_request_that_does_not_arrive_within_its_time_ends_the_connection(hasty, connect, sent):
    """The limit is one for all of it: bytes that trickle in do not extend it."""
    trickling = connect(hasty, sent)
    trickling.settimeout(10)
    with contextlib.suppress(ConnectionError):
        while data := trickling.recv(1 << 16):
            assert data.startswith(b"HTTP/1.1 200")
            trickling.sendall(b"x")
    assert hasty.get("/ping").status_code == 200


def test_a_client_that_does_not_read_its_answer_ends_its_connection(hasty, connect, caplog):
    text = json.dumps(["x" * 20_000_000]).encode()
    deaf = connect(hasty, post(text))
    wait_for(lambda: "took over 0.5 seconds" in caplog.text, "the connection to end")
    received = 0
    with contextlib.suppress(ConnectionError):
        while data := deaf.recv(1 << 20):
            received += len(data)
    assert received < len(text)


def test_refused_bodies_leave_no_memory(live_server):
    server = live_server("echo", SAGEMAKER_MAX_PAYLOAD_IN_MB="25")
    (worker,) = server.list_processes()[1:]
    body = b"[" * 20_000_000
    with ThreadPoolExecutor(2) as pool:
        statuses = list(pool.map(lambda _: server.invoke(body)[0], range(40)))
    assert statuses == [400] * 40
    assert read_own_memory(worker) < 200 << 20  # 800 MB were sent


def test_the_answers_before_a_broken_request_come_first(live_server, connect):
    """A refusal would be taken for the answer to the first of them; the connection ends instead."""
    server = live_server("slow_row")
    for broken in (
        b"no HTTP\r\n\r\n",
        b"GET http://host HTTP/1.1\r\n\r\n",
        render_request(b"zz\r\n", b"Transfer-Encoding: chunked"),
        render_request(b"zz\r\n" + b"x" * 200_000, b"Transfer-Encoding: chunked"),
    ):
        client = connect(server, post(b"[0.3]") + broken + post(b"[0]"))
        with client.makefile("rb") as stream:
            assert read_stream(stream) == (200, b'{"predictions": [0.3]}')
            assert stream.read() == b""
    assert "Traceback" not in server.log


def test_an_answered_request_that_turns_out_to_be_broken_gets_no_second_answer(live_server, connect):
    server = live_server("echo")
    client = connect(server, b"GET /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert read_answer(client)[0] == 404
    client.sendall(b"zz\r\n" + post(b"[1]"))
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(100) == b""


def test_a_request_to_upgrade_is_answered_in_plain_http_unless_it_has_a_body(live_server, connect):
    """Java's HttpClient and curl --http2 send such requests."""
    server = live_server("echo")
    upgrade = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c")
    client = connect(server, b"\r\n".join([b"GET /ping HTTP/1.1", b"Host: a", *upgrade, b"", b""]))
    assert read_answer(client)[0] == 200
    status, body = read_answer(connect(server, render_request(b"[1]", *upgrade, b"Content-Length: 3")))
    assert (status, "send plain HTTP/1.1" in json.loads(body)["message"]) == (400, True)
    status, _ = read_answer(connect(server, b"CONNECT /ping HTTP/1.1\r\nHost: a\r\n\r\n"))
    assert status == 405
    assert "Traceback" not in server.log


def test_trailers_have_the_limit_of_a_head(live_server, connect):
    server = live_server("echo")
    client = connect(server, render_request(b"3\r\n[1]\r\n0\r\n", b"Transfer-Encoding: chunked"))
    with contextlib.suppress(ConnectionError):
        for _ in range(20):
            client.sendall(b"a: b\r\n" * 10_000)
    with contextlib.suppress(ConnectionError):
        assert read_answer(client)[0] == 431
    assert server.ping() == 200


def test_more_pipelined_requests_than_may_wait_end_the_connection(live_server, connect):
    server = live_server("slow_row")
    client = connect(server, post(b"[1]"))
    wait_for(lambda: server.read_metric("tandem_in_flight") == 1, "a request in progress")
    client.sendall(b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n" * (MAX_PIPELINED + 2))
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(100) == b""
    assert server.ping() == 200


def test_a_content_length_of_thousands_of_zeros_is_a_number(live_server, connect):
    server = live_server("echo")
    line = b"Content-Length: " + b"0" * 5000 + b"3"
    client = connect(server, render_request(b"[1]", line, b"Content-Type: application/json"))
    assert read_answer(client) == (200, b'{"predictions": [1]}')
    client = connect(server, render_request(b"[1]", line, b"Content-Type: text/strange"))
    assert read_answer(client)[0] == 415
    assert "Traceback" not in server.log
