"""SageMaker's three routes, as a Flask app around one scoring service."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from tandem.errors import ModelNotReady, TandemError
from tandem.serving.invocations import ERROR, INFERENCE_ID, Invocations
from tandem.serving.monitoring import Monitor
from tandem.serving.openapi import describe_service, make_openapi
from tandem.serving.service import ScoringService
from tandem.settings import Settings

logger = logging.getLogger(__name__)

#: Batch transform's own default payload, and how many at once; it refuses a product above 100 MB.
TRANSFORM_PAYLOAD_MB = 6
TRANSFORMS = 16


def create_app(
    service: ScoringService, settings: Settings, monitor: Monitor, is_complete: Callable[[], bool]
) -> Flask:
    """Build the app; it closes over `service`, so one process may hold several.

    `is_complete` tells whether all processes that serve here have loaded their models.
    """
    app = Flask("tandem", static_folder=None)
    _add_routes(app, service, settings, is_complete)
    _add_descriptions(app, service, monitor)
    _add_error_handlers(app)
    # Flask's way to put something before an app.
    app.wsgi_app = Invocations(app.wsgi_app, service, settings, monitor)  # type: ignore[method-assign]
    return app


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
        """Give the shape of errors to what went wrong; `Invocations` answers what did not."""
        raise request.environ[ERROR]

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


def _add_error_handlers(app: Flask) -> None:
    @app.errorhandler(TandemError)
    def show_tandem_error(error: TandemError) -> Response:
        return _make_error(error.status, error.kind, str(error))

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
