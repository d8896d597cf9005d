import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tandem.errors import ModelError, Overloaded
from tandem.serving.batching import Batcher, BatchItem
from tandem.serving.rows import merge_rows, split_prediction, split_rows


def submit(batcher, *rows):
    items = [BatchItem(part) for part in rows]
    with batcher.arrival() as submit_works:
        submit_works(items)
    return items


def test_what_waits_together_is_cut_together():
    batcher = Batcher(max_rows=10, max_wait=60, max_queued_rows=100)
    items = submit(batcher, [1, 2]) + submit(batcher, [3])
    assert batcher.next_batch() == items


def test_a_lone_request_is_not_kept_waiting():
    """With a wait of a minute the test would not end."""
    batcher = Batcher(max_rows=10, max_wait=60, max_queued_rows=100)
    items = submit(batcher, [1])
    assert batcher.next_batch() == items


def test_a_batch_waits_for_those_on_their_way():
    batcher = Batcher(max_rows=10, max_wait=60, max_queued_rows=100)
    got = []
    with batcher.arrival() as submit_late:
        first = submit(batcher, [1])
        cutter = threading.Thread(target=lambda: got.append(batcher.next_batch()))
        cutter.start()
        second = [BatchItem([2])]
        submit_late(second)
        cutter.join(30)
    assert got == [first + second]


def test_a_request_that_fails_to_decode_is_no_longer_awaited():
    batcher = Batcher(max_rows=10, max_wait=60, max_queued_rows=100)
    got = []
    cutter = threading.Thread(target=lambda: got.append(batcher.next_batch()))
    with pytest.raises(ValueError, match="unreadable"), batcher.arrival():
        items = submit(batcher, [1])
        cutter.start()
        raise ValueError("unreadable")
    cutter.join(30)
    assert got == [items]


def test_the_wait_has_a_bound():
    batcher = Batcher(max_rows=10, max_wait=0.01, max_queued_rows=100)
    with batcher.arrival():
        items = submit(batcher, [1])
        assert batcher.next_batch() == items


def test_a_full_batch_waits_for_nobody():
    batcher = Batcher(max_rows=2, max_wait=60, max_queued_rows=100)
    with batcher.arrival():
        items = submit(batcher, [1, 2])
        assert batcher.next_batch() == items


def test_rows_that_differ_are_computed_apart():
    batcher = Batcher(max_rows=10, max_wait=0, max_queued_rows=100)
    small, large, listed = np.zeros((1, 2)), np.zeros((1, 3)), [0]
    items = submit(batcher, small, small, large, listed, small)
    assert [batcher.next_batch() for _ in range(4)] == [items[:2], [items[2]], [items[3]], [items[4]]]


def test_a_full_queue_refuses_and_says_when_to_come_back():
    batcher = Batcher(max_rows=10, max_wait=0, max_queued_rows=3)
    submit(batcher, [1, 2])
    with pytest.raises(Overloaded, match="2 rows wait"):
        submit(batcher, [3, 4])
    submit(batcher, [3])


def test_a_request_over_the_bound_gets_an_empty_queue():
    batcher = Batcher(max_rows=2, max_wait=0, max_queued_rows=3)
    items = submit(batcher, [1, 2], [3, 4])
    assert [batcher.next_batch(), batcher.next_batch()] == [[items[0]], [items[1]]]


def test_a_caller_that_gave_up_is_not_computed():
    batcher = Batcher(max_rows=10, max_wait=0, max_queued_rows=100)
    gone, still_there = submit(batcher, [1], [2])
    assert gone.future.cancel()
    assert batcher.next_batch() == [still_there]


def test_closing_hands_out_what_is_queued_and_then_ends():
    batcher = Batcher(max_rows=10, max_wait=0, max_queued_rows=100)
    items = submit(batcher, [1])
    batcher.close()
    assert batcher.next_batch() == items
    assert batcher.next_batch() is None
    with pytest.raises(Overloaded, match="shutting down"):
        submit(batcher, [2])


def test_failing_answers_everyone_who_waits():
    batcher = Batcher(max_rows=10, max_wait=0, max_queued_rows=100)
    (item,) = submit(batcher, [1])
    batcher.fail_all(ModelError("the end"))
    assert isinstance(item.future.exception(1), ModelError)
    assert batcher.next_batch() is None


def test_data_without_rows_shares_no_batch():
    first, second = BatchItem({"a": 1}), BatchItem({"a": 1})
    assert first.count == 1
    assert first.batch_key != second.batch_key


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    requests=st.lists(st.integers(1, 20), min_size=1, max_size=30),
    limit=st.integers(1, 8),
    as_array=st.booleans(),
)
def test_every_request_gets_its_own_rows_back_whatever_the_sizes(requests, limit, as_array):
    """Batches never exceed the limit, and echoing them returns each request's rows, in order."""
    batcher = Batcher(max_rows=limit, max_wait=0, max_queued_rows=10**6)
    sent, number = [], 0
    for size in requests:
        rows = list(range(number, number + size))
        number += size
        data = np.array(rows) if as_array else rows
        sent.append((rows, submit(batcher, *split_rows(data, limit))))
    batcher.close()
    while (batch := batcher.next_batch()) is not None:
        merged = merge_rows([item.rows for item in batch])
        assert len(merged) <= limit
        for item, part in zip(batch, split_prediction(merged, [item.rows for item in batch]), strict=True):
            item.future.set_result(part)
    for rows, items in sent:
        assert list(merge_rows([item.future.result(0) for item in items])) == rows
