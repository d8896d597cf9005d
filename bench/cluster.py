"""A training job of several hosts on this machine, each with its own network, /opt/ml and share of CPU."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.network import Network

PROGRAM = Path(__file__).resolve().parent.parent / "program"
CGROUPS = Path("/sys/fs/cgroup")
PERIOD = 20_000  # µs in which a host may use its share


@dataclass(frozen=True)
class Host:
    """One host of a job: its name, its miniature /opt/ml, and its `train`."""

    name: str
    root: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return (self.root / "log").read_text(errors="replace")

    @property
    def failure(self) -> str:
        """What it gave as the reason of its failure; empty without one."""
        path = self.root / "output" / "failure"
        return path.read_text() if path.exists() else ""

    def wait(self, seconds: float = 240) -> int:
        """Give the exit status; an `AssertionError` with the log if it does not end."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} has not ended within {seconds} s:\n{self.log}") from None

    def kill(self) -> None:
        """End all its processes at once, as when it loses its power; its kernel still closes connections."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@contextlib.contextmanager
def run_hosts(
    network: Network,
    folder: Path,
    environment: Mapping[str, str],
    hyperparameters: Mapping[str, object],
    channels: Mapping[str, Path],
    *,
    cores: float = 0,
) -> Iterator[list[Host]]:
    """Start the real `train` on each host below `folder`; what is left of them at the end is ended.

    `channels` are folders that all hosts see whole; `cores` is what each host may use of the CPU, 0 for all.
    """
    with contextlib.ExitStack() as stack:
        started = []
        for name in network.hosts:
            root = _lay_out(folder / name, network.hosts, name, hyperparameters, channels)
            share = stack.enter_context(limit_cpu(f"{network.prefix}-{name}", cores)) if cores else []
            log = stack.enter_context((root / "log").open("wb"))
            process = subprocess.Popen(
                [*share, *network.command(name), sys.executable, str(PROGRAM / "train")],
                env={**os.environ, "SAGEMAKER_BASE_DIR": str(root), **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            host = Host(name, root, process)
            stack.callback(process.wait, 30)
            stack.callback(host.kill)
            started.append(host)
        yield started


@contextlib.contextmanager
def limit_cpu(name: str, cores: float) -> Iterator[list[str]]:
    """Give what to put before a command so that it has `cores` of the CPU; OSError where that cannot be."""
    old = (CGROUPS / "cpu").is_dir()
    group = (CGROUPS / "cpu" if old else CGROUPS) / name
    group.mkdir()
    try:
        quota = int(cores * PERIOD)
        if old:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD))
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (group / "cpu.max").write_text(f"{quota} {PERIOD}")
        yield ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(group / "cgroup.procs")]
    finally:
        with contextlib.suppress(OSError):  # a process of it may take a moment to be gone
            group.rmdir()


def _lay_out(
    root: Path,
    hosts: Sequence[str],
    host: str,
    hyperparameters: Mapping[str, object],
    channels: Mapping[str, Path],
) -> Path:
    config = root / "input" / "config"
    config.mkdir(parents=True)
    (root / "input" / "data").mkdir()
    for name, folder in channels.items():
        (root / "input" / "data" / name).symlink_to(folder)
    files = {
        "hyperparameters": {name: str(value) for name, value in hyperparameters.items()},
        "inputdataconfig": {name: {"TrainingInputMode": "File"} for name in channels},
        # The name that the platform's local mode gives, which is of no interface.
        "resourceconfig": {"current_host": host, "hosts": hosts, "network_interface_name": "ethwe"},
    }
    for name, content in files.items():
        (config / f"{name}.json").write_text(json.dumps(content))
    return root
