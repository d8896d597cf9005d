"""Hosts for an experiment on one machine: network namespaces on a bridge, each with a name and an address."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

#: Where `ip netns exec` finds the files that it puts over those in /etc.
ETC = Path("/etc/netns")


class NetworkError(Exception):
    """The network cannot be made; the message says why."""


@dataclass(frozen=True)
class Network:
    """Hosts named algo-1, algo-2 …, each with an interface eth0, that reach each other and no one else."""

    hosts: tuple[str, ...]
    prefix: str

    def command(self, host: str) -> list[str]:
        """Give what to put before a command so that it runs on `host`, in the process that was started."""
        return ["ip", "netns", "exec", self.space(host)]

    def cut(self, host: str) -> None:
        """Take a host off the network, as when its power fails: nobody is told."""
        _ip("-n", self.space(host), "link", "set", "eth0", "down")

    def space(self, host: str) -> str:
        """Give the name of a host's namespace."""
        return f"{self.prefix}-{host}"


@contextmanager
def make_network(count: int) -> Iterator[Network]:
    """Make `count` hosts, and remove them; it wants root, and raises `NetworkError` where it cannot be.

    The bridge is in a namespace of its own, where the machine's firewall has no say.
    """
    if not shutil.which("ip"):
        raise NetworkError("network namespaces need the command ip: apt-get install iproute2")
    network = Network(tuple(f"algo-{number}" for number in range(1, count + 1)), f"tandem-{os.getpid()}")
    with ExitStack() as stack:
        try:
            _build(network, stack)
        except (subprocess.CalledProcessError, OSError) as error:
            said = (getattr(error, "stderr", "") or str(error)).strip()
            raise NetworkError(
                f"network namespaces cannot be made here ({said}): be root, and in a container have "
                "CAP_SYS_ADMIN and CAP_NET_ADMIN"
            ) from error
        yield network


def _build(network: Network, stack: ExitStack) -> None:
    switch = _make_space(network.space("switch"), stack)
    _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
    _ip("-n", switch, "link", "set", "bridge", "up")
    addresses = {host: f"10.231.77.{number}" for number, host in enumerate(network.hosts, 1)}
    names = "".join(f"{address} {host}\n" for host, address in addresses.items())
    for number, (host, address) in enumerate(addresses.items()):
        space = _make_space(network.space(host), stack)
        _ip("-n", switch, *f"link add port{number} type veth peer name eth0 netns {space}".split())
        _ip("-n", switch, *f"link set port{number} master bridge up".split())
        _ip("-n", space, *f"addr add {address}/24 dev eth0".split())
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", space, "link", "set", "eth0", "up")
        (ETC / space / "hosts").write_text(f"127.0.0.1 localhost\n{names}")


def _make_space(name: str, stack: ExitStack) -> str:
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "del", name)
    (ETC / name).mkdir(parents=True)
    stack.callback(shutil.rmtree, ETC / name, ignore_errors=True)
    return name


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=30)
