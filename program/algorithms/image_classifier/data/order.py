"""The order of an epoch and each host's share of a batch, as pure functions of indices."""

from __future__ import annotations

from typing import Any

import numpy as np

Indices = np.ndarray[Any, np.dtype[np.int64]]


def shuffle(count: int, seed: int | None, epoch: int) -> Indices:
    """Return the indices 0 to `count` - 1 in the order of an epoch; sorted if there is no seed."""
    if seed is None:
        return np.arange(count)
    return np.random.default_rng((seed, epoch)).permutation(count)


def cut(count: int, index: int, parts: int) -> slice:
    """Return part `index` of `count` rows that are cut into `parts`, whose sizes differ by at most one."""
    return slice(count * index // parts, count * (index + 1) // parts)


def share(order: Indices, step: int, batch_size: int, rank: int, hosts: int) -> tuple[Indices, bool]:
    """Return host `rank`'s part of a global batch, and whether it counts, for an order that all hosts know.

    The parts of all hosts together are the batch; their sizes differ by at most one. A host whose part is
    empty gets the batch's first row, which does not count.
    """
    batch = order[step * batch_size : (step + 1) * batch_size]
    part = batch[cut(len(batch), rank, hosts)]
    return (part, True) if len(part) else (batch[:1], False)


def spread(order: Indices, step: int, steps: int) -> tuple[Indices, bool]:
    """Return one of `steps` parts of an order that only this host knows, and whether it counts.

    The sizes of the parts differ by at most one. With fewer rows than steps, an empty part is replaced by one
    row that does not count. `order` must have at least one row.
    """
    chosen = cut(len(order), step, steps)
    part = order[chosen]
    return (part, True) if len(part) else (order[chosen.start : chosen.start + 1], False)
