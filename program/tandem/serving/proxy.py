"""nginx in front of the serving processes, optional: for a port that strangers can reach."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tandem.errors import UserError

logger = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("nginx.conf")
#: Seconds beyond a request's own time limit after which nginx answers that there is no answer.
GRACE_SECONDS = 5
#: Exit status where nginx ended by itself.
PROXY_ENDED = 5


def render_configuration(run: Path, port: int, payload_mb: int, timeout: float) -> str:
    """Return nginx's configuration; its files and the socket lie in the folder `run`."""
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        run=run,
        socket=find_socket(run),
        port=port,
        payload=payload_mb,
        timeout=int(timeout) + GRACE_SECONDS,
    )


def find_socket(run: Path) -> Path:
    """Return the path of the socket between nginx and the serving processes."""
    return run / "serving.sock"


def start_proxy(run: Path, port: int, payload_mb: int, timeout: float) -> subprocess.Popen[bytes]:
    """Start nginx; raise `UserError` where it is not installed."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise UserError(
            "NGINX is true, but nginx is not installed here; install it, as with `RUN apt-get update && "
            "apt-get install --yes nginx-light` in an image made FROM this one, or leave NGINX out."
        )
    run.chmod(0o711)  # nginx's worker processes belong to another user
    configuration = run / "nginx.conf"
    configuration.write_text(render_configuration(run, port, payload_mb, timeout), encoding="utf-8")
    # In a session of its own a Ctrl-C does not reach it: it is stopped first, once it has answered all.
    return subprocess.Popen([program, "-p", run, "-c", configuration], start_new_session=True)


def serve_behind(proxy: subprocess.Popen[bytes], serve: Callable[[], None], drain_seconds: float) -> NoReturn:
    """Run `serve` in a child process beside nginx; exit when either has ended, and end the other.

    On SIGTERM nginx ends first, when it has answered what it took.
    """
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    server = os.fork()
    if server == 0:
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        try:
            serve()
        except SystemExit as stop:
            os._exit(stop.code if isinstance(stop.code, int) else 1)
        os._exit(0)
    ended = 0
    while not ended and proxy.poll() is None and signal.sigwait(signals) == signal.SIGCHLD:
        ended, status = os.waitpid(server, os.WNOHANG)
    proxy_ended = proxy.poll() is not None
    if proxy_ended:
        logger.error("the proxy ended")
    else:
        proxy.send_signal(signal.SIGQUIT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            proxy.wait(drain_seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(proxy.pid, signal.SIGKILL)  # its workers would outlive a killed master, and keep the port
    proxy.wait()
    if not ended:
        os.kill(server, signal.SIGTERM)
        _, status = os.waitpid(server, 0)
    code = os.waitstatus_to_exitcode(status)
    sys.exit(PROXY_ENDED if proxy_ended else code if code >= 0 else 128 - code)
