"""Request bodies: their own limit, and the limit that they have in common."""

import asyncio

import pytest

from tandem.errors import Overloaded, PayloadTooLarge
from tandem.serving.bodies import Bodies, ClientDisconnected


def message(body, *, more=False):
    return {"type": "http.request", "body": body, "more_body": more}


def feed(*messages):
    """Return a `receive` that has these messages and then waits for ever."""
    left = list(messages)

    async def receive():
        return left.pop(0) if left else await asyncio.get_running_loop().create_future()

    return receive


@pytest.mark.parametrize("pieces", [[b""], [b"abc"], [b"a", b"b", b"c"], [b"abc", b""]])
def test_a_body_is_returned_whole(pieces):
    messages = [message(piece, more=True) for piece in pieces[:-1]] + [message(pieces[-1])]
    assert asyncio.run(Bodies(10, 10).read(None, feed(*messages))) == b"".join(pieces)


@pytest.mark.parametrize(
    ("announced", "messages"),
    [(b"4", []), (None, [message(b"1234")]), (None, [message(b"12", more=True), message(b"34")])],
)
def test_a_body_over_its_limit_is_refused_as_soon_as_that_is_known(announced, messages):
    with pytest.raises(PayloadTooLarge):
        asyncio.run(Bodies(3, 10).read(announced, feed(*messages)))


@pytest.mark.parametrize("messages", [[], [message(b"1", more=True)]])
def test_a_client_that_disconnects_ends_the_request(messages):
    with pytest.raises(ClientDisconnected):
        asyncio.run(Bodies(3, 10).read(None, feed(*messages, {"type": "http.disconnect"})))


def test_the_body_that_has_been_arriving_longest_makes_room():
    async def run():
        bodies = Bodies(0, 10)
        first = asyncio.ensure_future(bodies.read(None, feed(message(b"1234", more=True))))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(bodies.read(None, feed(message(b"5678", more=True))))
        await asyncio.sleep(0)
        assert await bodies.read(None, feed(message(b"abcdef"))) == b"abcdef"
        with pytest.raises(Overloaded):
            await first
        assert not second.done()
        with pytest.raises(Overloaded):  # nothing else is arriving, and a whole body is not dropped
            await bodies.read(None, feed(message(b"7890123")))
        with pytest.raises(Overloaded):
            await second
        bodies.release(6)
        assert await bodies.read(None, feed(message(b"0123456789"))) == b"0123456789"

    asyncio.run(run())


def test_a_dropped_body_leaves_its_task_usable():
    """The request is answered with 503 by the task that was interrupted."""

    async def serve(bodies):
        try:
            await bodies.read(None, feed(message(b"1234", more=True)))
        except Overloaded:
            await asyncio.sleep(0.01)
            return "answered"

    async def run():
        bodies = Bodies(0, 5)
        first = asyncio.ensure_future(serve(bodies))
        await asyncio.sleep(0)
        await bodies.read(None, feed(message(b"12345")))
        assert await first == "answered"

    asyncio.run(run())


def test_a_body_that_is_alone_may_be_larger_than_all_together():
    chunks = [message(b"12345", more=True), message(b"67890")]
    assert asyncio.run(Bodies(0, 3).read(None, feed(*chunks))) == b"1234567890"
