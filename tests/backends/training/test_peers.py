"""Waiting for the other hosts of a job, and the network interface to reach them through."""

import re
import socket
import subprocess
import sys
import threading

import pytest

from backends.training import peers
from conftest import ROOT
from hosts import make_network
from processes import find_free_port, wait_for
from tandem.errors import TandemError


@pytest.mark.parametrize(
    ("named", "existing", "expected"),
    [
        ("eth0", ["eth0", "lo"], "eth0"),
        ("ethwe", ["eth0", "lo"], "eth0"),
        ("ethwe", ["ethwe", "eth0", "lo"], "ethwe"),
        (None, ["docker0", "eth1", "lo"], "eth1"),
        ("", ["ens5", "lo"], "ens5"),
        ("lo", ["eth0", "lo"], "eth0"),
        ("eth0", ["lo"], None),
    ],
)
def test_the_named_interface_is_used_only_if_it_exists(tmp_path, named, existing, expected):
    for name in existing:
        (tmp_path / name).mkdir()
    assert peers.find_interface(named, tmp_path) == expected


def test_without_a_list_of_interfaces_none_is_chosen(tmp_path):
    assert peers.find_interface("eth0", tmp_path / "nowhere") is None


def test_a_host_whose_name_does_not_resolve_is_named():
    port = find_free_port()
    with pytest.raises(
        TandemError, match=r"algo-1 waited 0 s .* not answer: nowhere.invalid \(its name does not resolve\)"
    ):
        peers.await_peers(["localhost", "nowhere.invalid"], "algo-1", port, 0.2, threading.Event())
    with socket.create_server(("", port)):
        pass  # the port is free again


def test_a_stop_ends_the_wait():
    """The platform kills a job 120 s after asking it to stop, which is less than the longest wait."""
    stop = threading.Event()
    stop.set()
    with pytest.raises(TandemError, match=r"stopped while algo-1 waited for nowhere.invalid"):
        peers.await_peers(["localhost", "nowhere.invalid"], "algo-1", find_free_port(), 900, stop)


def test_a_port_used_by_another_process_is_named_in_the_error():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(TandemError, match=f"this host needs port {port} .* Address already in use"):
            peers.await_peers(["localhost"], "localhost", port, 1, threading.Event())


def test_the_first_host_waits_for_a_host_that_starts_late(tmp_path):
    """It logs which host is missing, and continues as soon as that host answers."""
    # Each host listens on the port as soon as it has reached the others, as TensorFlow does.
    code = """
import logging, socket, sys, threading
logging.basicConfig(level=logging.INFO)
from backends.training import peers
peers.await_peers(["algo-1", "algo-2"], sys.argv[1], 8890, 60, threading.Event())
with socket.create_server(("", 8890)):
    sys.stdin.read()
"""
    log = tmp_path / "log"
    with make_network(2) as network, log.open("w") as file:

        def start(host):
            return subprocess.Popen(
                [*network.command(host), sys.executable, "-c", code, host],
                env={"PYTHONPATH": str(ROOT / "program"), "PATH": "/usr/bin"},
                stdin=subprocess.PIPE,
                stderr=file,
            )

        with start("algo-1") as first:
            wait_for(lambda: "Waiting for hosts" in log.read_text(), "the first host's log", 60)
            with start("algo-2") as second:
                wait_for(lambda: log.read_text().count("All 2 hosts answer.") == 2, "both hosts", 60)
                first.communicate()
                second.communicate()
    assert (first.returncode, second.returncode) == (0, 0), log.read_text()
    assert re.search(r"Waiting for hosts, at most \d+ s more: algo-2 \(port 8890: ", log.read_text())
