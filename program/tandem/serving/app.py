"""The ASGI app: health on the event loop, scoring in a bounded pool of threads, all else in Flask."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from a2wsgi import WSGIMiddleware

from tandem.algorithm import Caller
from tandem.errors import ModelError, ModelNotReady, Overloaded
from tandem.serving.batching import Deadline
from tandem.serving.bodies import Bodies, ClientDisconnected, Receive, parse_length
from tandem.serving.errors import Headers, clear_error, describe_error, log_error, render_error
from tandem.serving.monitoring import Monitor
from tandem.serving.pages import create_pages
from tandem.serving.service import Answer, Request, ScoringService
from tandem.settings import Settings

Scope = Any
Send = Callable[[Any], Awaitable[None]]

#: SageMaker's header that names a request, and the one that algorithms read and answer with.
INFERENCE_ID = b"x-amzn-sagemaker-inference-id"
CUSTOM_ATTRIBUTES = b"x-amzn-sagemaker-custom-attributes"
#: Characters of the custom attributes that SageMaker forwards.
MAX_ATTRIBUTES = 1024
#: Seconds that a request is computed before its connection is watched for a client that hangs up.
WATCH_SECONDS = 0.25
#: Status that /metrics counts where a client hung up, as nginx logs it.
CLIENT_CLOSED_REQUEST = 499
#: Bytes of an answer; a larger one counts as a request in progress until the client has read most of it.
SMALL_ANSWER = 64 * 1024


class App:
    """Answers SageMaker's routes with one scoring service.

    `is_complete` returns whether all processes of the server have loaded their models. `startup` is awaited
    before the process takes connections.
    """

    def __init__(
        self,
        service: ScoringService,
        settings: Settings,
        monitor: Monitor,
        *,
        is_complete: Callable[[], bool],
        max_body_bytes: int,
        startup: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._service = service
        self._settings = settings
        self._monitor = monitor
        self._is_complete = is_complete
        self._startup = startup
        self._bodies = Bodies(settings.max_payload_mb * 1024 * 1024, max_body_bytes)
        self._pages = WSGIMiddleware(create_pages(service, settings, monitor).wsgi_app, workers=2)  # type: ignore[arg-type]
        self._pool: ThreadPoolExecutor | None = None
        self._computing = 0
        self._sending = 0

    def count_waiting(self) -> int:
        """Return how many requests wait for a thread of the pool."""
        return max(0, self._computing - (self._service.max_concurrency or self._settings.threads))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or go through the process's lifespan."""
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
        elif scope["path"] == "/invocations" and scope["method"] == "POST":
            await self._score(scope, receive, send)
        elif scope["path"] == "/ping" and scope["method"] in {"GET", "HEAD"}:
            await self._ping(send)
        else:
            await self._pages(scope, receive, send)

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        if self._startup is not None:
            await self._startup()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._service.stop)
        await send({"type": "lifespan.shutdown.complete"})

    async def _ping(self, send: Send) -> None:
        """Answer 200 when requests can be scored, 503 while the model loads, 500 when it cannot be used."""
        try:
            self._service.check()
            if not self._is_complete():
                raise ModelNotReady("other processes are still loading the model; try again in a second.")
        except (ModelNotReady, ModelError) as error:
            await _send(send, error.status, *render_error(*describe_error(error)))
        else:
            await _send(send, 200, [(b"content-length", b"0")], b"")

    async def _score(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = self._monitor.begin()
        headers = dict(scope["headers"])
        status = 200
        try:
            answer_headers, body = await self._invoke(headers, receive)
        except ClientDisconnected:
            self._monitor.finish(CLIENT_CLOSED_REQUEST, started)
            return
        except asyncio.CancelledError:  # by uvicorn, at the end of the time for requests in progress
            late = Overloaded("the server is shutting down; try again in a second.")
            status, answer_headers, body = _fail(late, headers)
        except Exception as error:  # noqa: BLE001  # whatever an algorithm raises is answered
            status, answer_headers, body = _fail(error, headers)
            clear_error(error)
        self._monitor.finish(status, started)
        self._sending += 1  # a slow reader's answer takes memory, as a request does
        try:
            await _send(send, status, answer_headers, body)
        finally:
            self._sending -= 1

    async def _invoke(self, headers: dict[bytes, bytes], receive: Receive) -> tuple[Headers, bytes]:
        self._service.check()
        body = await self._bodies.read(headers.get(b"content-length"), receive)
        self._computing += 1
        try:
            if self._computing + self._sending > self._settings.threads:
                raise Overloaded("the server is busy with other requests; try again in a second.")
            attributes = headers.get(CUSTOM_ATTRIBUTES, b"").decode("latin-1")
            request = Request(
                body=body,
                content_type=_decode(headers.get(b"content-type")),
                accept=_decode(headers.get(b"accept")),
                caller=Caller(attributes, headers.get(INFERENCE_ID, b"").decode("latin-1")),
                deadline=Deadline(self._settings.timeout),
            )
            answer = await self._compute(request, receive)
        finally:
            self._computing -= 1
            self._bodies.release(len(body))
        answer_headers = [
            (b"content-type", _encode_header("media type", answer.content_type)),
            (b"content-length", b"%d" % len(answer.body)),
        ]
        if request.caller.custom_attributes == attributes:  # the caller's own go back as they came
            encoded = headers.get(CUSTOM_ATTRIBUTES, b"")
        else:
            encoded = _encode_header("custom attributes", request.caller.custom_attributes)
        if encoded:
            answer_headers.append((CUSTOM_ATTRIBUTES, encoded))
        return answer_headers, answer.body

    async def _compute(self, request: Request, receive: Receive) -> Answer:
        """Score a request in the pool; it leaves the queue when it is late or its client disconnects."""
        if self._pool is None:  # only a loaded model says how many requests at once it can use
            self._pool = ThreadPoolExecutor(
                self._service.max_concurrency or self._settings.threads, thread_name_prefix="request"
            )
        future = self._pool.submit(_invoke, self._service, request, self._settings.default_accept)
        answer = asyncio.wrap_future(future)
        await asyncio.wait([answer], timeout=WATCH_SECONDS)
        if not answer.done():
            disconnect = asyncio.ensure_future(receive())
            try:
                await asyncio.wait(
                    [answer, disconnect], timeout=request.deadline.left, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                is_disconnected = disconnect.done()
                disconnect.cancel()
            if is_disconnected and not answer.done():
                request.deadline.cancel()
                future.cancel()
                await asyncio.wait([answer])  # a thread that has begun ends soon
                if not answer.cancelled():
                    clear_error(answer.exception())
                raise ClientDisconnected
            if not answer.done() and future.cancel():  # no thread had taken it
                raise request.deadline.make_error()
        return await answer


def _invoke(service: ScoringService, request: Request, default_accept: str) -> Answer:
    """Score a request; an exception that would end this process, such as `SystemExit`, ends the request."""
    try:
        return service.invoke(request, default_accept)
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"the algorithm raised {error!r}") from error


async def _send(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send an answer; return when the client has taken most of it."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    is_large = len(body) > SMALL_ANSWER
    await send({"type": "http.response.body", "body": body, "more_body": is_large})
    if is_large:
        await send({"type": "http.response.body", "body": b""})


def _fail(error: Exception, headers: dict[bytes, bytes]) -> tuple[int, Headers, bytes]:
    """Log why a request failed; return the status, the headers and the body of its answer."""
    status, kind, message = describe_error(error)
    log_error(status, kind, message, _describe_request(headers))
    return status, *render_error(status, kind, message)


def _decode(header: bytes | None) -> str | None:
    return None if header is None else header.decode("latin-1")


def _encode_header(name: str, value: object) -> bytes:
    """Return what an algorithm set as a header's value; raise `ModelError` where no header can hold it."""
    if isinstance(value, str) and len(value) <= MAX_ATTRIBUTES and value.isascii() and value.isprintable():
        return value.encode()
    raise ModelError(
        f"the algorithm set {name} that no header can hold; expected at most {MAX_ATTRIBUTES} printable "
        "ASCII characters."
    )


def _describe_request(headers: dict[bytes, bytes]) -> dict[str, object]:
    """Return what the log says about a request that failed."""
    return {
        "path": "/invocations",
        "inference_id": headers.get(INFERENCE_ID, b"").decode("latin-1"),
        "content_type": headers.get(b"content-type", b"").decode("latin-1")[:200],
        "content_length": parse_length(headers.get(b"content-length")),
    }
