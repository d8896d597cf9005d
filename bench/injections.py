"""What is done to a server that serves: each injection gives how many requests it may cost."""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from backends.bundle.manifest import GOLDEN, MANIFEST, Manifest, sha256
from bench.contenders import Server

Injection = Callable[[Server], int]

#: What is posted to fill the memory: more bytes together than a process may have.
BALLAST_BYTES = 24_000_000
BALLAST_CALLERS = 32


def nothing(server: Server) -> int:
    """Leave it alone: the fault is in how it was started."""
    del server
    return 0


def kill_one(server: Server) -> int:
    """Kill one serving process: what it has accepted is lost."""
    victim = list_workers(server)[0]
    os.kill(victim, signal.SIGSTOP)
    connections = count_connections(victim, server.port)
    os.kill(victim, signal.SIGKILL)
    return connections


def damage_and_kill(server: Server) -> int:
    """Damage the model on the disk, and kill a process that has it in memory.

    Where it was the only one, the callers come to its follower, which ends as well.
    """
    (server.run / "model" / MANIFEST).write_text("{}", encoding="utf-8")
    processes = 2 if len(list_workers(server)) == 1 else 1
    return processes * kill_one(server)


def raise_in_model(server: Server) -> int:
    """Let predict_fn raise once: the batch is computed again, row by row."""
    (server.run / "fault").write_text("raise", encoding="utf-8")
    return 0


def end_model_thread(server: Server) -> int:
    """Let the model's thread end: its process ends with it."""
    connections = sum(count_connections(pid, server.port) for pid in list_workers(server))
    (server.run / "fault").write_text("die", encoding="utf-8")
    return connections


def set_clock(seconds: int) -> Injection:
    """Set the wall clock ahead or back."""

    def inject(server: Server) -> int:
        (server.run / "clock").write_text(str(seconds), encoding="utf-8")
        return 0

    return inject


def stop_and_set_clock(server: Server) -> int:
    """Begin a stop, and set the wall clock an hour ahead while requests are being finished."""
    server.signal(signal.SIGTERM)
    return set_clock(3600)(server)


def stop(server: Server) -> int:
    """Stop it as the platform does."""
    server.signal(signal.SIGTERM)
    return 0


def freeze(seconds: float) -> Injection:
    """Freeze one process, for `seconds` or, if that is 0, for good."""

    def inject(server: Server) -> int:
        victim = list_workers(server)[0]
        os.kill(victim, signal.SIGSTOP)
        if not seconds:
            return count_connections(victim, server.port)
        time.sleep(seconds)  # the harm itself: nothing is waited for
        os.kill(victim, signal.SIGCONT)
        return 0

    return inject


def take_descriptors(server: Server) -> int:
    """Leave no process a free descriptor for three seconds."""
    workers = list_workers(server)
    before = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in workers}
    for pid in workers:
        used = max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()) + 1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, before[pid][1]))
    time.sleep(3)  # the harm itself: nothing is waited for
    for pid in workers:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before[pid])
    return 0


def fill_disk(folder: str) -> Injection:
    """Fill the file system that holds `folder` of the run, as the server sees it."""

    def inject(server: Server) -> int:
        place = Path(f"/proc/{server.pid}/root{server.run}/{folder}")
        with contextlib.suppress(OSError), (place / "filling").open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        for _ in range(50):  # lines for the log: what it says of a request that failed
            _post(server, b"no picture")
        return 0

    return inject


def fill_and_kill(server: Server) -> int:
    """Fill the memory that processes share, and kill one: its follower finds no room for its metrics."""
    with contextlib.suppress(OSError), Path(f"/proc/{server.pid}/root/dev/shm/filling").open("wb", 0) as file:
        while file.write(b"x" * 4096):
            pass
    return kill_one(server)


def fill_memory(server: Server) -> int:
    """Post more than the memory holds, all at once."""
    connections = sum(count_connections(pid, server.port) for pid in list_workers(server))
    with ThreadPoolExecutor(BALLAST_CALLERS) as pool:
        list(pool.map(lambda _: _post(server, b"x" * BALLAST_BYTES), range(BALLAST_CALLERS)))
    return connections


def falsify_golden(model: Path) -> None:
    """Change the golden answers of a bundle, and the hash that would tell."""
    with np.load(model / GOLDEN, allow_pickle=False) as stored:
        inputs, answers = stored["inputs"], stored["answers"]
    np.savez(model / GOLDEN, inputs=inputs, answers=np.roll(answers, 1, axis=1))
    manifest = Manifest.from_json((model / MANIFEST).read_text(encoding="utf-8"))
    manifest.files[GOLDEN] = sha256(model / GOLDEN)
    (model / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def copy_model(model: Path, target: Path) -> Path:
    """Copy a bundle to where it may be damaged."""
    return Path(shutil.copytree(model, target))


def list_workers(server: Server) -> list[int]:
    """List the serving processes, oldest first."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    return sorted(map(int, children.read_text(encoding="utf-8").split()))


def count_connections(pid: int, port: int) -> int:
    """Count the callers' connections that a process has accepted."""
    lines = Path("/proc/net/tcp").read_text(encoding="utf-8").splitlines()[1:]
    fields = [line.split() for line in lines]
    sockets = {f"socket:[{one[9]}]" for one in fields if one[1].endswith(f":{port:04X}") and one[3] == "01"}
    found = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(descriptor.readlink()) in sockets
    return found


def _post(server: Server, body: bytes) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("POST", "/invocations", body, {"Content-Type": "application/x-image"})
        connection.getresponse().read()
