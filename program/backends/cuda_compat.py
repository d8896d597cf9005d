"""NVIDIA's forward compatibility: a newer libcuda for an older driver, where the image's base brings one."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from tandem.runtime import cuda
from tandem.runtime.devices import Build

#: Where NVIDIA's package cuda-compat lies, and where the kernel's driver tells its version.
COMPAT = Path("/usr/local/cuda/compat")
DRIVER = Path("/proc/driver/nvidia/version")


def find_compat(cuda_version: str | None) -> Path | None:
    """Give the folder of a libcuda that helps code built with `cuda_version`; None where none is needed.

    It is needed where the host's driver is too old for the code, and helps only if it is newer than that
    driver: beside a newer one it fails, and a newer one than needed may have dropped the GPU.
    """
    try:
        driver = _read_version(DRIVER.read_text(encoding="utf-8", errors="replace"))
        library = _read_version((COMPAT / "libcuda.so.1").resolve(strict=True).name)
    except OSError:  # no GPU here, or a base without the package
        return None
    if not driver or not library or cuda_version is None:
        return None
    if cuda.is_driver_enough(driver, None, cuda_version):
        return None
    return COMPAT if cuda.parse_version(library) > cuda.parse_version(driver) else None


def enter_compat(build: Build | None) -> None:
    """Start this program anew with the compatible libcuda in front, if it is needed and not there yet.

    The loader reads LD_LIBRARY_PATH when a process starts. An entry point that exports it would be passed
    over by `ContainerEntrypoint`, and an empty entry in it would mean the working directory.
    """
    found = find_compat(build.cuda_version if build else None)
    paths = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
    if found is None or str(found) in paths:
        return
    os.environ["LD_LIBRARY_PATH"] = ":".join([str(found), *paths])
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606  # itself


def _read_version(text: str) -> str:
    match = re.search(r"\d{3,}(\.\d+)+", text)
    return match[0] if match else ""
