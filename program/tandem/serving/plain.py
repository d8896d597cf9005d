"""The plain request for scoring, read without gunicorn's parser and answered without its objects.

What is plain is so narrow that both read it alike (`tests/test_plain.py` looks for what they do not).
Anything else is gunicorn's. It saves 0.2 ms of 4.5 ms of CPU a request (docs/performance.md).
"""

from __future__ import annotations

import functools
import io
import re
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from gunicorn.util import http_date

#: Bytes of a plain head, below any of gunicorn's limits.
MOST_BYTES = 8000
MOST_LINES = 50

_LINE = rb"([!#$%&'*+.^`|~0-9A-Za-z-]+):([\t -~]*)\r\n"
_REQUEST_LINE = b"POST /invocations HTTP/1.1\r\n"
_HEAD = re.compile(re.escape(_REQUEST_LINE) + rb"(?:" + _LINE + rb")*")
_LINES = re.compile(_LINE)
_LENGTH = re.compile(r"[0-9]{1,12}")
#: What changes how a request is read, or what becomes of its connection.
_UNUSUAL = {
    *("HTTP_TRANSFER_ENCODING", "HTTP_EXPECT", "HTTP_UPGRADE", "HTTP_TRAILER", "HTTP_TE"),
    *("HTTP_X_FORWARDED_SSL", "HTTP_X_FORWARDED_PROTOCOL"),  # which may contradict X-Forwarded-Proto
}
_ENVIRON = {
    "REQUEST_METHOD": "POST",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/invocations",
    "QUERY_STRING": "",
    "SERVER_NAME": "localhost",
    "SERVER_PORT": "80",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.errors": sys.stderr,
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
    "wsgi.input_terminated": True,
}

Environ = dict[str, Any]


def read_plain(head: bytes) -> Environ | None:
    """Give WSGI's environment of a plain request, but for its body; None for any other.

    `head` is all up to the end of its last line. Plain is POST /invocations by HTTP/1.1 with a Content-Length
    on a connection that is kept, each header once and in printable ASCII.
    """
    if len(head) > MOST_BYTES or not _HEAD.fullmatch(head):
        return None
    lines = _LINES.findall(head, len(_REQUEST_LINE))
    environ: Environ = dict(_ENVIRON)
    for name, value in lines:
        key = name.decode().upper().replace("-", "_")
        environ[key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}"] = value.decode().strip(
            " \t"
        )
    is_plain = (
        len(environ) - len(_ENVIRON) == len(lines) <= MOST_LINES
        and environ.keys().isdisjoint(_UNUSUAL)
        and _LENGTH.fullmatch(environ.get("CONTENT_LENGTH", ""))
        and environ.get("HTTP_CONNECTION", "keep-alive").lower() == "keep-alive"
    )
    return environ if is_plain else None


def answer_plain(
    app: Callable[..., Iterable[bytes]], environ: Environ, body: bytes, *, keep: bool
) -> list[bytes]:
    """Give the pieces of the app's answer, its head first; `keep` says what becomes of the connection."""
    environ["wsgi.input"] = io.BytesIO(body)
    pieces = [b""]

    def start_response(status: str, headers: list[tuple[str, str]], _exc_info: Any = None) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        pieces[0] = (
            f"HTTP/1.1 {status}\r\nServer: gunicorn\r\nDate: {_date(int(time.time()))}\r\n"
            f"Connection: {'keep-alive' if keep else 'close'}\r\n{lines}\r\n"
        ).encode("latin-1")

    answer = app(environ, start_response)
    pieces += answer
    if hasattr(answer, "close"):
        answer.close()
    return pieces


@functools.lru_cache(1)
def _date(seconds: int) -> str:
    return str(http_date(seconds))
