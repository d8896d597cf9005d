"""Waiting until the other hosts of a job are reachable, and the network interface to reach them through."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tandem.errors import TandemError

logger = logging.getLogger(__name__)

INTERFACES = Path("/sys/class/net")
LOOPBACK = "lo"
#: Seconds to wait for one host's answer, and between two rounds of polling.
CONNECT_SECONDS = 1.0
POLL_SECONDS = 0.25
#: Seconds between two log lines about missing hosts.
PROGRESS_SECONDS = 15.0


def find_interface(named: str | None, root: Path = INTERFACES) -> str | None:
    """Return the network interface `named` if it exists, else the first one; None if there is none.

    The platform has named interfaces that do not exist; local mode still does.
    """
    try:
        found = sorted(entry.name for entry in root.iterdir() if entry.name != LOOPBACK)
    except OSError:
        return None
    if named in found:
        return named
    chosen = min(found, key=lambda name: (not name.startswith("eth"), name), default=None)
    if named:
        logger.warning("There is no network interface %s; using %s.", named, chosen or "none")
    return chosen


def await_peers(
    hosts: Sequence[str], current_host: str, port: int, seconds: float, stop: threading.Event
) -> None:
    """Wait until every host's name resolves and its `port` accepts connections; listen on `port` meanwhile.

    The port is free again on return. The caller must listen on it at once: other hosts may still be polling.
    Raises `TandemError` naming the missing hosts after `seconds`, or when `stop` is set.
    """
    deadline = time.monotonic() + seconds
    logged_at = deadline - seconds - PROGRESS_SECONDS  # so that the first line comes at once
    missing = dict.fromkeys(hosts, "not asked yet")
    with _listen(port, len(hosts)):
        while True:
            missing = {host: reason for host in missing if (reason := find_fault(host, port))}
            if not missing:
                break
            now = time.monotonic()
            if now >= deadline:
                raise TandemError(
                    f"{current_host} waited {seconds:.0f} s for {len(hosts) - 1} other host(s), but some did "
                    f"not answer: {_describe(missing)}. Look at the logs of those hosts for the cause."
                )
            if now - logged_at >= PROGRESS_SECONDS:
                logged_at = now
                logger.info("Waiting for hosts, at most %.0f s more: %s", deadline - now, _describe(missing))
            if stop.wait(min(POLL_SECONDS, deadline - now)):
                raise TandemError(
                    f"the job was stopped while {current_host} waited for {_describe(missing)}; nothing was "
                    "trained."
                )
    logger.info("All %s hosts answer.", len(hosts))


def find_fault(host: str, port: int) -> str | None:
    """Return why `port` of `host` does not accept connections; None if it does."""
    try:
        address = socket.gethostbyname(host)
    except OSError:
        return "its name does not resolve"
    try:
        with socket.create_connection((address, port), CONNECT_SECONDS):
            return None
    except TimeoutError:
        return f"port {port} does not answer"
    except OSError as error:
        return f"port {port}: {(error.strerror or str(error)).lower()}"


def _describe(missing: dict[str, str]) -> str:
    return ", ".join(f"{host} ({reason})" for host, reason in missing.items())


@contextmanager
def _listen(port: int, hosts: int) -> Iterator[None]:
    """Let the other hosts connect to `port`; the kernel completes connections without accepting them."""
    try:
        server = socket.create_server(("", port), backlog=4 * hosts + 16)
    except OSError as error:
        raise TandemError(
            f"this host needs port {port} to communicate with the others, but cannot listen on it: "
            f"{error.strerror}. Stop the process that uses it."
        ) from error
    with server:
        yield
