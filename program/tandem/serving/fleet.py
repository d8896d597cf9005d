"""The serving processes: how many there are, and which of them are ready."""

from __future__ import annotations

import logging
import math
import mmap
from dataclasses import dataclass

from tandem.runtime.resources import Resources

logger = logging.getLogger(__name__)

#: Cores that one process keeps busy; with more, its interpreter lock is the limit.
PROCESS_CORES = 8
#: Bytes of model files up to which handling a request costs more than computing it: each core has a process.
SMALL_MODEL = 4 << 20
#: Bytes of memory that a process takes at most, and those for each byte of its model's files.
PROCESS_BYTES = 512 << 20
BYTES_PER_MODEL_BYTE = 8
#: Processes in a row that may end before their model was loaded.
MAX_LOST_STARTS = 3


#: Bytes of request bodies that a process may have at once, at most, and the share of its memory.
MAX_BODY_BYTES = 256 << 20
BODY_SHARE = 8

LOADING, READY, FAILED = range(3)


@dataclass(frozen=True)
class Plan:
    """How many processes serve, with how many cores and bytes of request bodies each."""

    workers: int
    cores: int
    body_bytes: int = MAX_BODY_BYTES

    def __str__(self) -> str:
        return f"{self.workers} process(es), each with {self.cores} core(s)"


def make_plan(resources: Resources, gpus: int, model_bytes: int, wanted: int | None = None) -> Plan:
    """Return the plan: `wanted` processes, else one per GPU, else as many as the cores can keep busy.

    There are never more copies of the model than fit into memory.
    """
    if wanted is None and gpus:
        wanted = gpus
    elif wanted is None:
        wanted = math.ceil(resources.cores / (1 if model_bytes <= SMALL_MODEL else PROCESS_CORES))
    fitting = max(1, resources.memory_bytes // (PROCESS_BYTES + BYTES_PER_MODEL_BYTE * model_bytes))
    if wanted > fitting:
        logger.warning("%d processes do not fit into memory; starting %d", wanted, fitting)
    workers = min(wanted, fitting)
    body_bytes = min(MAX_BODY_BYTES, resources.memory_bytes // workers // BODY_SHARE)
    return Plan(workers, max(1, resources.cores // workers), body_bytes)


class Fleet:
    """The slots of the serving processes, one per GPU; a process that replaces another takes over its slot.

    Made before the processes are forked, it shares with them which are ready.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._slots: dict[int, int] = {}  # by the age of the process
        self._lost_starts = 0
        self._has_failed = False
        self._states = mmap.mmap(-1, size + 1)  # one byte per slot; the last one: all have been ready once

    def take(self, age: int) -> int:
        """Return a free slot for the process with number `age`."""
        slot = min(set(range(self._size)) - set(self._slots.values()), default=0)
        self._slots[age] = slot
        self._states[slot] = LOADING
        return slot

    def free(self, age: int) -> None:
        """Free the slot of a process that ended."""
        slot = self._slots.pop(age, None)
        if slot is None:
            return
        self._lost_starts = 0 if self._states[slot] == READY else self._lost_starts + 1
        self._has_failed = self._has_failed or self._states[slot] == FAILED
        self._states[slot] = LOADING

    def mark_ready(self, slot: int) -> None:
        """Record, in the process that has the slot, that its model is loaded."""
        self._states[slot] = READY
        if all(state == READY for state in self._states[: self._size]):
            self._states[self._size] = READY

    def mark_failed(self, slot: int) -> None:
        """Record, in the process that has the slot, that its model cannot be loaded."""
        self._states[slot] = FAILED

    @property
    def end_reason(self) -> str:
        """Why starting more processes will not help; empty as long as it may."""
        if self._has_failed:
            return "the model cannot be loaded"
        if self._lost_starts >= MAX_LOST_STARTS:
            return "process after process ended before its model was loaded; does it have enough memory?"
        return ""

    @property
    def is_complete(self) -> bool:
        """Whether all processes have been ready once: before, a request might meet one that still loads."""
        return bool(self._states[self._size])
