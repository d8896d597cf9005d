"""The other hosts of a job: the interface, waiting for them, and what TensorFlow says when one is lost."""

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

HOSTS = ("algo-1", "algo-2", "algo-3")

BROKEN = """Collective ops is aborted by: recvmsg:Connection reset by peer
Additional GRPC error information from remote target /job:worker/replica:0/task:1 while calling /tensorflow:
:UNKNOWN:Error received from peer  {grpc_message:"recvmsg:Connection reset by peer", grpc_status:14}"""
SILENT = """Error reported from /job:worker/task:1: The tasks are unhealthy (stopped sending heartbeats):
/job:worker/replica:0/task:1
/job:worker/replica:0/task:2
The tasks have crashed. Check the task logs for an earlier error"""
LEADERLESS = """Collective ops is aborted by: Deadline Exceeded

RPC: /tensorflow.CoordinationService/Heartbeat"""
FAILED = "Collective ops is aborted by: Error reported from /job:worker/task:2: no space left\nRestart."
OTHER = """Shape mismatch
Additional GRPC error information from remote target /job:worker/replica:0/task:1 while calling /tensorflow:
:UNKNOWN:Error received from peer  {grpc_message:"Shape mismatch", grpc_status:13}"""


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


def test_without_a_list_of_interfaces_the_system_chooses(tmp_path):
    assert peers.find_interface("eth0", tmp_path / "nowhere") is None


def test_a_host_whose_name_does_not_resolve_is_named():
    port = find_free_port()
    with pytest.raises(
        TandemError, match=r"algo-1 waited 0 s .* for nowhere.invalid \(its name does not resolve\)"
    ):
        peers.await_peers(["localhost", "nowhere.invalid"], "algo-1", port, 0.2, threading.Event())
    with socket.create_server(("", port)):
        pass  # the port is free again


def test_a_stop_ends_the_waiting():
    """The platform kills a job 120 s after it asked for a stop; the wait may last longer."""
    stop = threading.Event()
    stop.set()
    with pytest.raises(TandemError, match=r"stopped while algo-1 waited for nowhere.invalid"):
        peers.await_peers(["localhost", "nowhere.invalid"], "algo-1", find_free_port(), 900, stop)


def test_a_port_that_another_process_has_is_said():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(TandemError, match=f"port {port}, which this host needs"):
            peers.await_peers(["localhost"], "localhost", port, 1, threading.Event())


def test_a_host_that_comes_late_is_waited_for(tmp_path):
    """The first host says for whom it waits, and goes on as soon as the second one is there."""
    # Whoever has seen the others serves on the port from then on, as TensorFlow does.
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
    assert re.search(r"Waiting for hosts, \d+ s more at most: algo-2 \(port 8890: ", log.read_text())


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (BROKEN, "host algo-2 was lost: its connections broke."),
        (SILENT, "host algo-2 and host algo-3 was lost: no sign of life for 30 s."),
        (LEADERLESS, "host algo-1 was lost: no sign of life for 30 s."),
        (FAILED, "host algo-3 failed: no space left."),
        (OTHER, None),
        ("OOM when allocating tensor", None),
    ],
)
def test_tensorflows_error_is_put_as_a_sentence_with_the_hosts_name(message, cause):
    assert peers.find_cause(message, HOSTS) == cause


def test_what_a_host_tells_the_others_arrives_whole():
    """GRPC escapes quotes and line ends on some of its ways."""
    told = peers.wrap('host algo-2 failed: the file "a\n>> b" is cut off.')
    message = f"Error reported from /job:worker/task:1: {told}\n{BROKEN}"
    assert peers.find_cause(message, HOSTS) == "host algo-2 failed: the file 'a > b' is cut off."
