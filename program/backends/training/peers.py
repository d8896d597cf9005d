"""The other hosts of a job: through which interface they are reached, and whether they answer."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tandem.errors import TandemError

logger = logging.getLogger(__name__)

INTERFACES = Path("/sys/class/net")
LOOPBACK = "lo"
#: Seconds that one host is given to answer, and between two rounds of asking.
ANSWER_SECONDS = 1.0
ROUND_SECONDS = 0.25
#: Seconds after which a host that keeps its connections open and says nothing counts as lost.
SILENT_SECONDS = 30
#: Seconds between two lines of log on who is missing.
PROGRESS_SECONDS = 15.0

# What the hosts tell each other through TensorFlow, and TensorFlow's own words: on a host that no longer says
# that it is alive, on one that failed, and on a connection that broke (gRPC's 1, 4, 14: cancelled, too late,
# unavailable).
_SAID = re.compile(r"tandem<<(.*?)>>", re.DOTALL)
_SILENT = re.compile(r"stopped sending heartbeats\):\s*((?:/job:\w+/replica:\d+/task:\d+\s*)+)")
_FAILED = re.compile(r"Error reported from /job:\w+(?:/replica:\d+)?/task:(\d+): (.*)")
_BROKEN = re.compile(
    r"from remote target /job:\w+/replica:\d+/task:(\d+)(?=.*grpc_status:(?:1|4|14)\b)", re.DOTALL
)
_LEADERLESS = re.compile(r"RPC: /tensorflow\.CoordinationService/")  # the first host runs that service
_TASK = re.compile(r"task:(\d+)")


def find_interface(named: str | None, root: Path = INTERFACES) -> str | None:
    """Give the network interface to use: `named` if it exists, else the first that does; None without any.

    The platform has named interfaces that do not exist, as local mode still does.
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
    """Wait until the name of each host resolves and its `port` answers, with this host's port answering too.

    Returns with the port free again, for the caller to serve on it at once: the others may still be asking.
    Raises `TandemError` naming the hosts that are missing after `seconds`, or when `stop` is set.
    """
    deadline = time.monotonic() + seconds
    said = deadline - seconds - PROGRESS_SECONDS  # at once, for the first time
    missing = dict.fromkeys(hosts, "not asked yet")
    with _listen(port, len(hosts)):
        while True:
            missing = {host: why for host in missing if (why := ask(host, port))}
            if not missing:
                break
            now = time.monotonic()
            if now >= deadline:
                raise TandemError(
                    f"{current_host} waited {seconds:.0f} s for {len(hosts) - 1} other host(s), and in vain "
                    f"for {describe(missing)}. Look at the logs of those hosts for the cause."
                )
            if now - said >= PROGRESS_SECONDS:
                said = now
                logger.info("Waiting for hosts, %.0f s more at most: %s", deadline - now, describe(missing))
            if stop.wait(min(ROUND_SECONDS, deadline - now)):
                raise TandemError(
                    f"the job was stopped while {current_host} waited for {describe(missing)}; nothing was "
                    "trained."
                )
    logger.info("All %s hosts answer.", len(hosts))


def ask(host: str, port: int) -> str | None:
    """Give in a phrase why `port` of `host` does not answer; None where it does."""
    try:
        address = socket.gethostbyname(host)
    except OSError:
        return "its name does not resolve"
    try:
        with socket.create_connection((address, port), ANSWER_SECONDS):
            return None
    except TimeoutError:
        return f"port {port} gives no answer"
    except OSError as error:
        return f"port {port}: {(error.strerror or str(error)).lower()}"


def describe(missing: dict[str, str]) -> str:
    """Name hosts, each with why it is missing."""
    return ", ".join(f"{host} ({why})" for host, why in missing.items())


@contextmanager
def _listen(port: int, hosts: int) -> Iterator[None]:
    """Let the other hosts see that this one is there; what connects is not even accepted."""
    try:
        server = socket.create_server(("", port), backlog=4 * hosts + 16)
    except OSError as error:
        raise TandemError(
            f"port {port}, which this host needs to talk to the others, cannot be had: {error.strerror}. "
            "End the process that has it."
        ) from error
    with server:
        yield


def watch(hosts: int, seconds: float) -> None:
    """Have TensorFlow watch over the hosts, with our limits; before its strategy is made."""
    from tensorflow.python.eager import context  # what this needs has no public name

    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        cluster_register_timeout_in_ms=int(seconds * 1000),
        heartbeat_timeout_in_ms=SILENT_SECONDS * 1000,
        coordinated_jobs=[context.coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=hosts)],
    )


def tell(text: str) -> None:
    """End the other hosts' waiting with a sentence, where they can still be reached."""
    import tensorflow as tf
    from tensorflow.python.eager import context

    with suppress(tf.errors.OpError):
        context.context().report_error_to_cluster(tf.errors.UNAVAILABLE, wrap(text))


def wrap(text: str) -> str:
    """Put a sentence for the other hosts so that `find_cause` finds it whole in TensorFlow's error."""
    return f"tandem<<{' '.join(text.split()).replace(chr(34), chr(39)).replace('>>', '>')[:600]}>>"


def find_cause(message: str, hosts: Sequence[str]) -> str | None:
    """Say in a sentence which host an error of TensorFlow is due to; None where to none."""
    if said := _SAID.search(message):
        return said[1]
    if silent := _SILENT.search(message):
        names = [hosts[int(task)] for task in _TASK.findall(silent[1])]
        return f"host {' and host '.join(names)} was lost: no sign of life for {SILENT_SECONDS} s."
    if failed := _FAILED.search(message):
        return f"host {hosts[int(failed[1])]} failed: {failed[2].rstrip('. ')}."
    if broken := _BROKEN.search(message):
        return f"host {hosts[int(broken[1])]} was lost: its connections broke."
    if _LEADERLESS.search(message):
        return f"host {hosts[0]} was lost: no sign of life for {SILENT_SECONDS} s."
    return None
