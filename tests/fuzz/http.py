"""`make fuzz-http`: send hostile requests to the real server and compare its answers with a strict reader's.

A connection carries a few requests; some are altered. `read_requests` reads the same bytes by RFC 9112. Each
answer must belong to the request whose turn it is, and nothing behind a broken request may be answered.
"""

import argparse
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from fuzz.http_streams import make_stream, read_requests
from processes import LiveServer, find_free_port

ROOT = Path(__file__).resolve().parents[2]
REFUSED = b"the request could not be read"
SECONDS = 20  # that an answer may take on a busy machine
STATUSES = {200, 400, 404, 405, 406, 413, 415, 431}
MAX_FAULTS = 20


def read_answers(data, requests):
    """Return (status, closes, body) of each whole answer."""
    answers = []
    while match := re.match(rb"HTTP/1\.1 (\d+) [^\r]*\r\n((?:[^\r]+\r\n)*)\r\n", data):
        data, status = data[match.end() :], int(match[1])
        if status == 100:
            continue
        closes = b"connection: close" in match[2]
        length = int(re.search(rb"content-length: (\d+)", match[2])[1])
        is_head = len(answers) < len(requests) and requests[len(answers)].method == b"HEAD"
        body, data = (b"", data) if is_head and not data.startswith(b"{") else (data[:length], data[length:])
        if is_head or len(body) == length:
            answers.append((status, closes, body))
    return answers, data


def find_fault(requests, answers, rest):
    """Return what is wrong with the answers to a stream, or None."""
    last_closes = False
    for turn, (status, closes, body) in enumerate(answers):
        request = requests[turn] if turn < len(requests) else None
        is_misfit = status not in STATUSES or last_closes
        last_closes = closes
        if REFUSED in body or (closes and status == 400 and not body):  # to a HEAD request
            is_misfit |= bool(request and request.is_plain and request.is_whole)
        elif request is None:
            is_misfit = True
        else:
            is_misfit |= closes and not request.must_end and not request.may_end
            is_misfit |= not is_answer(request, status, body)
        if is_misfit:
            return f"{status} {body[:200]} is no answer to {request}"
    missing = sum(request.is_whole for request in requests) - len(answers)
    # A request that is not plain may end the connection: before its answer, or after a broken body.
    if missing > 0 and not last_closes and all(one.is_plain for one in requests[: len(answers) + 1]):
        return f"{missing} requests without an answer"
    return f"more bytes: {rest[:100]}" if rest else None


def is_answer(request, status, body):
    """Return whether an answer fits a request; many tell by a number which request they answer."""
    path = request.target.partition(b"?")[0]
    if request.method == b"POST" and path == b"/invocations":
        if status == 200:
            return request.is_whole and json.loads(body) == {"predictions": json.loads(request.body)}
        return not (request.is_json and request.is_whole and re.fullmatch(rb"\[[1-9]\d*\]", request.body))
    if request.method in {b"GET", b"HEAD"} and path == b"/ping":
        return status == 200 and not body
    if request.method in {b"GET", b"POST"} and re.fullmatch(rb"/t[0-9]+", path):
        return b"%b %b:" % (request.method, path) in body
    return True


class Attack:
    """Connections to one server, and what became of them."""

    def __init__(self, port, seed):
        self.port, self.seed = port, seed
        self.statuses, self.faults, self.requests = Counter(), [], 0

    def run(self, requests, threads=8):
        """Send at least so many requests; stop early when most fail."""
        with ThreadPoolExecutor(threads) as pool:
            number = 0
            while self.requests < requests and len(self.faults) < MAX_FAULTS:
                list(pool.map(self.connect, range(number, number + 100)))
                number += 100

    def connect(self, number):
        """Send the stream with this number; note its answers and its fault."""
        source = random.Random(f"{self.seed} {number}")
        stream, count = make_stream(source, number)
        requests, end = read_requests(stream)
        data, closed = b"", False
        whole = sum(request.is_whole for request in requests)
        with socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with suppress(OSError):
                for piece in cut(source, stream):
                    client.sendall(piece)
            with suppress(ConnectionError, TimeoutError):
                while not closed:
                    if end == "unfinished" and len(read_answers(data, requests)[0]) >= whole:
                        client.settimeout(0.02)  # there may be another answer
                    piece = client.recv(1 << 16)
                    data, closed = data + piece, not piece
        answers, rest = read_answers(data, requests)
        fault = find_fault(requests, answers, rest)
        self.requests += count
        self.statuses.update(status for status, _, _ in answers)
        self.statuses["no answer"] += not answers
        if fault:
            self.faults.append(
                f"connection {number}, {end}: {fault}\n  sent {stream[:3000]!r}\n  got {data[:2000]!r}"
            )


def cut(source, stream):
    """Return the stream in pieces: one, a few, or each byte alone."""
    style = source.random()
    if style < 0.15 and len(stream) < 2000:
        return [stream[at : at + 1] for at in range(len(stream))]
    edges = sorted(source.randrange(len(stream)) for _ in range(source.randrange(1, 4) if style < 0.4 else 0))
    return [stream[begin:end] for begin, end in zip([0, *edges], [*edges, len(stream)], strict=True)]


def read_figures(server):
    """Return MB of memory, open files and CPU seconds of the serving process."""
    process = Path(f"/proc/{server.list_processes()[1]}")
    memory = int(re.search(r"RssAnon:\s+(\d+)", (process / "status").read_text())[1]) >> 10
    fields = (process / "stat").read_text().rsplit(")", 1)[1].split()
    return memory, len(list((process / "fd").iterdir())), (int(fields[11]) + int(fields[12])) / 100


def main():
    """Return 0 if the server did as the strict reader, for all requests, and is as it was before."""
    parser = argparse.ArgumentParser(prog="fuzz.http", description=__doc__)
    parser.add_argument("--requests", type=int, default=120_000, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=int(time.time()) & 0xFFFF, help="for the same again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        port, log = find_free_port(), Path(folder, "log")
        environment = {"PYTHONPATH": f"{ROOT}/tests:{ROOT}/program", "ALGORITHM": "fixtures.echo"}
        environment |= {"SAGEMAKER_BASE_DIR": folder, "SAGEMAKER_BIND_TO_PORT": str(port)}
        environment |= {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}
        Path(folder, "model").mkdir()
        command = [sys.executable, ROOT / "program" / "serve"]
        with log.open("wb") as file:
            process = subprocess.Popen(command, env=os.environ | environment, stdout=file, stderr=file)
        server = LiveServer(process, port, log)
        try:
            server.wait_until(200)
            Attack(port, -1).run(2000)  # warms up
            started, before, attack = time.monotonic(), read_figures(server), Attack(port, options.seed)
            attack.run(options.requests)
            time.sleep(1)  # hung-up connections are closed
            after = read_figures(server)
            tracebacks = server.log.count("Traceback")
        finally:
            exit_status = server.stop()
    for fault in attack.faults:
        sys.stdout.write(f"FAULT {fault}\n")
    sys.stdout.write(
        f"seed {options.seed}: {attack.requests} requests in {time.monotonic() - started:.0f} s, "
        f"{len(attack.faults)} faults, {tracebacks} tracebacks, exit status {exit_status}\n"
        f"  answers {dict(attack.statuses)}\n  memory {before[0]} to {after[0]} MB, "
        f"files {before[1]} to {after[1]}, {after[2] - before[2]:.1f} seconds of the server's processor\n"
    )
    has_grown = after[0] > before[0] + 50 or after[1] > before[1] + 5
    return int(bool(attack.faults or tracebacks or exit_status or has_grown))


if __name__ == "__main__":
    sys.exit(main())
