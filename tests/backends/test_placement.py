"""Choosing a device with the real NVML probe and a CPU build of TensorFlow."""

import json
import os
import subprocess
import sys

import pytest

from conftest import ROOT
from nvml.machine import T4, build_library, describe_machine

CHOOSE = """
import json, sys
from backends import placement
from tandem.runtime.devices import Build
from tandem.errors import UserError

if sys.argv[2] == "CUDA":
    placement.read_build = lambda: Build("TensorFlow 2.21.0", "12.5.1", ("sm_60", "sm_70", "compute_90"))
try:
    print(json.dumps(placement.choose_device(sys.argv[1], None).as_dict()))
except UserError as error:
    print(json.dumps({"error": str(error)}))
"""


@pytest.fixture(scope="module")
def choose(tmp_path_factory):
    library = build_library(tmp_path_factory.mktemp("nvml"))

    def run(wanted, build):
        done = subprocess.run(
            [sys.executable, "-c", CHOOSE, wanted, build],
            env={**os.environ, "PYTHONPATH": str(ROOT / "program"), **describe_machine(library, [T4])},
            capture_output=True,
            text=True,
            timeout=180,
            check=True,
        )
        return json.loads(done.stdout)

    return run


def test_a_build_without_cuda_uses_the_cpu_and_names_the_gpu(choose):
    decision = choose("auto", "installed")
    assert decision["device"] == "cpu"
    assert "built without CUDA: use a GPU image for 1 x Tesla T4 (capability 7.5)" in decision["reason"]


def test_a_gpu_whose_first_op_fails_is_not_used(choose):
    """NVML reports a T4 that the build supports, but TensorFlow cannot use it."""
    decision = choose("auto", "CUDA")
    assert (decision["device"], decision["gpus"], decision["precision"]) == ("cpu", [], "float32")
    assert "the first op failed on 1 x Tesla T4" in decision["reason"]
    assert "TensorFlow finds no GPU" in decision["reason"]


def test_a_requested_gpu_must_pass_the_first_op(choose):
    error = choose("gpu", "CUDA")["error"]
    assert error.startswith("TANDEM_DEVICE=gpu, but the first op failed on 1 x Tesla T4")
