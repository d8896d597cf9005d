"""nginx in front, where it is asked for: what it changes, and how the two end together."""

import json
import os
import shutil
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from processes import wait_for
from tandem.errors import UserError
from tandem.serving.proxy import render_configuration, start_proxy

needs_nginx = pytest.mark.skipif(
    not shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin"),
    reason="nginx is not installed: apt-get install nginx-light",
)


def test_the_configuration_has_the_servers_own_limits(tmp_path):
    text = render_configuration(tmp_path, 8081, 7, 30.5)
    assert "listen 8081 " in text
    assert "client_max_body_size 7m;" in text
    assert "proxy_read_timeout 35s;" in text
    assert f"server unix:{tmp_path}/serving.sock " in text


def test_where_nginx_is_missing_it_says_how_to_add_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tandem.serving.proxy.shutil.which", lambda *_arguments, **_options: None)
    with pytest.raises(UserError, match="apt-get install --yes nginx-light"):
        start_proxy(tmp_path, 8080, 25, 60)


@needs_nginx
def test_with_nginx_it_serves_and_refuses_as_without(live_server):
    server = live_server("echo", NGINX="true", SAGEMAKER_MAX_PAYLOAD_IN_MB="2")
    status, headers, body = server.invoke(b"[1]")
    assert (status, json.loads(body)) == (200, {"predictions": [1]})
    assert headers["Server"].startswith("nginx")
    assert server.invoke(b"[" + b" " * 1_500_000 + b"1]")[0] == 200  # in a file on its way
    assert server.invoke(b"no JSON")[0] == 400
    status, headers, body = server.invoke(b"[" + b" " * 3_000_000 + b"1]")
    assert (status, json.loads(body)["error"]) == (413, "payload_too_large")
    assert headers["Content-Type"] == "application/json"
    for broken in (b"no HTTP at all\r\n\r\n", b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
            client.sendall(broken)
            answer = client.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 400")
        assert b'"error": "bad_request"' in answer
    assert server.stop() == 0
    assert "Traceback" not in server.log


@needs_nginx
def test_while_nothing_answers_behind_nginx_health_says_so(live_server, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "loading").touch()
    server = live_server("slow_load", ready=False, NGINX="true")
    server.wait_until(503)
    (tmp_path / "model" / "loading").unlink()
    server.wait_until(200)


@needs_nginx
def test_sigterm_answers_what_nginx_took(live_server):
    server = live_server("slow_row", NGINX="true")
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(server.invoke, b"[1.5]") for _ in range(4)]
        wait_for(lambda: b"tandem_in_flight 4.0" in server.request("GET", "/metrics")[2], "four requests")
        assert server.stop() == 0
        assert [future.result(30)[0] for future in futures] == [200] * 4
    wait_for(lambda: not find_nginx(server.port), "nginx to end")


@needs_nginx
def test_an_nginx_that_ends_ends_the_server(live_server):
    server = live_server("echo", NGINX="true")
    (master,) = find_nginx(server.port)
    os.kill(master, signal.SIGKILL)
    assert server.process.wait(30) == 5
    assert "the proxy ended" in server.log


def find_nginx(port):
    """The pids of nginx masters that were given a configuration with this port."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().decode().replace("\0", " ").split()
            if "-c" in words and f"listen {port} " in Path(words[words.index("-c") + 1]).read_text():
                found.append(int(folder.name))
        except (OSError, ValueError, IndexError):
            continue
    return found
