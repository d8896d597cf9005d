"""What is done to a running server; each injection returns how many requests it may cost."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import numpy as np

from bench.servers import Server

Injection = Callable[[Server], int]

#: What is posted to fill the memory: more bytes together than a process may have.
BALLAST_BYTES = 24_000_000
BALLAST_CALLERS = 32
SLOW_CLIENTS = 64
DISCONNECTS = 400
#: States of a connection in /proc/net/tcp.
ESTABLISHED, LISTENING = "01", "0A"


def nothing(server: Server) -> int:
    """Do nothing: the fault is in how the server was started."""
    del server
    return 0


def kill_one(server: Server) -> int:
    """Kill one serving process: the requests it has accepted are lost."""
    victim = list_workers(server)[0]
    os.kill(victim, signal.SIGSTOP)
    connections = count_connections(victim, server.port)
    os.kill(victim, signal.SIGKILL)
    return connections


def damage_and_kill(server: Server) -> int:
    """Damage the model on the disk, and kill a process that has it in memory.

    Where it was the only process, the callers connect to its successor, which ends as well.
    """
    (server.run / "model" / "manifest.json").write_text("{}", encoding="utf-8")
    processes = 2 if len(list_workers(server)) == 1 else 1
    return processes * kill_one(server)


def raise_in_model(server: Server) -> int:
    """Make predict_fn raise once."""
    (server.run / "fault").write_text("raise", encoding="utf-8")
    return 0


def end_model_thread(server: Server) -> int:
    """Make the model's thread end: its process ends with it."""
    connections = sum(count_connections(pid, server.port) for pid in list_workers(server))
    (server.run / "fault").write_text("die", encoding="utf-8")
    return connections


def set_clock(seconds: int) -> Injection:
    """Return an injection that sets the wall clock ahead or back."""

    def inject(server: Server) -> int:
        (server.run / "clock").write_text(str(seconds), encoding="utf-8")
        return 0

    return inject


def stop_and_set_clock(server: Server) -> int:
    """Request a stop, and set the wall clock an hour ahead while requests are being finished."""
    stop(server)
    return set_clock(3600)(server)


def stop(server: Server) -> int:
    """Stop the server as the platform does."""
    os.kill(server.pid, signal.SIGTERM)
    return 0


def freeze(seconds: float) -> Injection:
    """Return an injection that freezes one process for `seconds`, or for good if that is 0."""

    def inject(server: Server) -> int:
        victim = list_workers(server)[0]
        os.kill(victim, signal.SIGSTOP)
        if not seconds:
            return count_connections(victim, server.port)
        time.sleep(seconds)  # the fault itself
        os.kill(victim, signal.SIGCONT)
        return 0

    return inject


def send_slowly(server: Server) -> int:
    """Send 64 requests at ten bytes a second for three seconds, and give up on them."""
    with ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            for _ in range(SLOW_CLIENTS)
        ]
        for number in range(30):
            for client in clients:
                with suppress(OSError):  # the server may have closed it
                    client.send(server.request[number : number + 1])
            time.sleep(0.1)  # the fault itself
    return 0


def disconnect(server: Server) -> int:
    """Disconnect in the middle of a request, and right after a whole one, 200 times each."""
    for number in range(DISCONNECTS):
        with suppress(OSError), socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(server.request[: len(server.request) // (1 + number % 2)])
    return 0


def take_descriptors(server: Server) -> int:
    """Leave no process a free file descriptor for three seconds."""
    workers = list_workers(server)
    before = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in workers}
    for pid in workers:
        used = max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()) + 1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, before[pid][1]))
    time.sleep(3)  # the fault itself
    for pid in workers:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before[pid])
    return 0


def fill_disk(folder: str) -> Injection:
    """Return an injection that fills the file system of `folder` in the server's run folder."""

    def inject(server: Server) -> int:
        _fill(Path(f"/proc/{server.pid}/root{server.run}/{folder}"))
        for _ in range(50):  # each failed request writes a line of the log
            _post(server, b"not an image")
        return 0

    return inject


def fill_and_kill(server: Server) -> int:
    """Fill the shared memory and kill a process: its successor has no space for its metrics."""
    _fill(Path(f"/proc/{server.pid}/root/dev/shm"))
    return kill_one(server)


def fill_memory(server: Server) -> int:
    """Post more bytes at once than the memory limit allows."""
    connections = sum(count_connections(pid, server.port) for pid in list_workers(server))
    with ThreadPoolExecutor(BALLAST_CALLERS) as pool:
        list(pool.map(lambda _: _post(server, b"x" * BALLAST_BYTES), range(BALLAST_CALLERS)))
    return connections


def copy_model(model: Path, target: Path, *, falsified: bool) -> None:
    """Copy a bundle so that it may be damaged; `falsified` changes its reference answers, with their hash."""
    shutil.copytree(model, target)
    if falsified:
        path, reference = target / "manifest.json", target / "golden.npz"
        with np.load(reference, allow_pickle=False) as stored:
            inputs, answers = stored["inputs"], stored["answers"]
        np.savez(reference, inputs=inputs, answers=np.roll(answers, 1, axis=1))
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest["files"][reference.name] = hashlib.sha256(reference.read_bytes()).hexdigest()
        path.write_text(json.dumps(manifest), encoding="utf-8")


def list_workers(server: Server) -> list[int]:
    """Return the serving processes, oldest first: the children that have the listening socket."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text(encoding="utf-8").split()
    return sorted(pid for pid in map(int, children) if _count_sockets(pid, server.port, LISTENING))


def count_connections(pid: int, port: int) -> int:
    """Return how many connections of callers a process has accepted."""
    return _count_sockets(pid, port, ESTABLISHED)


def _count_sockets(pid: int, port: int, state: str) -> int:
    lines = Path("/proc/net/tcp").read_text(encoding="utf-8").splitlines()[1:]
    fields = [line.split() for line in lines]
    sockets = {f"socket:[{one[9]}]" for one in fields if one[1].endswith(f":{port:04X}") and one[3] == state}
    found = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found += str(descriptor.readlink()) in sockets
    return found


def _fill(folder: Path) -> None:
    with suppress(OSError), (folder / "filling").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass


def _post(server: Server, body: bytes) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    with closing(connection), suppress(OSError, http.client.HTTPException):
        connection.request("POST", "/invocations", body, {"Content-Type": "application/x-image"})
        connection.getresponse().read()
