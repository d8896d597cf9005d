"""How a failed request is answered and logged; every error that leaves the server gets its shape here."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Mapping

from tandem.errors import TandemError

logger = logging.getLogger(__name__)

#: SageMaker passes on at most 2048 characters of an error's body.
MAX_MESSAGE = 1500

Headers = list[tuple[bytes, bytes]]


def describe_error(error: BaseException) -> tuple[int, str, str]:
    """Return (status, kind, message) for an exception; only a `TandemError` shows its own words."""
    if isinstance(error, TandemError):
        return error.status, error.kind, str(error)
    logger.error("a request failed", exc_info=error)
    return TandemError.status, TandemError.kind, "the server failed; its log has the details."


def clear_error(error: BaseException | None) -> None:
    """Clear the variables of the frames that an exception went through.

    Some of them hold the exception itself, in a future: such a cycle would keep the request's body in memory
    until the garbage collector runs.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def render_error(status: int, kind: str, message: str) -> tuple[Headers, bytes]:
    """Return the headers and the JSON body of an error's answer."""
    body = json.dumps({"error": kind, "message": message[:MAX_MESSAGE]}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    return headers, body


def log_error(status: int, kind: str, message: str, request: Mapping[str, object]) -> None:
    """Write one line of JSON to the log: a warning, or an error for status 500."""
    line = {"event": "request_failed", "status": status, "error": kind, "message": message[:MAX_MESSAGE]}
    logger.log(logging.ERROR if status == 500 else logging.WARNING, "%s", json.dumps({**line, **request}))
