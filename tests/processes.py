"""The real `serve` as a process, and a way to wait for a condition."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path


def wait_for(condition, what, seconds=30.0):
    """Poll until `condition()` is true; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.01)  # there is no event to wait for


def render_request(body=b"", *lines):
    """Return the bytes of a POST to /invocations with these header lines."""
    return b"\r\n".join([b"POST /invocations HTTP/1.1", b"Host: a", *lines, b"", body])


def find_free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class HttpClient:
    """Requests to a port of this machine, each on a connection of its own."""

    def __init__(self, port):
        self.port = port

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, data=b"", content_type=None, headers=()):
        types = {} if content_type is None else {"Content-Type": content_type}
        return self.request("POST", path, data, {**types, **dict(headers)})

    def request(self, method, path, data=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())


@dataclass
class Answer:
    status_code: int
    headers: http.client.HTTPMessage
    data: bytes

    @property
    def text(self):
        return self.data.decode()

    @property
    def json(self):
        return json.loads(self.data)


@dataclass
class LiveServer:
    """The real `serve` as a process."""

    process: subprocess.Popen
    port: int
    log_path: Path

    @property
    def log(self):
        return self.log_path.read_text()

    def request(self, method, path, body=None, timeout=60, **headers):
        """Send one request on a new connection; return (status, headers, body)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def invoke(self, body, content_type="application/json", **headers):
        return self.request("POST", "/invocations", body, content_type=content_type, **headers)

    def read_metric(self, name):
        """Return a value from /metrics, or None if it is not there."""
        lines = self.request("GET", "/metrics")[2].decode().splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), None)

    def ping(self):
        """Return the status of /ping, or None while nothing listens."""
        try:
            return self.request("GET", "/ping", timeout=5)[0]
        except OSError:
            return None

    def wait_until(self, status, seconds=60):
        def reached():
            assert self.process.poll() is None, f"serve ended with {self.process.returncode}:\n{self.log}"
            return self.ping() == status

        wait_for(reached, f"/ping {status}", seconds)

    def list_processes(self):
        """Return the pids of the server and of its children."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [self.process.pid, *map(int, path.read_text().split())]

    def stop(self, number=signal.SIGTERM, seconds=30):
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(seconds)
