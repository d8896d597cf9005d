"""What the fit loop reads from: batches in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

from typing import Any, Protocol


class Source(Protocol):
    """One pass over a channel's pictures, cut into global batches, of which each host gets its share."""

    labels: tuple[str, ...]
    #: pictures of one pass, of all hosts together
    rows: int

    @property
    def steps(self) -> int:
        """Global batches of one pass; the same on every host."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Any:
        """Give a `tf.data.Dataset` of this host's share of each batch of `epoch`, without the first `start`.

        Its elements are (pixels (n, h, w, c), labels int64 (n,), weights float32 (n,)). The order is the same
        each time it is asked for, and what is left out is not decoded. A picture that cannot be read has
        weight 0 and the pixels of one in its batch that can be, so that the number of batches never changes.
        Every host's share has at least one row. It ends early once the reader has given up on the channel.
        """
        ...

    def check(self) -> None:
        """Raise `UserError` if more of the pictures read so far were unreadable than the job allows."""
        ...
