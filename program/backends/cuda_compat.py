"""NVIDIA's forward compatibility: a newer libcuda for an older driver, if the base image contains one."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from tandem.runtime import cuda
from tandem.runtime.devices import Build

#: Where NVIDIA's cuda-compat package installs libcuda, and where the kernel driver states its version.
COMPAT = Path("/usr/local/cuda/compat")
DRIVER = Path("/proc/driver/nvidia/version")


def find_compat(cuda_version: str | None) -> Path | None:
    """Return the folder of a compatible libcuda for code built with `cuda_version`; None if none is needed.

    It is needed if the host's driver is too old for the code, and works only if it is newer than that driver:
    with a newer driver it fails, and using it needlessly may lose support for an old GPU.
    """
    try:
        driver = _find_version(DRIVER.read_text(encoding="utf-8", errors="replace"))
        library = _find_version((COMPAT / "libcuda.so.1").resolve(strict=True).name)
    except OSError:  # there is no GPU, or the base image lacks the package
        return None
    if not driver or not library or cuda_version is None:
        return None
    if cuda.is_driver_enough(driver, None, cuda_version):
        return None
    return COMPAT if cuda.parse_version(library) > cuda.parse_version(driver) else None


def restart_with_compat(build: Build | None) -> None:
    """Restart this process with the compatible libcuda in LD_LIBRARY_PATH, if needed and not done yet.

    The loader reads LD_LIBRARY_PATH only when a process starts. An entrypoint script that exports it could be
    bypassed by `ContainerEntrypoint`. Empty entries are removed, as they mean the working directory.
    """
    compat = find_compat(build.cuda_version if build else None)
    paths = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
    if compat is None or str(compat) in paths:
        return
    os.environ["LD_LIBRARY_PATH"] = ":".join([str(compat), *paths])
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606  # this same program


def _find_version(text: str) -> str:
    match = re.search(r"\d{3,}(\.\d+)+", text)
    return match[0] if match else ""
