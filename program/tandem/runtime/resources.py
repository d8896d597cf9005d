"""The cores and the memory that this process may use."""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def _read_quota(cgroup: Path) -> float | None:
    """Return the CPU quota of cgroup v2, or else v1, in cores; None without a limit."""
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


def find_resources(cgroup: Path = CGROUP) -> Resources:
    """Return the cores and the memory of this host or container."""
    return Resources(count_cores(cgroup), count_memory(cgroup))


def count_memory(cgroup: Path = CGROUP, own: Path = OWN_CGROUP) -> int:
    """Return the bytes of memory: the host's, limited by this process's cgroups, v1 or v2."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in _list_memory_folders(cgroup, own):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # "max" where v2 sets no limit
                limits.append(int((folder / name).read_text()))
    return min(limits)


def count_memory_kills(cgroup: Path = CGROUP, own: Path = OWN_CGROUP) -> int | None:
    """Return how many processes of this cgroup the kernel killed for lack of memory; None if unknown."""
    for folder in _list_memory_folders(cgroup, own):
        for name in ("memory.events", "memory.oom_control"):  # v2, v1
            with contextlib.suppress(OSError, ValueError, KeyError):
                pairs = dict(line.split(" ", 1) for line in (folder / name).read_text().splitlines())
                return int(pairs["oom_kill"])
    return None


def _list_memory_folders(cgroup: Path, own: Path) -> list[Path]:
    """Return the folders of this process's memory cgroup and of its parents, nearest first.

    In a container, the path in `own` is often the host's and does not exist; then the mount is the cgroup.
    """
    folders = []
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in {"", "memory"}:
            root = cgroup / controllers
            nearest = root / path.lstrip("/")
            folders += [nearest, *(parent for parent in nearest.parents if parent.is_relative_to(root))]
    return [*dict.fromkeys([*folders, cgroup, cgroup / "memory"])]


def count_cores(cgroup: Path = CGROUP) -> int:
    """Return the cores this process may use: its affinity, limited by the container's quota; at least 1.

    CPU *shares* are ignored: on SageMaker they look like one core on every instance.
    """
    cores = len(os.sched_getaffinity(0))
    quota = _read_quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))
