"""The real `serve`: gunicorn and its processes, over real sockets."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import ROOT
from processes import wait_for

HEAD = b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


def ask(server, rows, **headers):
    status, _, body = server.invoke(json.dumps(rows).encode(), **headers)
    return status, json.loads(body)


def test_it_serves_on_all_interfaces_and_says_its_plan(live_server):
    server = live_server("echo")
    assert ask(server, [1, "two"]) == (200, {"predictions": [1, "two"]})
    assert "device: cpu: " in server.log
    assert "plan: 1 process(es)" in server.log
    hexadecimal = f"00000000:{server.port:04X}"
    assert hexadecimal in Path("/proc/net/tcp").read_text()


def test_health_is_answered_while_the_model_loads(live_server, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "loading").touch()
    server = live_server("slow_load", ready=False)
    server.wait_until(503)
    status, headers, body = server.invoke(b"[1]")
    assert (status, headers["Retry-After"], json.loads(body)["error"]) == (503, "1", "model_not_ready")
    (tmp_path / "model" / "loading").unlink()
    server.wait_until(200)
    assert ask(server, [1]) == (200, {"predictions": ["loaded"]})


def test_a_model_that_does_not_load_ends_the_container(live_server):
    server = live_server("fails_to_load", ready=False)
    assert server.process.wait(30) == 3
    assert "ERROR: there is no model in" in server.log


def test_an_algorithm_that_does_not_import_ends_the_container(live_server):
    server = live_server("missing_import", ready=False)
    assert server.process.wait(30) == 3
    assert "imports 'a_module_that_nobody_has', which is not installed" in server.log


def test_sigterm_finishes_what_is_in_flight(live_server):
    server = live_server("slow_row")
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(ask, server, [1.5]) for _ in range(4)]
        wait_for(lambda: server.ping() == 200 and count_connections(server.port) >= 4, "four connections")
        assert server.stop() == 0
        assert [future.result(30) for future in futures] == [(200, {"predictions": [1.5]})] * 4


def count_connections(port):
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    established = [line.split() for line in lines]
    return sum(1 for parts in established if parts[1].endswith(f":{port:04X}") and parts[3] == "01")


def test_sigterm_answers_what_was_sent_before_it_whether_accepted_or_not(live_server):
    """Sixteen callers have sent all of their requests when the signal comes; some connections still wait."""
    server = live_server("slow_row")
    request = HEAD + b"Content-Length: 5\r\n\r\n[0.3]"
    clients = []
    for _ in range(16):
        client = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        client.sendall(request)
        clients.append(client)
    server.process.send_signal(signal.SIGTERM)
    statuses = []
    for client in clients:
        with client, client.makefile("rb") as stream:
            statuses.append(stream.readline().split()[1:2])
    assert statuses == [[b"200"]] * 16
    assert server.process.wait(30) == 0


def test_a_body_that_breaks_off_or_is_wrongly_chunked_is_the_callers_fault(live_server):
    server = live_server("echo")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n0\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 400")
    assert "Traceback" not in server.log


def test_a_body_over_the_limit_gets_its_413_also_from_a_client_that_sends_on(live_server):
    server = live_server("echo", SAGEMAKER_MAX_PAYLOAD_IN_MB="1")
    status, _, body = server.invoke(b"[" + b" " * 20_000_000 + b"1]")
    assert (status, json.loads(body)["error"]) == (413, "payload_too_large")


def test_a_program_that_exits_ends_the_container(live_server, tmp_path):
    code = tmp_path / "model" / "code"
    code.mkdir(parents=True)
    (code / "inference.py").write_text("import sys\nsys.exit(0)\n")
    assert live_server("echo", ready=False).process.wait(30) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_to_the_first_process_ends_it_within_seconds(live_server, number):
    assert live_server("echo").stop(number, seconds=10) == 0


def test_sigterm_while_models_load_ends_it_in_order(live_server, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "loading").touch()
    server = live_server("slow_load", ready=False, SAGEMAKER_MODEL_SERVER_WORKERS="4")
    server.wait_until(503)
    assert server.stop() == 0
    assert "Traceback" not in server.log
    assert "memory" not in server.log


def test_a_dead_model_thread_costs_its_process_and_no_more(live_server):
    """The process is replaced, the new one loads the model, and the server is healthy again."""
    server = live_server("poisoned_row")
    (before,) = server.list_processes()[1:]
    try:
        ask(server, ["death"])
    except (OSError, http.client.HTTPException):
        pass  # the process went away under the request
    wait_for(lambda: server.list_processes()[1:] not in ([before], []), "another process")
    server.wait_until(200)
    assert ask(server, ["a"]) == (200, {"predictions": ["good a"]})


def test_a_killed_process_is_replaced(live_server):
    server = live_server("echo")
    (before,) = server.list_processes()[1:]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: server.list_processes()[1:] not in ([before], []), "another process")
    server.wait_until(200)
    assert ask(server, [1]) == (200, {"predictions": [1]})


def test_each_gpu_has_one_process_also_after_one_was_killed(live_server):
    script = ROOT / "tests/fixtures/serve_on_four_gpus.py"
    server = live_server("which_gpu", executable=script, SAGEMAKER_MODEL_SERVER_WORKERS="")

    def ask_one(_):
        try:
            status, _, body = server.invoke(b"[0]")
        except OSError:
            return None
        return tuple(json.loads(body)["predictions"][0]) if status == 200 else None

    def list_processes():
        """Ask, many at once, until every GPU has answered."""
        found = {}
        with ThreadPoolExecutor(8) as pool:
            for _ in range(50):
                for gpu, process in filter(None, pool.map(ask_one, range(32))):
                    found.setdefault(gpu, set()).add(process)
                if len(found) == 4:
                    break
        return found

    assert "plan: 4 process(es)" in server.log
    before = list_processes()
    assert sorted(before) == ["GPU-0", "GPU-1", "GPU-2", "GPU-3"]
    (victim,) = before["GPU-2"]
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: len(set(server.list_processes()[1:]) - {victim}) == 4, "another process")
    after = list_processes()
    assert sorted(after) == sorted(before)
    assert victim not in after["GPU-2"]


def test_it_is_healthy_only_when_all_of_its_processes_are(live_server, tmp_path):
    """Else a caller might, right after the platform saw 200, meet a process that still loads."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "loading").touch()
    server = live_server("slow_load", ready=False, SAGEMAKER_MODEL_SERVER_WORKERS="3")
    server.wait_until(503)
    (tmp_path / "model" / "loading").unlink()
    server.wait_until(200)
    with ThreadPoolExecutor(8) as pool:
        assert {status for status, _ in pool.map(lambda _: ask(server, [1]), range(64))} == {200}


def test_while_a_killed_process_is_replaced_the_others_answer_everything(live_server, tmp_path):
    server = live_server("slow_load", SAGEMAKER_MODEL_SERVER_WORKERS="2")
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model" / "loading").touch()
    first = server.list_processes()[1]
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: len(set(server.list_processes()[1:]) - {first}) == 2, "another process")
    assert [ask(server, [1])[0] for _ in range(30)] == [200] * 30
    assert server.ping() == 200
    (tmp_path / "model" / "loading").unlink()


def test_a_program_in_the_artifact_takes_the_algorithms_place(live_server, tmp_path):
    code = tmp_path / "model" / "code"
    code.mkdir(parents=True)
    (code / "inference.py").write_text(
        "def model_fn(model_dir): return 'mine'\ndef predict_fn(data, model): return [model for _ in data]\n"
    )
    assert ask(live_server("echo"), [1, 2]) == (200, {"predictions": ["mine", "mine"]})


def test_the_master_imports_no_framework_and_no_algorithm(live_server):
    """What the master loaded, each forked process would share, and no framework survives a fork."""
    server = live_server("echo")
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    for name in ("tensorflow", "openvino", "cv2"):
        assert f"/{name}/" not in maps


def test_a_port_in_use_is_reported(live_server):
    server = live_server("echo")
    second = subprocess.run(
        [sys.executable, ROOT / "program/serve"],
        env={**os.environ, "SAGEMAKER_BIND_TO_PORT": str(server.port)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode != 0
    assert "Traceback" not in second.stdout + second.stderr
    assert str(server.port) in second.stdout + second.stderr


def test_a_bad_setting_is_one_sentence(live_server):
    server = live_server("echo", ready=False, BACKEND="torch")
    assert server.process.wait(30) == 1
    assert (
        "ERROR: the environment variable BACKEND is 'torch'; expected one of auto, tensorflow, openvino."
        in server.log
    )


def test_help_lists_the_settings():
    done = subprocess.run(
        [sys.executable, ROOT / "program/serve", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "SAGEMAKER_BIND_TO_PORT (default: 8080)" in done.stdout
