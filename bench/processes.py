"""What a server's process and all its descendants have used, from /proc."""

from __future__ import annotations

import os
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """CPU seconds so far, with ended children; resident MB with shared pages divided (PSS) or not (RSS).

    `own` is the part of PSS that no file backs: the rest depends on who else has the same libraries loaded.
    """

    cpu: float
    pss: float
    rss: float
    own: float


def measure_tree(root: int) -> Usage:
    """Sum what `root` and its descendants have used; a process that has just ended counts nothing."""
    cpu = pss = rss = own = 0.0
    for pid in list_tree(root):
        with suppress(OSError):
            # user, system, and both of the children that were waited for
            cpu += sum(int(ticks) for ticks in _read_stat(pid)[11:15]) / TICKS
            lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]
            fields = (line.partition(":") for line in lines)
            memory = {name: int(rest.split()[0]) / 1024 for name, _, rest in fields}
            pss += memory["Pss"]
            rss += memory["Rss"]
            own += memory["Pss_Anon"] + memory["Pss_Shmem"]
    return Usage(cpu, pss, rss, own)


def list_tree(root: int) -> list[int]:
    """Return the process ids of `root` and its descendants."""
    children: dict[int, list[int]] = defaultdict(list)
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                children[int(_read_stat(int(folder.name))[1])].append(int(folder.name))
    found = [root]
    for pid in found:
        found += children[pid]
    return found


def _read_stat(pid: int) -> list[str]:
    """Return the fields after the command's name, which may contain spaces: state, parent and so on."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
