"""Requests become batches: a bounded queue before the model thread that knows who is still on the way."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tandem.errors import ModelError, Overloaded, TandemError
from tandem.serving.rows import count_rows, find_likeness

logger = logging.getLogger(__name__)

#: Seconds between two looks at whether a caller that waits is still there.
LOOK_SECONDS = 0.25


class Patience:
    """How long a request may go on: `seconds`, and as long as its caller has not hung up."""

    def __init__(self, seconds: float, is_gone: Callable[[], bool]) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._is_gone = is_gone

    @property
    def left(self) -> float:
        """Seconds that are left, 0 when there are none."""
        return max(0.0, self._end - time.monotonic())

    def check(self) -> None:
        """Return if the request may go on; raise `Overloaded`."""
        if not self.left:
            raise Overloaded(f"no answer within {self._seconds:g} seconds; send fewer rows or try again.")
        if self._is_gone():
            raise Overloaded("the caller hung up.")


@contextmanager
def place(places: threading.Semaphore, patience: Patience) -> Iterator[None]:
    """Take one of the places as long as the block lasts; raise `Overloaded` where it takes too long."""
    while not places.acquire(timeout=min(patience.left, LOOK_SECONDS)):
        patience.check()
    try:
        yield
    finally:
        places.release()


@dataclass(eq=False, frozen=True)
class Work:
    """Rows of one request, and the future that gets their predictions."""

    rows: Any
    future: Future[Any] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)

    @property
    def count(self) -> int:
        """How many rows these are."""
        return count_rows(self.rows)

    @property
    def likeness(self) -> object:
        """Works of equal likeness may share a batch; others are computed on their own."""
        return find_likeness(self.rows)


class Batcher:
    """A bounded queue that is emptied in batches of at most `max_rows` rows of equal likeness.

    A batch is cut at once when no request is on its way; else when those on their way have arrived, when
    it is full, or `max_wait` seconds after its first request. So one caller alone never waits.
    """

    def __init__(self, max_rows: int, max_wait: float, max_queued_rows: int) -> None:
        self.max_rows = max_rows
        self._max_wait = max_wait
        self._max_queued_rows = max_queued_rows
        self._queue: deque[Work] = deque()
        self.queued_rows = 0
        self._arrivals: set[object] = set()
        self._closed = False
        self._changed = threading.Condition()

    @contextmanager
    def arrival(self) -> Iterator[Callable[[Sequence[Work]], None]]:
        """Announce a request, and give what queues its works: `with batcher.arrival() as submit: …`.

        `submit` queues all works or none; it raises `Overloaded` if they find no room. Leaving the block
        without it takes the request off the way.
        """
        token = object()
        with self._changed:
            self._arrivals.add(token)
        try:
            yield lambda works: self._submit(token, works)
        finally:
            self._withdraw(token)

    def next_batch(self) -> list[Work] | None:
        """Wait for a batch; its futures are running. None once the batcher is closed and empty."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return None
                self._await_arrivals()
                # While we waited, another model thread may have taken the queue, or callers given up.
                if batch := self._cut():
                    return batch

    def close(self) -> None:
        """Take no more work; what is queued is still handed out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def fail_all(self, error: Exception) -> None:
        """Close, and answer everything that is queued with `error`."""
        with self._changed:
            self._closed = True
            while self._queue:
                work = self._pop()
                if work.future.set_running_or_notify_cancel():
                    work.future.set_exception(error)
            self._changed.notify_all()

    def _withdraw(self, token: object) -> None:
        with self._changed:
            if token in self._arrivals:
                self._arrivals.remove(token)
                self._changed.notify_all()

    def _submit(self, token: object, works: Sequence[Work]) -> None:
        rows = sum(work.count for work in works)
        with self._changed:
            self._arrivals.discard(token)
            self._changed.notify_all()
            if self._closed:
                raise Overloaded("the server is shutting down; try another one.")
            # A request over the bound is let in when it has the queue for itself: it could never enter else.
            if self._queue and self.queued_rows + rows > self._max_queued_rows:
                raise Overloaded(
                    f"{self.queued_rows} rows wait for the model already; try again in a second."
                )
            self._queue.extend(works)
            self.queued_rows += rows

    def _await_arrivals(self) -> None:
        deadline = self._queue[0].arrived + self._max_wait
        expected = set(self._arrivals)
        while self._queue and self.queued_rows < self.max_rows and expected & self._arrivals:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _cut(self) -> list[Work]:
        batch: list[Work] = []
        rows = 0
        likeness: object = None
        while self._queue:
            work = self._queue[0]
            if batch and (work.likeness != likeness or rows + work.count > self.max_rows):
                break
            self._pop()
            if work.future.set_running_or_notify_cancel():  # false where the caller gave up
                batch.append(work)
                likeness = work.likeness
                rows += work.count
        return batch

    def _pop(self) -> Work:
        work = self._queue.popleft()
        self.queued_rows -= work.count
        return work


def compute_batches(batcher: Batcher, compute: Callable[[list[Work]], list[Any]]) -> None:
    """Compute batches until `batcher` is closed and empty; `compute` gives each work its own part.

    One request must not take the others down: a batch that fails is computed again work by work. What is no
    `Exception` is raised, after all that waited for that batch know.
    """
    while (batch := batcher.next_batch()) is not None:
        try:
            _compute(batch, compute)
        except Exception as error:  # noqa: BLE001
            if len(batch) == 1:
                batch[0].future.set_exception(describe_failure(error))
                continue
            logger.warning("a batch of %d requests failed; each is computed on its own", len(batch))
            for work in batch:
                try:
                    _compute([work], compute)
                except Exception as own_error:  # noqa: BLE001
                    work.future.set_exception(describe_failure(own_error))
        except BaseException:
            for work in batch:
                if not work.future.done():
                    work.future.set_exception(ModelError("the model's thread died; the log has the cause."))
            raise


def _compute(batch: list[Work], compute: Callable[[list[Work]], list[Any]]) -> None:
    for work, part in zip(batch, compute(batch), strict=True):
        work.future.set_result(part)


def describe_failure(error: Exception) -> TandemError:
    """Give what the caller sees of a failure in `predict_fn`: its sentence if it has one, else no inside."""
    if isinstance(error, TandemError):
        return error
    logger.error("predict_fn failed", exc_info=error)
    return ModelError(f"predict_fn raised {type(error).__name__}; the log has the details.")


def await_predictions(works: Sequence[Work], patience: Patience) -> list[Any]:
    """Wait for all of `works`; what waits for a caller that hung up, or too long, is not computed."""
    futures = [work.future for work in works]
    waiting: set[Future[Any]] = set(futures)
    try:
        while waiting:
            done, waiting = concurrent.futures.wait(
                waiting, min(patience.left, LOOK_SECONDS), concurrent.futures.FIRST_EXCEPTION
            )
            for future in done:
                future.result()  # raises what the model thread found
            if waiting:
                patience.check()
    finally:
        for future in waiting:
            future.cancel()
    return [future.result() for future in futures]
