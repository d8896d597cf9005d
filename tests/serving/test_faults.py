"""Faults while the real `serve` serves: what may be lost, what health says, and how it ends."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import ROOT
from processes import render_request, wait_for

READ_ONLY = "mount -o remount,bind,ro /; mount -o remount,bind,ro /tmp 2>/dev/null || true"


@pytest.fixture
def harmed_server(live_server):
    """`harmed_server("echo", "mount …")` serves after shell lines in a mount namespace of its own."""
    unshared = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    if unshared.returncode:
        pytest.skip(f"mounts need a namespace of their own: {unshared.stderr.decode().strip()}")

    def start(name, harm, **options):
        return live_server(name, executable=ROOT / "tests/fixtures/serve_harmed.py", HARM=harm, **options)

    return start


@pytest.fixture
def clock(tmp_path):
    """Return the environment of a process whose wall clock can be set, and the function that sets it."""
    library, offset = tmp_path / "clock.so", tmp_path / "clock"
    source = ROOT / "tests/clock/clock.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    offset.write_text("0")
    environment = {"LD_PRELOAD": str(library), "FAKE_CLOCK": str(offset)}
    return environment, lambda seconds: offset.write_text(str(seconds))


def count_answers(server, rows, times):
    with ThreadPoolExecutor(4) as pool:
        return [status for status, _, _ in pool.map(lambda _: server.invoke(rows), range(times))].count(200)


def is_refused(port):
    """Tell whether nothing listens any more; who connects while it closes is reset, having sent nothing."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    return False


def test_processes_that_are_killed_while_they_load_end_the_container(live_server):
    """As where the memory is too small for the model: trying on for ever would help nobody."""
    server = live_server("killed_while_loading", ready=False)
    assert server.process.wait(60) == 3
    assert "process after process ended before its model was loaded" in server.log
    assert "Traceback" not in server.log


def test_a_replacement_that_cannot_load_ends_the_container(live_server, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "first").touch()
    server = live_server("killed_while_loading")
    os.kill(server.list_processes()[1], signal.SIGKILL)
    assert server.process.wait(60) == 3


def test_several_processes_that_cannot_load_end_the_container_without_a_trace(live_server):
    server = live_server("fails_to_load", ready=False, SAGEMAKER_MODEL_SERVER_WORKERS="4")
    assert server.process.wait(30) == 3
    assert "there is no model in" in server.log
    assert "HaltServer" not in server.log
    assert "Traceback" not in server.log


@pytest.mark.parametrize("processes", ["1", "2"])
def test_on_the_way_out_it_refuses_connections_and_answers_what_it_took(live_server, processes):
    """A connection that nobody will accept would look like a request that was lost."""
    server = live_server("slow_row", SAGEMAKER_MODEL_SERVER_WORKERS=processes)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(server.invoke, b"[2]") for _ in range(4)]
        wait_for(lambda: server.read_metric("tandem_in_flight") == 4, "four requests in progress")
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: is_refused(server.port), "refused connections")
        assert server.process.poll() is None
        assert [future.result(30)[0] for future in futures] == [200] * 4
    assert server.process.wait(30) == 0


def test_a_request_on_a_kept_connection_right_after_sigterm_is_answered(live_server):
    server = live_server("echo")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    headers = {"Content-Type": "application/json"}
    with contextlib.closing(connection):
        connection.request("POST", "/invocations", b"[1]", headers)
        assert connection.getresponse().read()
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: is_refused(server.port), "refused connections")
        connection.request("POST", "/invocations", b"[2]", headers)
        response = connection.getresponse()
        assert (response.status, response.getheader("Connection")) == (200, "close")
        assert json.loads(response.read()) == {"predictions": [2]}
    assert server.process.wait(30) == 0


@pytest.mark.slow
def test_a_request_that_does_not_arrive_before_the_server_ends_gets_503(live_server):
    server = live_server("echo")
    request = render_request(b"[1", b"Content-Type: application/json", b"Content-Length: 3")
    with socket.create_connection(("127.0.0.1", server.port), timeout=40) as client:
        client.sendall(request)
        wait_for(lambda: server.read_metric("tandem_in_flight") == 1, "a request in progress")
        server.process.send_signal(signal.SIGTERM)
        assert client.recv(12) == b"HTTP/1.1 503"
    assert server.process.wait(30) == 0
    assert "Traceback" not in server.log


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_a_clock_that_jumps_changes_nothing(live_server, clock, seconds):
    environment, set_clock = clock
    server = live_server("slow_row", SAGEMAKER_MODEL_SERVER_TIMEOUT="30", **environment)
    (process,) = server.list_processes()[1:]
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(server.invoke, b"[1]")
        wait_for(lambda: server.read_metric("tandem_in_flight") == 1, "a request in progress")
        set_clock(seconds)
        assert future.result(30)[0] == 200
    assert count_answers(server, b"[0]", 20) == 20
    assert server.ping() == 200
    assert server.list_processes()[1:] == [process]


@pytest.mark.parametrize("processes", ["1", "2"])
def test_it_serves_where_nothing_but_shared_memory_can_be_written(harmed_server, processes):
    """As under `docker run --read-only`; the model's folder cannot be written either."""
    server = harmed_server("echo", READ_ONLY, SAGEMAKER_MODEL_SERVER_WORKERS=processes)
    assert count_answers(server, b"[1]", 20) == 20
    assert b'tandem_requests_total{status="200"} 20.0' in server.request("GET", "/metrics")[2]
    assert server.stop() == 0
    assert "Traceback" not in server.log


def test_where_nothing_at_all_can_be_written_it_says_so(harmed_server):
    harm = f"mount -t tmpfs -o ro tmpfs /dev/shm; {READ_ONLY}"
    server = harmed_server("echo", harm, ready=False)
    assert server.process.wait(30) == 1
    assert "ERROR: neither /dev/shm nor a temporary folder can be written" in server.log
    assert "Traceback" not in server.log


def test_full_shared_memory_costs_a_new_process_its_metrics_and_not_its_life(harmed_server):
    harm = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    server = harmed_server("echo", harm, SAGEMAKER_MODEL_SERVER_WORKERS="2")
    filling = Path(f"/proc/{server.process.pid}/root/dev/shm/filling")
    with contextlib.suppress(OSError), filling.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    first = server.list_processes()[1]
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: len(set(server.list_processes()[1:]) - {first}) == 2, "another process")
    wait_for(lambda: server.log.count("the model is ready") == 3, "the third model")
    second, third = server.list_processes()[1:]
    assert count_answers(server, b"[1]", 40) == 40
    assert server.request("GET", "/metrics")[0] == 200
    assert server.list_processes()[1:] == [second, third]
    assert "/metrics shows each process alone" in server.log


def test_a_full_disk_under_the_log_costs_the_log_and_no_request(harmed_server):
    server = harmed_server("echo", "exec >/dev/full 2>&1")
    assert count_answers(server, b"[1]", 20) == 20
    assert [server.invoke(b"no JSON")[0] for _ in range(20)] == [400] * 20
    assert server.ping() == 200
    assert server.stop() == 0
