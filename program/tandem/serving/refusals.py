"""Answers to what is no HTTP or cannot be taken, in the one shape that errors have, without any app."""

from __future__ import annotations

import json
from http import HTTPStatus

from gunicorn.http import errors

from tandem.errors import Overloaded, TandemError, UserError

#: What a parser's error means to the caller; the first are no fault of theirs, any other is a bad request.
_OURS = (errors.InvalidResponseHeader, errors.InvalidResponseHeaderName, errors.ConfigurationProblem)
_MEANINGS: dict[type[Exception], tuple[int, str]] = {
    errors.LimitRequestLine: (414, "uri_too_long"),
    errors.LimitRequestHeaders: (431, "headers_too_large"),
    errors.UnsupportedTransferCoding: (501, "transfer_coding_unsupported"),
    errors.ExpectationFailed: (417, "expectation_failed"),
}


def describe_refusal(error: Exception) -> tuple[int, str, str]:
    """Give (status, kind, message) for what went wrong outside the app: in the parser, or in the server."""
    if isinstance(error, TandemError):
        return error.status, error.kind, str(error)
    if not isinstance(error, errors.ParseException) or isinstance(error, _OURS):
        return TandemError.status, TandemError.kind, "the server failed; its log has the details."
    meanings = [meaning for kind, meaning in _MEANINGS.items() if isinstance(error, kind)]
    status, kind = meanings[0] if meanings else (UserError.status, UserError.kind)
    return status, kind, f"the request could not be read: {str(error)[:300] or type(error).__name__}"


def render_refusal(status: int, kind: str, message: str) -> bytes:
    """Give a whole answer, after which the connection is closed."""
    body = json.dumps({"error": kind, "message": message}).encode()
    retry = "Retry-After: 1\r\n" if status == HTTPStatus.SERVICE_UNAVAILABLE else ""
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n{retry}"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


#: What the loop itself answers: to a request beyond those that may be in progress, and to an endless head.
OVERLOADED = render_refusal(
    Overloaded.status, Overloaded.kind, "the server is busy with other requests; try again in a second."
)
ENDLESS = render_refusal(431, "headers_too_large", "the request could not be read: its head does not end.")
