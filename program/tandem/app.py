"""SageMaker's three routes, as a Flask app around one scoring service."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from tandem.algorithm import Caller
from tandem.description import describe_service, make_openapi
from tandem.errors import ModelNotReady, PayloadTooLarge, TandemError, UserError
from tandem.monitoring import Monitor
from tandem.scoring import Request, ScoringService
from tandem.settings import Settings

logger = logging.getLogger(__name__)

#: SageMaker's header that names a request, and the one that algorithms read and answer with.
INFERENCE_ID = "X-Amzn-SageMaker-Inference-Id"
CUSTOM_ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"

#: Batch transform's own default payload, and how many at once; it refuses a product above 100 MB.
TRANSFORM_PAYLOAD_MB = 6
TRANSFORMS = 16


class _App(Flask):
    """Flask without what it does for coroutines, in three places a request."""

    def create_url_adapter(self, request: Any) -> Any:
        """Match a request by its path and method alone: what the server is called plays no part."""
        if request is None:
            return super().create_url_adapter(request)
        return self.url_map.bind("localhost", path_info=request.path, default_method=request.method)

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Give the function back, as none of ours is a coroutine."""
        return func


def create_app(
    service: ScoringService, settings: Settings, monitor: Monitor, is_complete: Callable[[], bool]
) -> Flask:
    """Build the app; it closes over `service`, so one process may hold several.

    `is_complete` tells whether all processes that serve here have loaded their models.
    """
    app = _App("tandem", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_payload_mb * 1024 * 1024 or None
    _add_routes(app, service, settings, is_complete)
    _add_descriptions(app, service, monitor)
    _add_error_handlers(app, settings)
    app.wsgi_app = _watch(app.wsgi_app, monitor)  # type: ignore[method-assign]  # Flask's way to wrap an app
    return app


def _watch(wsgi_app: Callable[..., Any], monitor: Monitor) -> Callable[..., Any]:
    """Count requests to /invocations, and how long their answers take."""

    def watch(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ["PATH_INFO"] != "/invocations":
            return wsgi_app(environ, start_response)
        begun = monitor.begin()

        def finish(status: str, *arguments: Any) -> Any:
            monitor.finish(int(status[:3]), begun)
            return start_response(status, *arguments)

        return wsgi_app(environ, finish)

    return watch


def _add_routes(
    app: Flask,
    service: ScoringService,
    settings: Settings,
    is_complete: Callable[[], bool],
) -> None:

    @app.get("/ping")
    def ping() -> Response:
        """Answer 200 when requests can be scored, 503 while the model loads, 500 when it cannot be used."""
        service.check()
        if not is_complete():
            raise ModelNotReady("other processes are still loading the model; try again in a second.")
        return Response(status=200)

    @app.post("/invocations")
    def invocations() -> Response:
        """Score one body."""
        headers, environ = request.headers, request.environ
        client = environ.get("gunicorn.socket")  # tandem.connection's
        caller = Caller(headers.get(CUSTOM_ATTRIBUTES, ""), headers.get(INFERENCE_ID, ""))
        answer = service.invoke(
            Request(
                body=_read_body(environ),
                content_type=headers.get("Content-Type"),
                accept=headers.get("Accept"),
                caller=caller,
                is_gone=client.has_hung_up if client else bool,
            ),
            settings.default_accept,
        )
        response = Response(answer.body, content_type=answer.content_type)
        if caller.custom_attributes:
            response.headers[CUSTOM_ATTRIBUTES] = caller.custom_attributes
        return response

    @app.get("/execution-parameters")
    def execution_parameters() -> Response:
        """Tell batch transform how to send; no BatchStrategy, which its readers spell differently."""
        payload_mb = min(TRANSFORM_PAYLOAD_MB, settings.max_payload_mb or TRANSFORM_PAYLOAD_MB)
        return jsonify(MaxConcurrentTransforms=TRANSFORMS, MaxPayloadInMB=payload_mb)


def _add_descriptions(app: Flask, service: ScoringService, monitor: Monitor) -> None:
    algorithm = service.algorithm

    @app.get("/metrics")
    def metrics() -> Response:
        """Show counts and times to Prometheus."""
        body, content_type = monitor.render()
        return Response(body, content_type=content_type)

    @app.get("/")
    def index() -> Response:
        """Say to a person what this is."""
        return Response(describe_service(algorithm.content_types), content_type="text/plain; charset=utf-8")

    @app.get("/openapi.json")
    def openapi() -> Response:
        """Describe the routes to a program."""
        return jsonify(make_openapi(algorithm.content_types, algorithm.accepts))


def _add_error_handlers(app: Flask, settings: Settings) -> None:
    @app.errorhandler(TandemError)
    def show_tandem_error(error: TandemError) -> Response:
        return _make_error(error.status, error.kind, str(error))

    @app.errorhandler(RequestEntityTooLarge)
    def show_too_large(_error: RequestEntityTooLarge) -> Response:
        limit = f"{settings.max_payload_mb} MB"
        return show_tandem_error(
            PayloadTooLarge(f"the body is over {limit}; send less, or raise SAGEMAKER_MAX_PAYLOAD_IN_MB.")
        )

    @app.errorhandler(HTTPException)
    def show_http_error(error: HTTPException) -> Response:
        code = error.code or 500
        kind = error.name.lower().replace(" ", "_")
        response = _make_error(code, kind, f"{request.method} {request.path}: {error.name}.")
        if valid_methods := getattr(error, "valid_methods", None):
            response.headers["Allow"] = ", ".join(sorted(valid_methods))
        return response

    @app.errorhandler(Exception)
    def show_any_error(error: Exception) -> Response:
        logger.error("a request failed", exc_info=error)
        return _make_error(500, TandemError.kind, "the server failed; its log has the details.")


def _read_body(environ: dict[str, Any]) -> bytes:
    """Read the request's body; what keeps it from coming whole is the caller's fault."""
    length, limit = request.content_length, request.max_content_length
    try:
        if length is None or (limit and length > limit):
            return request.get_data(cache=False)  # which counts, and refuses
        return environ["wsgi.input"].read(length)  # type: ignore[no-any-return]  # not copied by one that counts
    except HTTPException:
        raise
    except Exception as error:
        raise UserError(
            f"the body could not be read ({type(error).__name__}); send all of it, as it is announced."
        ) from error


def _make_error(status: int, kind: str, message: str) -> Response:
    """Make the one shape that every error has, and its line in the log.

    SageMaker passes on at most 2048 characters of it.
    """
    message = message[:1500]
    line = {
        "event": "request_failed",
        "status": status,
        "error": kind,
        "message": message,
        "path": request.path[:200],
        "inference_id": request.headers.get(INFERENCE_ID, ""),
        "content_type": request.headers.get("Content-Type", "")[:200],
        "content_length": request.content_length,
    }
    if request.path != "/ping":
        logger.log(logging.ERROR if status == 500 else logging.WARNING, "%s", json.dumps(line))
    response = jsonify(error=kind, message=message)
    response.status_code = status
    if status == 503:
        response.headers["Retry-After"] = "1"
    return response
