"""Training jobs of several hosts, simulated on one machine with network namespaces."""

import contextlib
import os

import pytest

from bench import cluster
from bench import network as networks
from conftest import ROOT


@contextlib.contextmanager
def make_network(count):
    """Yield a network of `count` hosts.

    If it cannot be made, skip the test, or fail if REQUIRE_DOCKER=1.
    """
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(networks.make_network(count))
        except networks.NetworkError as error:
            if os.environ.get("REQUIRE_DOCKER") == "1":
                raise
            pytest.skip(str(error))
        yield made


@contextlib.contextmanager
def run_hosts(folder, count, algorithm, hyperparameters=None, channels=None):
    """Start a job on `count` hosts and yield them; kill what still runs at the end."""
    environment = {"PYTHONPATH": str(ROOT / "tests"), "ALGORITHM": algorithm}
    with (
        make_network(count) as network,
        cluster.run_hosts(network, folder, environment, hyperparameters or {}, channels or {}) as hosts,
    ):
        yield hosts
