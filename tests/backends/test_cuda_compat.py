"""When the compatible libcuda is used, and the restart with it."""

import os
import subprocess
import sys

import pytest

from backends import cuda_compat
from conftest import ROOT

DRIVER_VERSION = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Thu Jan  1 00:00:00 UTC 2026\nGCC version: gcc 12\n"
)


@pytest.fixture
def host(tmp_path, monkeypatch):
    """`host(driver, library)` sets up a host's driver and a base image's cuda-compat."""

    def make(driver, library):
        if driver:
            (tmp_path / "version").write_text(DRIVER_VERSION.format(driver))
        folder = tmp_path / "compat"
        folder.mkdir()
        if library:
            (folder / f"libcuda.so.{library}").touch()
            (folder / "libcuda.so.1").symlink_to(f"libcuda.so.{library}")
        monkeypatch.setattr(cuda_compat, "COMPAT", folder)
        monkeypatch.setattr(cuda_compat, "DRIVER", tmp_path / "version")
        return folder

    return make


@pytest.mark.parametrize(
    ("driver", "library", "cuda_version", "is_found"),
    [
        ("470.256.02", "555.42.06", "12.5.1", True),
        ("535.183.01", "555.42.06", "12.5.1", False),  # minor version compatibility suffices
        ("580.65.06", "555.42.06", "12.5.1", False),
        ("470.256.02", "520.61.05", "11.8", False),  # 520 no longer supports a K80
        ("470.256.02", "470.82.01", "12.5.1", False),
        ("470.256.02", None, "12.5.1", False),
        (None, "555.42.06", "12.5.1", False),
        ("470.256.02", "555.42.06", None, False),
    ],
)
def test_it_is_used_only_if_the_driver_is_too_old_and_it_is_newer(
    host, driver, library, cuda_version, is_found
):
    folder = host(driver, library)
    assert cuda_compat.find_compat(cuda_version) == (folder if is_found else None)


def test_the_version_of_the_open_kernel_module_is_read(host, tmp_path):
    folder = host("1", "555.42.06")
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  515.43.04  Release Build\n"
    )
    assert cuda_compat.find_compat("12.5.1") == folder


SCRIPT = """
import os, sys
from pathlib import Path
from backends import cuda_compat
from tandem.runtime.devices import Build
cuda_compat.COMPAT, cuda_compat.DRIVER = Path(sys.argv[1]), Path(sys.argv[2])
print("start", os.getpid(), flush=True)
cuda_compat.restart_with_compat(Build("TensorFlow 2.21.0", "12.5.1"))
print("ran", os.getpid(), os.environ.get("LD_LIBRARY_PATH"), sys.argv[3])
"""


@pytest.mark.parametrize(("before", "after"), [("", "{}"), ("/a::/b:", "{}:/a:/b")])
def test_the_program_restarts_once_in_the_same_process_without_empty_entries(host, tmp_path, before, after):
    folder = host("470.256.02", "555.42.06")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, folder, tmp_path / "version", "an argument"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "program"), "LD_LIBRARY_PATH": before},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    first, second, last = done.stdout.splitlines()
    pid = first.split()[1]
    assert (second, last) == (first, f"ran {pid} {after.format(folder)} an argument")
