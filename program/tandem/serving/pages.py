"""What is not scoring and not health, as a Flask app: metrics, descriptions, and errors of routing."""

from __future__ import annotations

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from tandem.serving.errors import describe_error, log_error, render_error
from tandem.serving.monitoring import Monitor
from tandem.serving.openapi import describe_service, make_openapi
from tandem.serving.service import ScoringService
from tandem.settings import Settings

#: Batch transform's own default payload, and how many at once; it refuses a product above 100 MB.
TRANSFORM_PAYLOAD_MB = 6
TRANSFORMS = 16


def create_pages(service: ScoringService, settings: Settings, monitor: Monitor) -> Flask:
    """Build the app; it closes over `service`, so one process may have several."""
    app = Flask("tandem", static_folder=None)
    algorithm = service.algorithm

    @app.get("/execution-parameters")
    def execution_parameters() -> Response:
        """Return how batch transform should send; readers spell the values of BatchStrategy differently."""
        payload_mb = min(TRANSFORM_PAYLOAD_MB, settings.max_payload_mb or TRANSFORM_PAYLOAD_MB)
        return jsonify(MaxConcurrentTransforms=TRANSFORMS, MaxPayloadInMB=payload_mb)

    @app.get("/metrics")
    def metrics() -> Response:
        """Return counts and times for Prometheus."""
        body, content_type = monitor.render()
        return Response(body, content_type=content_type)

    @app.get("/")
    def index() -> Response:
        """Return a sentence for a person."""
        return Response(describe_service(algorithm.content_types), content_type="text/plain; charset=utf-8")

    @app.get("/openapi.json")
    def openapi() -> Response:
        """Return the description of all routes for a program."""
        return jsonify(make_openapi(algorithm.content_types, algorithm.accepts))

    # The ASGI app answers these two before Flask; as rules they give other methods a 405 with Allow.
    for path, method in (("/ping", "GET"), ("/invocations", "POST")):
        app.add_url_rule(path, path, lambda: Response(status=404), methods=[method])

    @app.errorhandler(HTTPException)
    def show_http_error(error: HTTPException) -> Response:
        kind = error.name.lower().replace(" ", "_")
        response = _make_error(error.code or 500, kind, f"{request.method} {request.path}: {error.name}.")
        if valid_methods := getattr(error, "valid_methods", None):
            response.headers["Allow"] = ", ".join(sorted(valid_methods))
        return response

    @app.errorhandler(Exception)
    def show_any_error(error: Exception) -> Response:
        return _make_error(*describe_error(error))

    return app


def _make_error(status: int, kind: str, message: str) -> Response:
    log_error(status, kind, message, {"path": request.path[:200]})
    headers, body = render_error(status, kind, message)
    return Response(body, status, [(name.decode(), value.decode()) for name, value in headers])
