"""The scoring service: it owns the model, and turns a request's bytes into an answer's bytes."""

from __future__ import annotations

import fnmatch
import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from tandem import formats
from tandem.algorithm import Algorithm, Caller, Context
from tandem.errors import ModelError, ModelNotReady, TandemError, UnsupportedMediaType, UserError
from tandem.serving.batching import (
    Batcher,
    BatchItem,
    Deadline,
    acquire_slot,
    await_predictions,
    compute_batches,
    describe_failure,
)
from tandem.serving.rows import count_rows, merge_rows, split_prediction, split_rows

logger = logging.getLogger(__name__)


#: Requests handled at once beyond those that compute: decoding and encoding overlap with computing.
EXTRA_REQUESTS = 2
UNUSABLE = "the model cannot be used; the log has the cause."


@dataclass(frozen=True)
class Limits:
    """Limits of a service: rows per batch, seconds that a batch waits, rows queued, seconds to stop.

    `readers` requests are decoded at once; more would only compete for the cores.
    """

    batch_rows: int
    batch_wait: float = 0.005
    queue_rows: int = 1024
    timeout: float = 60
    readers: int = 2


@dataclass(frozen=True)
class Request:
    """One request."""

    body: bytes
    content_type: str | None = None
    accept: str | None = None
    caller: Caller = field(default_factory=Caller)
    deadline: Deadline = field(default_factory=partial(Deadline, 60))


class Answer(NamedTuple):
    """An answer's body and its media type."""

    body: bytes
    content_type: str


class ScoringService:
    """Scores requests with one model, and is the only one to touch it.

    `start` returns at once; the model thread loads the model. By default only that thread uses the model,
    in batches. A model that any thread may use has an attribute `concurrency`, the number of threads that
    may compute at once; then each request is computed by the thread that read it. A model's attribute
    `max_batch_rows` limits the rows of a batch. `on_failure` is called once, with the error that ended the
    service: loading failed, or the model thread died. `observe` is called with the seconds of each stage
    (read, queue, predict, write) and with the `rows` of each batch.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        context: Context,
        limits: Limits,
        *,
        on_ready: Callable[[], None],
        on_failure: Callable[[BaseException], None],
        observe: Callable[[str, float], None],
    ) -> None:
        self.algorithm = algorithm.require("model_fn", "predict_fn")
        self.limits = limits
        self.failure: BaseException | None = None
        self._context = context
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._observe = observe
        self._loaded = threading.Event()
        self._lock = threading.Lock()
        #: How many calls of `invoke` at once are useful; 0: any number, as they wait for the model thread.
        self.max_concurrency = 0
        self._slots = threading.Semaphore(limits.readers)
        self._batcher = Batcher(limits.batch_rows, limits.batch_wait, limits.queue_rows)
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Start to load the model in its thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what is queued and end the model thread, within `timeout` seconds."""
        self._batcher.close()
        if self.loaded:
            self._thread.join(self.limits.timeout)

    @property
    def loaded(self) -> bool:
        """Whether the model has been ready at some time."""
        return self._loaded.is_set()

    def wait(self) -> None:
        """Wait until the model has been loaded."""
        self._loaded.wait()

    def count_queued(self) -> int:
        """Return how many rows wait for the model."""
        return self._batcher.queued_rows

    def check(self) -> None:
        """Raise `ModelNotReady` while the model loads, and `ModelError` if it cannot be used."""
        if self.failure is not None:
            raise ModelError(UNUSABLE)
        if not self._loaded.is_set():
            raise ModelNotReady("the model is still loading; try again in a second.")

    def invoke(self, request: Request, default_accept: str) -> Answer:
        """Score one request.

        Raises the `TandemError` that fits: 400, 406 and 415 are the caller's fault, 500 the model's,
        503 means that trying again later helps.
        """
        self.check()
        request.deadline.check()
        algorithm, context = self.algorithm, replace(self._context, caller=request.caller)
        answer_type = formats.negotiate(request.accept, algorithm.accepts, default_accept)
        body_type = self._check_content_type(request.content_type)
        score = self._score_here if self.max_concurrency else self._score_in_batches
        prediction = score(
            partial(self._read, request.body, body_type, context),
            request.deadline,
        )
        started = time.monotonic()
        encoded = algorithm.output_fn(prediction, answer_type, context)
        self._observe("write", time.monotonic() - started)
        if isinstance(encoded, tuple):  # SageMaker's own toolkits allow (body, content type)
            encoded, answer_type = encoded
        if isinstance(encoded, str):
            encoded = encoded.encode()
        # Any bytes-like object; bytes() itself would turn a number into as many zeros.
        return Answer(encoded if isinstance(encoded, bytes) else bytes(memoryview(encoded)), answer_type)

    def _score_here(self, read: Callable[[], list[Any]], deadline: Deadline) -> Any:
        """Compute in this thread; a request of many rows ends between its parts after its deadline."""
        predictions: list[Any] = []
        for part in read():
            deadline.check()
            try:
                predictions += self._compute([part])
            except Exception as error:
                raise describe_failure(error) from error
            except BaseException as error:
                self._fail(error)
                raise ModelError(UNUSABLE) from error
        return merge_rows(predictions)

    def _score_in_batches(self, read: Callable[[], list[Any]], deadline: Deadline) -> Any:
        """Compute in the model thread, in batches with other requests."""
        with self._batcher.arrival() as submit:
            with acquire_slot(self._slots, deadline):
                items = [BatchItem(part) for part in read()]
            submit(items)
        return merge_rows(await_predictions(items, deadline))

    def _read(self, body: bytes, content_type: str, context: Context) -> list[Any]:
        """Return the request's rows, in parts of at most the rows of a batch."""
        started = time.monotonic()
        try:
            rows = self.algorithm.input_fn(body, content_type, context)
        except ValueError as error:  # bytes that do not parse are the caller's fault
            logger.info("input_fn refused a body of %s", content_type, exc_info=True)
            raise UserError(f"the body could not be read as {content_type}: {error}") from error
        self._observe("read", time.monotonic() - started)
        parts = split_rows(rows, self._batcher.max_rows)
        if not parts:
            raise UserError("the request holds no rows; expected at least one.")
        return parts

    def _check_content_type(self, header: str | None) -> str:
        content_type = formats.canonical_media_type(header or "application/octet-stream")
        media_type = formats.name_media_type(content_type)
        known = map(formats.canonical_media_type, self.algorithm.content_types)
        if not any(fnmatch.fnmatchcase(media_type, pattern) for pattern in known):
            raise UnsupportedMediaType(
                f"the Content-Type {media_type!r} cannot be read; "
                f"expected one of {', '.join(self.algorithm.content_types)}."
            )
        return content_type

    def _compute(self, parts: Sequence[Any]) -> list[Any]:
        """Compute rows of equal batch keys together; return the predictions of each part."""
        predict_fn = self.algorithm.predict_fn
        assert predict_fn is not None  # noqa: S101  # required when the service was made
        self._observe("rows", sum(map(count_rows, parts)))
        started = time.monotonic()
        prediction = predict_fn(merge_rows(parts), self._context.model, self._context)
        self._observe("predict", time.monotonic() - started)
        return split_prediction(prediction, parts)

    # What follows runs in the model thread.

    def _run(self) -> None:
        try:
            self._load()
            if not self.max_concurrency:
                compute_batches(self._batcher, self._compute_items)
        except BaseException as error:  # noqa: BLE001  # the last frame of the thread
            self._fail(error)

    def _load(self) -> None:
        model_fn = self.algorithm.model_fn
        assert model_fn is not None  # noqa: S101  # required when the service was made
        model = model_fn(self._context.model_dir, self._context)
        self._context = replace(self._context, model=model)
        self._batcher.max_rows = min(self.limits.batch_rows, getattr(model, "max_batch_rows", sys.maxsize))
        if concurrency := getattr(model, "concurrency", None):
            self.max_concurrency = concurrency + EXTRA_REQUESTS
        self._loaded.set()
        self._on_ready()
        logger.info("the model is ready")

    def _compute_items(self, batch: list[BatchItem]) -> list[Any]:
        now = time.monotonic()
        for item in batch:
            self._observe("queue", now - item.arrived)
        return self._compute([item.rows for item in batch])

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self.failure is not None:
                return
            self.failure = error
        if isinstance(error, (TandemError, OSError)):
            logger.error("%s", error)
        else:
            logger.error("the model cannot be used", exc_info=error)
        self._batcher.fail_all(ModelError(UNUSABLE))
        self._on_failure(error)
