"""Threads that start as they are needed, and a loop that misses nothing of what they leave."""

import select
import threading

import pytest

from processes import wait_for
from tandem.serving.pool import Callbacks, Pool


def test_threads_start_as_they_are_needed_and_no_more_than_allowed():
    gate, handled = threading.Event(), []

    def handle(thing):
        gate.wait(30)
        handled.append((thing, threading.current_thread().name))

    pool = Pool(2, "one of two", handle)
    before = threading.active_count()
    for number in range(5):
        pool.submit(number)
        assert threading.active_count() - before == min(number + 1, 2)
        assert pool.waiting == max(0, number - 1)
    gate.set()
    wait_for(lambda: len(handled) == 5, "all to be handled")
    assert sorted(thing for thing, _ in handled) == list(range(5))
    assert {name for _, name in handled} == {"one of two"}
    for _ in range(5):
        pool.done()
    assert (pool.busy, pool.waiting) == (0, 0)
    pool.shutdown()
    wait_for(lambda: threading.active_count() == before, "the threads to end")


def test_where_no_thread_can_start_those_that_are_there_do_the_work(monkeypatch):
    handled, before = [], threading.active_count()
    pool, empty = Pool(8, "the only one", handled.append), Pool(8, "none", handled.append)
    pool.submit(0)
    monkeypatch.setattr(threading.Thread, "start", lambda _self: (_ for _ in ()).throw(RuntimeError("none")))
    pool.submit(1)
    wait_for(lambda: handled == [0, 1], "both to be handled")
    with pytest.raises(RuntimeError):
        empty.submit(2)
    assert empty.busy == 0
    pool.shutdown()
    wait_for(lambda: threading.active_count() == before, "the thread to end")


def test_a_free_thread_is_used_again():
    handled = []
    pool = Pool(8, "again", handled.append)
    before = threading.active_count()
    for number in range(20):
        pool.submit(number)
        wait_for(lambda: len(handled) == number + 1, "it to be handled")  # noqa: B023
        pool.done()
    assert threading.active_count() - before == 1
    pool.shutdown()
    wait_for(lambda: threading.active_count() == before, "the thread to end")


def test_the_loop_is_told_of_everything_that_many_threads_leave():
    """A wake-up that was saved too much would leave something behind for ever."""
    callbacks = Callbacks()
    callbacks.init()
    seen = []

    def leave(name):
        for number in range(2000):
            callbacks.defer(seen.append, (name, number))

    threads = [threading.Thread(target=leave, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    while len(seen) < 8000:
        assert select.select([callbacks.fileno()], [], [], 30)[0], f"{len(seen)} of 8000, and nobody wakes us"
        callbacks.run_callbacks(None)
    assert len(set(seen)) == 8000
    for thread in threads:
        thread.join(30)
    callbacks.close()
    callbacks.defer(seen.append, "after the end")
