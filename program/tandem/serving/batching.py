"""Dynamic batching: a bounded queue before the model thread that knows which requests are on their way."""

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
from tandem.serving.rows import count_rows, get_batch_key

logger = logging.getLogger(__name__)

#: Seconds between two checks of whether a waiting request may go on.
CHECK_SECONDS = 0.25


class Deadline:
    """The end of the time that a request may take: `seconds` from now, or when its caller hangs up."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._is_cancelled = False

    @property
    def left(self) -> float:
        """Seconds that remain; 0 after the deadline."""
        return max(0.0, self._end - time.monotonic())

    def cancel(self) -> None:
        """End the request, as its caller has hung up."""
        self._is_cancelled = True

    def check(self) -> None:
        """Raise `Overloaded` if the request may not go on."""
        if self._is_cancelled or not self.left:
            raise self.make_error()

    def make_error(self) -> Overloaded:
        """Return what a request that may not go on is answered with."""
        if self._is_cancelled:
            return Overloaded("the caller hung up.")
        return Overloaded(f"no answer within {self._seconds:g} seconds; send fewer rows or try again.")


@contextmanager
def acquire_slot(slots: threading.Semaphore, deadline: Deadline) -> Iterator[None]:
    """Take a slot for the duration of the block; raise `Overloaded` if none is free before the deadline."""
    while not slots.acquire(timeout=min(deadline.left, CHECK_SECONDS)):
        deadline.check()
    try:
        yield
    finally:
        slots.release()


@dataclass(eq=False, frozen=True)
class BatchItem:
    """Rows of one request, and the future for their predictions."""

    rows: Any
    future: Future[Any] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)

    @property
    def count(self) -> int:
        """The number of rows."""
        return count_rows(self.rows)

    @property
    def batch_key(self) -> object:
        """Items of equal keys may share a batch."""
        return get_batch_key(self.rows)


class Batcher:
    """A bounded queue that is emptied in batches of at most `max_rows` rows of equal batch keys.

    A batch is taken at once when no request is on its way; else when those on their way have arrived, when
    it is full, or `max_wait` seconds after its first item arrived. A single caller never waits.
    """

    def __init__(self, max_rows: int, max_wait: float, max_queued_rows: int) -> None:
        self.max_rows = max_rows
        self._max_wait = max_wait
        self._max_queued_rows = max_queued_rows
        self._queue: deque[BatchItem] = deque()
        self.queued_rows = 0
        self._arrivals: set[object] = set()
        self._closed = False
        self._changed = threading.Condition()

    @contextmanager
    def arrival(self) -> Iterator[Callable[[Sequence[BatchItem]], None]]:
        """Announce a request; yield a function that queues its items: `with batcher.arrival() as submit: …`.

        `submit` queues all items or none; it raises `Overloaded` if the queue is full. Leaving the block
        without calling it withdraws the request.
        """
        token = object()
        with self._changed:
            self._arrivals.add(token)
        try:
            yield lambda items: self._submit(token, items)
        finally:
            self._withdraw(token)

    def next_batch(self) -> list[BatchItem] | None:
        """Wait for a batch, and mark its futures as running; None when the batcher is closed and empty."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return None
                self._await_arrivals()
                # Another thread may have emptied the queue meanwhile, or callers given up.
                if batch := self._cut():
                    return batch

    def close(self) -> None:
        """Accept no more items; those that are queued are still handed out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def fail_all(self, error: Exception) -> None:
        """Close, and fail all queued items with `error`."""
        with self._changed:
            self._closed = True
            while self._queue:
                item = self._pop()
                if item.future.set_running_or_notify_cancel():
                    item.future.set_exception(error)
            self._changed.notify_all()

    def _withdraw(self, token: object) -> None:
        with self._changed:
            if token in self._arrivals:
                self._arrivals.remove(token)
                self._changed.notify_all()

    def _submit(self, token: object, items: Sequence[BatchItem]) -> None:
        rows = sum(item.count for item in items)
        with self._changed:
            self._arrivals.discard(token)
            self._changed.notify_all()
            if self._closed:
                raise Overloaded("the server is shutting down; try another one.")
            # A request that is larger than the queue is accepted when the queue is empty.
            if self._queue and self.queued_rows + rows > self._max_queued_rows:
                raise Overloaded(
                    f"{self.queued_rows} rows wait for the model already; try again in a second."
                )
            self._queue.extend(items)
            self.queued_rows += rows

    def _await_arrivals(self) -> None:
        deadline = self._queue[0].arrived + self._max_wait
        expected = set(self._arrivals)
        while self._queue and self.queued_rows < self.max_rows and expected & self._arrivals:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _cut(self) -> list[BatchItem]:
        batch: list[BatchItem] = []
        rows = 0
        batch_key: object = None
        while self._queue:
            item = self._queue[0]
            if batch and (item.batch_key != batch_key or rows + item.count > self.max_rows):
                break
            self._pop()
            if item.future.set_running_or_notify_cancel():  # false if the caller gave up
                batch.append(item)
                batch_key = item.batch_key
                rows += item.count
        return batch

    def _pop(self) -> BatchItem:
        item = self._queue.popleft()
        self.queued_rows -= item.count
        return item


def compute_batches(batcher: Batcher, compute: Callable[[list[BatchItem]], list[Any]]) -> None:
    """Compute batches until `batcher` is closed and empty; `compute` returns one prediction per item.

    A batch that fails is computed again item by item, so that only the item at fault fails. Other exceptions
    than `Exception` are raised, after they were passed to all items of the batch.
    """
    while (batch := batcher.next_batch()) is not None:
        try:
            _compute(batch, compute)
        except Exception as error:  # noqa: BLE001
            if len(batch) == 1:
                batch[0].future.set_exception(describe_failure(error))
                continue
            logger.warning("a batch of %d requests failed; each is computed on its own", len(batch))
            for item in batch:
                try:
                    _compute([item], compute)
                except Exception as own_error:  # noqa: BLE001
                    item.future.set_exception(describe_failure(own_error))
        except BaseException:
            for item in batch:
                if not item.future.done():
                    item.future.set_exception(ModelError("the model's thread died; the log has the cause."))
            raise


def _compute(batch: list[BatchItem], compute: Callable[[list[BatchItem]], list[Any]]) -> None:
    for item, part in zip(batch, compute(batch), strict=True):
        item.future.set_result(part)


def describe_failure(error: Exception) -> TandemError:
    """Return what the caller sees of an error in `predict_fn`: only a `TandemError` shows its own words."""
    if isinstance(error, TandemError):
        return error
    logger.error("predict_fn failed", exc_info=error)
    return ModelError(f"predict_fn raised {type(error).__name__}; the log has the details.")


def await_predictions(items: Sequence[BatchItem], deadline: Deadline) -> list[Any]:
    """Return the predictions of all items; cancel those that are still queued after the deadline."""
    futures = [item.future for item in items]
    waiting: set[Future[Any]] = set(futures)
    try:
        while waiting:
            done, waiting = concurrent.futures.wait(
                waiting, min(deadline.left, CHECK_SECONDS), concurrent.futures.FIRST_EXCEPTION
            )
            for future in done:
                future.result()  # raises the model thread's error
            if waiting:
                deadline.check()
    finally:
        for future in waiting:
            future.cancel()
    return [future.result() for future in futures]
