"""nginx in front of the serving processes, for those who want what only it has; off by default."""

from __future__ import annotations

import os
import shutil
import string
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tandem.errors import UserError

TEMPLATE = Path(__file__).with_name("nginx.conf")
#: Seconds beyond a request's own time limit, after which nginx gives its answer up.
GRACE_SECONDS = 5


@dataclass(frozen=True)
class Proxy:
    """A proxy that runs, and the socket on which it expects the serving processes."""

    socket: Path
    process: subprocess.Popen[bytes]


def render_configuration(run: Path, port: int, payload_mb: int, timeout: float) -> str:
    """Give nginx's configuration; its files and the socket lie in the folder `run`."""
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        run=run,
        socket=find_socket(run),
        port=port,
        payload=payload_mb,
        timeout=int(timeout) + GRACE_SECONDS,
    )


def find_socket(run: Path) -> Path:
    """Give the socket between nginx and the serving processes."""
    return run / "serving.sock"


def start_proxy(run: Path, port: int, payload_mb: int, timeout: float) -> Proxy:
    """Start nginx; raises `UserError` where it is not installed."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise UserError(
            "NGINX is true, but nginx is not installed here; install it, as with `RUN apt-get update && "
            "apt-get install --yes nginx-light` in an image made FROM this one, or leave NGINX out."
        )
    run.chmod(0o711)  # nginx's own processes are those of another user
    configuration = run / "nginx.conf"
    configuration.write_text(render_configuration(run, port, payload_mb, timeout), encoding="utf-8")
    # In a session of its own a Ctrl-C does not reach it: the master ends it, when all is answered.
    process = subprocess.Popen([program, "-p", run, "-c", configuration], start_new_session=True)
    return Proxy(find_socket(run), process)
