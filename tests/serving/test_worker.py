"""Reading ahead: what slow and absent clients cost others."""

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
from gunicorn.http.errors import InvalidResponseHeader

from processes import render_request, wait_for
from tandem.serving.reading import MAX_HEAD, MAX_READ_AHEAD
from tandem.serving.refusals import describe_refusal
from tandem.serving.worker import MOST_UNFINISHED


@pytest.fixture
def connect():
    with contextlib.ExitStack() as stack:

        def make(server, sent=b""):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
            client.sendall(sent)
            return client

        yield make


def read_answer(client):
    """Give (status, body) of one answer with a Content-Length."""
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
    """The parser would wait five seconds for each of these before it gives the thread back."""
    server = live_server("echo")
    for _ in range(3):
        connect(server, b"GET /ping HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        connect(server, b"GET /ping HTTP/1.1\r\nHost: a\r\nContent-Length: %s5\r\n\r\n" % (b"0" * 20))
        connect(server, b"GET /ping HTTP/1.1\r\nHost: a\r\nContent-Length: %s\r\n\r\n" % (b"9" * 20))
    assert server.request("GET", "/ping", timeout=2)[0] == 200


def post(body):
    return render_request(body, b"Content-Type: application/json", b"Content-Length: %d" % len(body))


def test_slow_readers_cost_nobody_anything(live_server, connect):
    """More clients than lanes ask for 4 MB each and read nothing for now."""
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


def test_what_waits_for_a_lane_is_counted_and_dropped_in_time(live_server, connect):
    """Nobody computes for a caller that hung up, or that has waited too long and is told so."""
    server = live_server("any_thread", SERVER_THREADS="16", SAGEMAKER_MODEL_SERVER_TIMEOUT="1")
    with ThreadPoolExecutor(8) as pool:
        first = [pool.submit(server.invoke, b"[1.5]") for _ in range(3)]  # a core, and two lanes more
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


def test_idle_connections_make_room_for_those_that_ask(live_server, connect):
    """As many as gunicorn takes say nothing; who comes after them is answered at once all the same."""
    server = live_server("echo", SERVER_THREADS="4")
    silent = [connect(server) for _ in range(1010)]
    assert server.request("GET", "/ping", timeout=10)[0] == 200
    assert read_answer(connect(server, post(b"[1]")))[0] == 200
    silent[0].settimeout(10)
    assert silent[0].recv(1) == b""  # the first to come has been idle longest
    silent[-1].sendall(post(b"[2]"))
    assert read_answer(silent[-1])[0] == 200


def test_long_bodies_that_do_not_end_take_no_more_memory_than_is_kept_for_them(live_server, connect):
    """Three times as much is on its way; who sends little is answered, and they are afterwards."""
    server = live_server("echo")
    piece = b"x" * (MAX_READ_AHEAD - 1000)
    long = render_request(piece, b"Content-Type: application/json", b"Content-Length: %d" % MAX_READ_AHEAD)
    refused = []

    def send(_):
        client = connect(server)
        with contextlib.suppress(OSError):
            client.sendall(long)
            client.settimeout(1)
            refused.append(client.recv(12))
        return client

    with ThreadPoolExecutor(8) as pool:
        clients = list(pool.map(send, range(3 * MOST_UNFINISHED // MAX_READ_AHEAD)))
    (worker,) = server.list_processes()[1:]
    assert b"HTTP/1.1 503" in refused
    assert read_own_memory(worker) < 2 * MOST_UNFINISHED
    assert server.invoke(b"[1]")[0] == 200
    for client in clients:
        client.close()
    wait_for(lambda: server.invoke(json.dumps(["x" * 5_000_000]).encode())[0] == 200, "room for a long one")


def read_own_memory(pid):
    """Give the bytes that a process has for itself."""
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
    text = "x" * (MAX_READ_AHEAD + 1000)
    status, _, body = server.invoke(json.dumps([text]).encode())
    assert (status, json.loads(body)) == (200, {"predictions": [text]})


def test_a_long_body_that_is_cut_off_is_not_scored(live_server, connect):
    """Nor said to be: the client still reads."""
    server = live_server("echo")
    length = MAX_READ_AHEAD + 1_000_000
    client = connect(
        server,
        render_request(
            b"1\n" * (MAX_READ_AHEAD // 2), b"Content-Type: text/csv", b"Content-Length: %d" % length
        ),
    )
    client.sendall(b"1\n" * 1000)
    client.shutdown(socket.SHUT_WR)
    status, body = read_answer(client)
    assert (status, json.loads(body)["error"]) in {
        (400, "bad_request"),
        (503, "overloaded"),
    }  # or taken for gone


def test_a_client_that_does_not_close_its_side_holds_nobody_up(live_server, connect):
    """After `Connection: close` gunicorn would wait two seconds for each of these in its one loop."""
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
    server = live_server("echo")
    request = post(b"[1]")
    kept = connect(server)
    kept.sendall(request)
    assert read_answer(kept)[0] == 200
    (worker,) = server.list_processes()[1:]
    used = len(list(Path(f"/proc/{worker}/fd").iterdir()))
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (used + 2, 4096))
    others = [connect(server) for _ in range(6)]
    kept.sendall(request)
    assert read_answer(kept)[0] == 200
    used = read_cpu_seconds(worker)
    time.sleep(1)  # the time in which it is measured how much the loop turns: nothing is waited for
    assert read_cpu_seconds(worker) - used < 0.5, "the loop must not turn as fast as it can"
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (4096, 4096))
    others[-1].sendall(request)
    assert read_answer(others[-1])[0] == 200
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
        (b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 5000), 414, "uri_too_long"),
        (b"GET / HTTP/1.1\r\nA: %s\r\n\r\n" % (b"x" * 9000), 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\n%s\r\n" % (b"A: b\r\n" * 200), 431, "headers_too_large"),
        (b"x" * MAX_HEAD, 431, "headers_too_large"),
        (render_request(b"", b"Content-Length: " + b"9" * 5000), 400, "bad_request"),
        (render_request(b"", b"Transfer-Encoding: br"), 501, "transfer_coding_unsupported"),
        (render_request(b"", b"Expect: a miracle"), 417, "expectation_failed"),
    ],
)
def test_what_the_parser_refuses_is_answered_like_every_error(live_server, connect, sent, status, error):
    server = live_server("echo")
    client = connect(server, sent)
    got, body = read_answer(client)
    assert (got, json.loads(body)["error"]) == (status, error)
    assert json.loads(body)["message"].startswith("the request could not be read: ")
    assert client.recv(1) == b""
    assert "Traceback" not in server.log


def test_a_header_that_an_algorithm_cannot_send_is_the_servers_fault():
    """And nothing of it goes to the caller."""
    status, kind, message = describe_refusal(InvalidResponseHeader("a secret"))
    assert (status, kind) == (500, "server_error")
    assert "secret" not in message
