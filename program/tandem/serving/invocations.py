"""POST /invocations, as plain WSGI before Flask's: what is done here is done for every request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.wsgi import get_content_length, get_input_stream

from tandem.algorithm import Caller
from tandem.errors import ModelError, PayloadTooLarge, UserError
from tandem.serving.monitoring import Monitor
from tandem.serving.service import Request, ScoringService
from tandem.settings import Settings

#: SageMaker's header that names a request, and the one that algorithms read and answer with.
INFERENCE_ID = "X-Amzn-SageMaker-Inference-Id"
CUSTOM_ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
#: What SageMaker passes on of the latter.
MOST_ATTRIBUTES = 1024
#: Where `environ` has what went wrong, for the app that answers it.
ERROR = "tandem.error"

Environ = dict[str, Any]
WSGIApp = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


class Invocations:
    """Scores the bodies that are posted to /invocations, and counts what comes there.

    `others` is the WSGI app that answers all other requests, and gives an error that it finds in `environ`
    its shape. Flask's objects around a request would be a third of the Python that it runs
    (docs/performance.md), so they are made for those only.
    """

    def __init__(
        self, others: WSGIApp, service: ScoringService, settings: Settings, monitor: Monitor
    ) -> None:
        self._others = others
        self._service = service
        self._settings = settings
        self._monitor = monitor

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        if environ["PATH_INFO"] != "/invocations":
            return self._others(environ, start_response)
        begun = self._monitor.begin()
        try:
            if environ["REQUEST_METHOD"] == "POST":
                headers, body = self._score(environ)
                start_response("200 OK", headers)
                self._monitor.finish(200, begun)
                return [body]
        except Exception as error:  # noqa: BLE001  # it is raised again where errors get their shape
            environ[ERROR] = error
        except BaseException as error:  # noqa: BLE001  # an algorithm's SystemExit, say: this request's end, and no more
            environ[ERROR] = RuntimeError(f"the algorithm raised {error!r}")

        def start_and_finish(status: str, *arguments: Any) -> Any:
            self._monitor.finish(int(status[:3]), begun)
            return start_response(status, *arguments)

        return self._others(environ, start_and_finish)

    def _score(self, environ: Environ) -> tuple[list[tuple[str, str]], bytes]:
        client = environ.get("gunicorn.socket")  # tandem.serving.connection's
        given = environ.get("HTTP_X_AMZN_SAGEMAKER_CUSTOM_ATTRIBUTES", "")
        caller = Caller(given, environ.get("HTTP_X_AMZN_SAGEMAKER_INFERENCE_ID", ""))
        answer = self._service.invoke(
            Request(
                body=self._read_body(environ),
                content_type=environ.get("CONTENT_TYPE"),
                accept=environ.get("HTTP_ACCEPT"),
                caller=caller,
                is_gone=client.has_hung_up if client else bool,
            ),
            self._settings.default_accept,
        )
        headers = [
            ("Content-Type", _check_header("media type", answer.content_type)),
            ("Content-Length", str(len(answer.body))),
        ]
        if attributes := caller.custom_attributes:
            if attributes != given:
                _check_header("custom attributes", attributes)
            headers.append((CUSTOM_ATTRIBUTES, attributes))
        return headers, answer.body

    def _read_body(self, environ: Environ) -> bytes:
        """Read the request's body; what keeps it from coming whole is the caller's fault."""
        most = self._settings.max_payload_mb * 1024 * 1024 or None
        length = get_content_length(environ)
        try:
            if length is None or (most and length > most):
                return get_input_stream(environ, max_content_length=most).read()  # which counts, and refuses
            body: bytes = environ["wsgi.input"].read(length)
        except RequestEntityTooLarge as error:
            raise PayloadTooLarge(
                f"the body is over {self._settings.max_payload_mb} MB; send less, or raise "
                "SAGEMAKER_MAX_PAYLOAD_IN_MB."
            ) from error
        except Exception as error:
            raise UserError(
                f"the body could not be read ({type(error).__name__}); send all of it, as it is announced."
            ) from error
        if len(body) < length:  # which gunicorn does not say
            raise UserError(f"the body ends after {len(body)} of {length} bytes; send all of it.")
        return body


def _check_header(name: str, value: Any) -> str:
    """Give what an algorithm sets back if a header can hold it; raise `ModelError`."""
    if isinstance(value, str) and len(value) <= MOST_ATTRIBUTES and value.isascii() and value.isprintable():
        return value
    raise ModelError(
        f"the algorithm set {name} that no header can hold; expected up to {MOST_ATTRIBUTES} printable "
        "characters of ASCII."
    )
