"""Run the real `train` on several hosts: network namespaces of this machine, connected by a bridge."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import ROOT

#: `ip netns exec` mounts the files it finds here over those in /etc.
ETC = Path("/etc/netns")


class NetworkError(Exception):
    """The network cannot be made; the message says why."""


@dataclass(frozen=True)
class Network:
    """Hosts named algo-1, algo-2 …, each with an interface eth0; they reach only each other."""

    hosts: tuple[str, ...]
    prefix: str

    def command(self, host):
        """Return the prefix that makes a command run on `host`, in the process that was started."""
        return ["ip", "netns", "exec", self.namespace(host)]

    def namespace(self, host):
        """Return the name of a host's network namespace."""
        return f"{self.prefix}-{host}"


@dataclass(frozen=True)
class Host:
    """One host of a job: its name, its miniature /opt/ml, and its `train` process."""

    name: str
    root: Path
    process: subprocess.Popen

    @property
    def log(self):
        """The log so far."""
        return (self.root / "log").read_text(errors="replace")

    @property
    def failure(self):
        """The content of output/failure; empty if there is none."""
        path = self.root / "output" / "failure"
        return path.read_text() if path.exists() else ""

    def wait(self, seconds=240):
        """Return the exit status; raise `AssertionError` with the log after `seconds`."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} is still running after {seconds} s:\n{self.log}") from None

    def kill(self):
        """Kill all processes of the host; the kernel still closes their connections."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@contextlib.contextmanager
def make_network(count):
    """Make a network of `count` hosts; where that fails, skip the test, or fail if REQUIRE_DOCKER=1."""
    with contextlib.ExitStack() as stack:
        try:
            network = _build(count, stack)
        except NetworkError as error:
            if os.environ.get("REQUIRE_DOCKER") == "1":
                raise
            pytest.skip(str(error))
        yield network


@contextlib.contextmanager
def run_hosts(folder, count, algorithm, hyperparameters=None, channels=None):
    """Start a job of `count` hosts below `folder`, and kill what is still running at the end.

    `channels` maps names to folders that every host sees.
    """
    with make_network(count) as network, contextlib.ExitStack() as stack:
        started = []
        for name in network.hosts:
            root = folder / name
            _write_job(root, network.hosts, name, hyperparameters or {}, channels or {})
            log = stack.enter_context((root / "log").open("wb"))
            environment = {
                "SAGEMAKER_BASE_DIR": str(root),
                "PYTHONPATH": str(ROOT / "tests"),
                "ALGORITHM": algorithm,
            }
            process = subprocess.Popen(
                [*network.command(name), sys.executable, str(ROOT / "program" / "train")],
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            host = Host(name, root, process)
            stack.callback(process.wait, 30)
            stack.callback(host.kill)
            started.append(host)
        yield started


def _write_job(root, hosts, host, hyperparameters, channels):
    config = root / "input" / "config"
    config.mkdir(parents=True)
    (root / "input" / "data").mkdir()
    for name, folder in channels.items():
        (root / "input" / "data" / name).symlink_to(folder)
    files = {
        "hyperparameters": {name: str(value) for name, value in hyperparameters.items()},
        "inputdataconfig": {name: {"TrainingInputMode": "File"} for name in channels},
        # The platform's local mode gives this name, and no interface has it.
        "resourceconfig": {"current_host": host, "hosts": hosts, "network_interface_name": "ethwe"},
    }
    for name, content in files.items():
        (config / f"{name}.json").write_text(json.dumps(content))


def _build(count, stack):
    """Make the network; `stack` removes it. Raise `NetworkError` where it cannot be made.

    The bridge has a namespace of its own, where this machine's firewall does not apply.
    """
    if not shutil.which("ip"):
        raise NetworkError("network namespaces need the command ip: apt-get install iproute2")
    network = Network(tuple(f"algo-{number}" for number in range(1, count + 1)), f"tandem-{os.getpid()}")
    addresses = {host: f"10.231.77.{number}" for number, host in enumerate(network.hosts, 1)}
    names = "".join(f"{address} {host}\n" for host, address in addresses.items())
    try:
        switch = _make_namespace(network.namespace("switch"), stack)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for number, (host, address) in enumerate(addresses.items()):
            namespace = _make_namespace(network.namespace(host), stack)
            _ip("-n", switch, *f"link add port{number} type veth peer name eth0 netns {namespace}".split())
            _ip("-n", switch, *f"link set port{number} master bridge up".split())
            _ip("-n", namespace, *f"addr add {address}/24 dev eth0".split())
            _ip("-n", namespace, "link", "set", "lo", "up")
            _ip("-n", namespace, "link", "set", "eth0", "up")
            (ETC / namespace / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
    except (subprocess.CalledProcessError, OSError) as error:
        cause = (getattr(error, "stderr", "") or str(error)).strip()
        raise NetworkError(
            f"network namespaces cannot be made here ({cause}): they need root, and in a container "
            "CAP_SYS_ADMIN and CAP_NET_ADMIN"
        ) from error
    return network


def _make_namespace(name, stack):
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "del", name)
    (ETC / name).mkdir(parents=True)
    stack.callback(shutil.rmtree, ETC / name, ignore_errors=True)
    return name


def _ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=30)
