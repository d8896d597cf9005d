"""In which order pictures come, and which of them a host takes: pure functions of indices."""

from __future__ import annotations

from typing import Any

import numpy as np

Indices = np.ndarray[Any, np.dtype[np.int64]]


def shuffle(count: int, seed: int | None, epoch: int) -> Indices:
    """Give 0 to `count` - 1 in the order of an epoch, each epoch another one; with no seed as they are."""
    if seed is None:
        return np.arange(count)
    return np.random.default_rng((seed, epoch)).permutation(count)


def cut(count: int, place: int, places: int) -> slice:
    """Give the part at `place` of `count` rows cut into `places`, which differ by one row at most."""
    return slice(count * place // places, count * (place + 1) // places)


def share(order: Indices, step: int, batch_size: int, rank: int, hosts: int) -> tuple[Indices, bool]:
    """Give host `rank`'s part of one global batch of an order that all hosts know, and whether it counts.

    The parts of all hosts are the batch, and differ by one row at most. A host for which there is none gets
    the batch's first row, which does not count.
    """
    batch = order[step * batch_size : (step + 1) * batch_size]
    part = batch[cut(len(batch), rank, hosts)]
    return (part, True) if len(part) else (batch[:1], False)


def spread(order: Indices, step: int, steps: int) -> tuple[Indices, bool]:
    """Give one of `steps` parts of an order that only this host knows, and whether it counts.

    The parts differ by one row at most; where there are fewer rows than steps, one that does not count stands
    in. `order` has at least one row.
    """
    chosen = cut(len(order), step, steps)
    part = order[chosen]
    return (part, True) if len(part) else (order[chosen.start : chosen.start + 1], False)
