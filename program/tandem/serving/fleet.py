"""The serving processes: how many there are, and which of them are ready."""

from __future__ import annotations

import logging
import math
import mmap
from dataclasses import dataclass

from tandem.runtime.resources import Resources

logger = logging.getLogger(__name__)

#: Cores that one process keeps busy: past them its interpreter lock, not the model, is the limit.
PROCESS_CORES = 8
#: Bytes of model files up to which requests cost more than the model, so that each core has a process.
SMALL_MODEL = 4 << 20
#: Bytes that a process takes, at most, beside and for each byte of its model's files.
PROCESS_BYTES = 512 << 20
BYTES_PER_MODEL_BYTE = 8
#: Processes that may end, one after the other, before the model was loaded: more will do no better.
MOST_LOST_STARTS = 3


#: Bytes of request bodies that a process may have at once, at most, and the share of its memory.
MAX_BODY_BYTES = 256 << 20
BODY_SHARE = 8


@dataclass(frozen=True)
class Plan:
    """How many processes serve, with how many request threads, cores and bytes of request bodies each."""

    workers: int
    threads: int
    cores: int
    body_bytes: int = MAX_BODY_BYTES

    def __str__(self) -> str:
        return (
            f"{self.workers} process(es), each with {self.threads} request threads and {self.cores} core(s)"
        )


def make_plan(
    resources: Resources, gpus: int, model_bytes: int, threads: int, wanted: int | None = None
) -> Plan:
    """Plan the processes: `wanted`, else one a GPU, else as many as the cores can keep busy.

    Never more copies of the model than fit the memory.
    """
    if wanted is None and gpus:
        wanted = gpus
    elif wanted is None:
        wanted = math.ceil(resources.cores / (1 if model_bytes <= SMALL_MODEL else PROCESS_CORES))
    fitting = max(1, resources.memory_bytes // (PROCESS_BYTES + BYTES_PER_MODEL_BYTE * model_bytes))
    if wanted > fitting:
        logger.warning("%d processes would not fit the memory; %d serve", wanted, fitting)
    workers = min(wanted, fitting)
    body_bytes = min(MAX_BODY_BYTES, resources.memory_bytes // workers // BODY_SHARE)
    return Plan(workers, threads, max(1, resources.cores // workers), body_bytes)


class Fleet:
    """Which process has which slot, and so which GPU; a process that follows a dead one takes over its slot.

    Made before the processes are forked, it shares with them which are ready.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken: dict[int, int] = {}
        self._lost_starts = 0
        self._ready = mmap.mmap(-1, size + 1)  # a byte a slot; the last one: all have been ready once

    def take(self, age: int) -> int:
        """Give the process born as number `age` a free slot."""
        slot = min(set(range(self._size)) - set(self._taken.values()), default=0)
        self._taken[age] = slot
        self._ready[slot] = 0
        return slot

    def free(self, age: int) -> None:
        """Free the slot of a process that ended."""
        slot = self._taken.pop(age, None)
        if slot is not None:
            self._lost_starts = 0 if self._ready[slot] else self._lost_starts + 1
            self._ready[slot] = 0

    def mark_ready(self, slot: int) -> None:
        """Say, in its own process, that a slot's model is loaded."""
        self._ready[slot] = 1
        if all(self._ready[: self._size]):
            self._ready[self._size] = 1

    @property
    def is_hopeless(self) -> bool:
        """Whether process after process has ended without having been ready."""
        return self._lost_starts >= MOST_LOST_STARTS

    @property
    def is_complete(self) -> bool:
        """Whether all processes have been ready once: before, a request might meet one that still loads."""
        return bool(self._ready[self._size])
