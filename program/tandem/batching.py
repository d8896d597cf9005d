"""Requests become batches: a bounded queue before the model that knows who is still on the way."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tandem.errors import ModelError, Overloaded


@dataclass(eq=False, frozen=True)
class Work:
    """Rows of one request, and the future that gets their predictions."""

    rows: Any
    future: Future[Any] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)

    @property
    def count(self) -> int:
        """How many rows these are; 1 for data that is no array and no list, which is never cut."""
        return len(self.rows) if _has_rows(self.rows) else 1

    @property
    def likeness(self) -> object:
        """Works of equal likeness may share a batch; others are computed on their own."""
        if isinstance(self.rows, np.ndarray):
            return self.rows.dtype, self.rows.shape[1:]
        return list if isinstance(self.rows, list) else object()


def split_rows(rows: Any, limit: int) -> list[Any]:
    """Cut a request's rows into parts of at most `limit`; no rows give no parts."""
    if not _has_rows(rows):
        return [rows]
    return [rows[start : start + limit] for start in range(0, len(rows), limit)]


def merge_rows(parts: Sequence[Any]) -> Any:
    """Put parts of equal likeness together again: arrays along the first axis, lists end to end."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return [row for part in parts for row in part]


def split_prediction(prediction: Any, works: Sequence[Work]) -> list[Any]:
    """Give each work its own rows of a batch's prediction.

    Raises `ModelError` where the prediction does not hold one result a row, in an array or a list.
    """
    if not _has_rows(works[0].rows):
        return [prediction]
    rows = sum(work.count for work in works)
    if isinstance(prediction, tuple):
        prediction = list(prediction)
    if not _has_rows(prediction):
        got = f"a {type(prediction).__name__}"
    elif len(prediction) != rows:
        got = f"{len(prediction)} results"
    else:
        parts, start = [], 0
        for work in works:
            parts.append(prediction[start : start + work.count])
            start += work.count
        return parts
    raise ModelError(
        f"predict_fn gave {got} for {rows} rows; it must give one a row, in order, in an array or a list."
    )


def _has_rows(data: Any) -> bool:
    return isinstance(data, list) or (isinstance(data, np.ndarray) and data.ndim > 0)


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
