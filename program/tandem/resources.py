"""How much of this machine is ours."""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass
from pathlib import Path


def _read_quota(cgroup: Path) -> float | None:
    """Give the CPU quota in cores that cgroup v2, or else v1, allows; None without a limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota in {"max", "-1"}:
        return None
    return int(quota) / int(period)


@dataclass(frozen=True)
class Resources:
    """What this process may use."""

    cores: int
    memory_bytes: int


def find_resources(cgroup: Path = Path("/sys/fs/cgroup")) -> Resources:
    """Find the cores and the memory of this machine or container."""
    return Resources(count_cores(cgroup), count_memory(cgroup))


def count_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Count the bytes of memory: the machine's, cut by the limit of cgroup v2, or else v1."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" where v2 sets no limit
            return min(total, int((cgroup / name).read_text()))
    return total


def count_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Count the cores this process may use: its affinity, cut by the container's quota; at least 1.

    CPU *shares* are left out: on SageMaker they look like one core on every instance.
    """
    cores = len(os.sched_getaffinity(0))
    quota = _read_quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))
