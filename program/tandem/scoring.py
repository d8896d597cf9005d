"""The scoring service: owns the model, and is the way from a request's bytes to an answer's bytes."""

from __future__ import annotations

import concurrent.futures
import fnmatch
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from tandem import formats
from tandem.algorithm import Algorithm, Caller, Context
from tandem.batching import Batcher, Work, merge_rows, split_prediction, split_rows
from tandem.errors import ModelError, ModelNotReady, Overloaded, TandemError, UnsupportedMediaType, UserError

logger = logging.getLogger(__name__)


#: Seconds between two looks at whether a caller that waits is still there.
LOOK_SECONDS = 0.25


@dataclass(frozen=True)
class Limits:
    """What bounds a service: rows a batch, seconds a batch waits, rows queued, seconds a request may wait.

    `readers` requests are decoded at once; more would only take turns on the cores.
    """

    batch_rows: int
    batch_wait: float = 0.005
    queue_rows: int = 1024
    timeout: float = 60
    readers: int = 2


@dataclass(frozen=True)
class Request:
    """One request as it came; `is_gone` tells whether its caller has hung up."""

    body: bytes
    content_type: str | None = None
    accept: str | None = None
    caller: Caller = field(default_factory=Caller)
    is_gone: Callable[[], bool] = bool


class Answer(NamedTuple):
    """An answer's body and its media type."""

    body: bytes
    content_type: str


class ScoringService:
    """Scores requests with one model that nobody but its model threads touches.

    `start` returns at once; a model thread loads the model. A framework's model is used by the one
    thread that loaded it; an engine that computes in parallel says how many threads it wants, and how
    many rows at once, by the model's attributes `concurrency` and `max_batch_rows`. `on_failure` is
    called, once, with the error that made the service unable to score: loading failed, or a model thread
    died. `observe` is told the seconds of each stage (read, queue, predict, write) and the `rows` of each
    batch.
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
        self._readers = threading.Semaphore(limits.readers)
        self._batcher = Batcher(limits.batch_rows, limits.batch_wait, limits.queue_rows)
        self._threads = [self._make_thread(self._load_and_score)]

    def start(self) -> None:
        """Begin to load the model in its thread."""
        self._threads[0].start()

    def stop(self) -> None:
        """Finish what is queued and end the model threads; at most `timeout` seconds."""
        self._batcher.close()
        for thread in self._threads:
            thread.join(self.limits.timeout)

    @property
    def loaded(self) -> bool:
        """Whether the model has been ready at some time."""
        return self._loaded.is_set()

    def count_queued(self) -> int:
        """Count the rows that wait for the model."""
        return self._batcher.queued_rows

    def check(self) -> None:
        """Return if requests can be scored; raise `ModelNotReady` while loading, else `ModelError`."""
        if self.failure is not None:
            raise ModelError("the model cannot be used; the log has the cause.")
        if not self._loaded.is_set():
            raise ModelNotReady("the model is still loading; try again in a second.")

    def invoke(self, request: Request, default_accept: str) -> Answer:
        """Score one request.

        Raises the `TandemError` that fits: 400, 406 and 415 are the caller's fault, 500 the model's,
        503 means that trying again later helps.
        """
        self.check()
        algorithm, context = self.algorithm, replace(self._context, caller=request.caller)
        answer_type = formats.negotiate(request.accept, algorithm.accepts, default_accept)
        body_type = self._check_content_type(request.content_type)
        with self._batcher.arrival() as submit:
            with self._timing("read"), self._readers:
                rows = self._read(request.body, body_type, context)
            works = [Work(part) for part in split_rows(rows, self._batcher.max_rows)]
            if not works:
                raise UserError("the request holds no rows; expected at least one.")
            submit(works)
        prediction = merge_rows(self._await([work.future for work in works], request.is_gone))
        with self._timing("write"):
            encoded = algorithm.output_fn(prediction, answer_type, context)
        if isinstance(encoded, tuple):  # SageMaker's own toolkits allow (body, content type)
            encoded, answer_type = encoded
        return Answer(encoded.encode() if isinstance(encoded, str) else bytes(encoded), answer_type)

    @contextmanager
    def _timing(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._observe(stage, time.monotonic() - started)

    def _read(self, body: bytes, content_type: str, context: Context) -> Any:
        try:
            return self.algorithm.input_fn(body, content_type, context)
        except ValueError as error:  # bytes that do not parse are the caller's fault
            logger.info("input_fn refused a body of %s", content_type, exc_info=True)
            raise UserError(f"the body could not be read as {content_type}: {error}") from error

    def _check_content_type(self, header: str | None) -> str:
        content_type = formats.canonical_media_type(header or "application/octet-stream")
        media_type = content_type.partition(";")[0]
        known = map(formats.canonical_media_type, self.algorithm.content_types)
        if not any(fnmatch.fnmatchcase(media_type, pattern) for pattern in known):
            raise UnsupportedMediaType(
                f"the Content-Type {media_type!r} cannot be read; "
                f"expected one of {', '.join(self.algorithm.content_types)}."
            )
        return content_type

    def _await(self, futures: Sequence[Future[Any]], is_gone: Callable[[], bool]) -> list[Any]:
        """Wait for all of `futures`; what waits for a caller that hung up, or too long, is not computed."""
        deadline = time.monotonic() + self.limits.timeout
        waiting: set[Future[Any]] = set(futures)
        try:
            while waiting:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Overloaded(
                        f"no answer within {self.limits.timeout:g} seconds; send fewer rows or try again."
                    )
                done, waiting = concurrent.futures.wait(
                    waiting, min(left, LOOK_SECONDS), concurrent.futures.FIRST_EXCEPTION
                )
                for future in done:
                    future.result()  # raises what the model thread found
                if waiting and is_gone():
                    raise Overloaded("the caller hung up.")
        finally:
            for future in waiting:
                future.cancel()
        return [future.result() for future in futures]

    # What follows runs in the model threads.

    def _make_thread(self, target: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                target()
            except BaseException as error:  # noqa: BLE001  # the rim of a model thread
                self._fail(error)

        return threading.Thread(target=run, name="model", daemon=True)

    def _load_and_score(self) -> None:
        model_fn = self.algorithm.model_fn
        assert model_fn is not None  # noqa: S101  # required when the service was made
        model = model_fn(self._context.model_dir, self._context)
        self._context = replace(self._context, model=model)
        self._batcher.max_rows = min(self.limits.batch_rows, getattr(model, "max_batch_rows", sys.maxsize))
        for _ in range(1, getattr(model, "concurrency", 1)):
            thread = self._make_thread(self._score)
            self._threads.append(thread)
            thread.start()
        self._loaded.set()
        self._on_ready()
        logger.info("the model is ready")
        self._score()

    def _score(self) -> None:
        while (batch := self._batcher.next_batch()) is not None:
            try:
                self._compute(batch)
            except Exception as error:  # noqa: BLE001  # one request must not take the others down
                if len(batch) == 1:
                    batch[0].future.set_exception(_describe_failure(error))
                    continue
                logger.warning("a batch of %d requests failed; each is computed on its own", len(batch))
                for work in batch:
                    try:
                        self._compute([work])
                    except Exception as own_error:  # noqa: BLE001
                        work.future.set_exception(_describe_failure(own_error))
            except BaseException:
                for work in batch:
                    if not work.future.done():
                        work.future.set_exception(
                            ModelError("the model's thread died; the log has the cause.")
                        )
                raise

    def _compute(self, batch: list[Work]) -> None:
        predict_fn = self.algorithm.predict_fn
        assert predict_fn is not None  # noqa: S101  # required when the service was made
        started = time.monotonic()
        for work in batch:
            self._observe("queue", started - work.arrived)
        self._observe("rows", sum(work.count for work in batch))
        rows = merge_rows([work.rows for work in batch])
        prediction = predict_fn(rows, self._context.model, self._context)
        self._observe("predict", time.monotonic() - started)
        for work, part in zip(batch, split_prediction(prediction, batch), strict=True):
            work.future.set_result(part)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self.failure is not None:
                return
            self.failure = error
        if isinstance(error, (TandemError, OSError)):
            logger.error("%s", error)
        else:
            logger.error("the model cannot be used", exc_info=error)
        self._batcher.fail_all(ModelError("the model cannot be used; the log has the cause."))
        self._on_failure(error)


def _describe_failure(error: Exception) -> TandemError:
    """Give what the caller sees of a failure in `predict_fn`: its sentence if it has one, else no inside."""
    if isinstance(error, TandemError):
        return error
    logger.error("predict_fn failed", exc_info=error)
    return ModelError(f"predict_fn raised {type(error).__name__}; the log has the details.")
