"""Several hosts on this machine that run the real `train` together."""

import contextlib
import os

import pytest

from bench import cluster
from bench import network as networks
from conftest import ROOT


@contextlib.contextmanager
def make_network(count):
    """Give a network of so many hosts; skip where none can be made, or fail if REQUIRE_DOCKER=1."""
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
    """Run a job of `count` hosts; gives the hosts, and ends what is left of them."""
    environment = {"PYTHONPATH": str(ROOT / "tests"), "ALGORITHM": algorithm}
    with (
        make_network(count) as network,
        cluster.run_hosts(network, folder, environment, hyperparameters or {}, channels or {}) as hosts,
    ):
        yield hosts
