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
    """CPU seconds so far, with ended children; resident MB, shared pages divided (PSS) or not (RSS).

    `own` is the part of PSS that is no file's: what libraries take does not change with who else has them.
    """

    cpu: float
    pss: float
    rss: float
    own: float


def measure_tree(root: int) -> Usage:
    """Add up what `root` and its descendants have used; a process that has just ended counts nothing."""
    cpu = pss = rss = own = 0.0
    for pid in list_tree(root):
        with suppress(OSError):
            # user, system, and both of the children waited for
            cpu += sum(int(ticks) for ticks in _read_stat(PROC / str(pid))[11:15]) / TICKS
            memory = _read_memory(PROC / str(pid))
            pss += memory.get("Pss", 0) / 1024
            rss += memory.get("Rss", 0) / 1024
            own += (memory.get("Pss_Anon", 0) + memory.get("Pss_Shmem", 0)) / 1024
    return Usage(cpu, pss, rss, own)


def list_tree(root: int) -> list[int]:
    """List `root` and its descendants."""
    children: dict[int, list[int]] = defaultdict(list)
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                children[int(_read_stat(folder)[1])].append(int(folder.name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children[pid]
    return found


def _read_stat(folder: Path) -> list[str]:
    """Give the fields after the command's name, which may hold anything: the state, the parent and so on."""
    return (folder / "stat").read_text().rpartition(")")[2].split()


def _read_memory(folder: Path) -> dict[str, int]:
    """Give Rss, Pss and the like in kB; nothing of a process that has ended and not been waited for."""
    lines = (folder / "smaps_rollup").read_text().splitlines()[1:]
    return {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
