"""NVIDIA's rules on which compiled code runs on which GPU and driver."""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

# The oldest driver for each CUDA major version, by minor version compatibility:
# docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
MINIMUM_DRIVERS = {11: "450.80.02", 12: "525", 13: "580"}

Precision = Literal["float32", "float16", "bfloat16"]
# The lowest capability whose tensor cores compute in each type.
MIXED_PRECISIONS: dict[Precision, tuple[int, int]] = {"bfloat16": (8, 0), "float16": (7, 0)}


def find_kernels(
    capability: tuple[int, int], targets: Sequence[str]
) -> Literal["native", "PTX", "unknown"] | None:
    """Return which kind of a build's targets runs on a GPU, or None.

    `sm_86` runs on 8.6 to 8.9, `compute_90` (PTX) on 9.0 and all later. Without targets it is unknown.
    """
    known = parse_targets(targets)
    if any(kind == "sm" and own[0] == capability[0] and own <= capability for kind, own in known):
        return "native"
    if any(kind == "compute" and own <= capability for kind, own in known):
        return "PTX"
    return None if targets else "unknown"


def parse_targets(targets: Iterable[str]) -> list[tuple[str, tuple[int, int]]]:
    """Parse `sm_86` as `("sm", (8, 6))`; other spellings are left out."""
    matches = (re.fullmatch(r"(sm|compute)_([0-9]+)([0-9])", target) for target in targets)
    return [(match[1], (int(match[2]), int(match[3]))) for match in matches if match]


def is_driver_enough(driver: str | None, driver_cuda: tuple[int, int] | None, cuda: str) -> bool:
    """Return whether code built with CUDA version `cuda` runs on a driver with CUDA `driver_cuda`.

    `driver_cuda` is newer than the driver if NVIDIA's forward compatibility package is in use.
    """
    needed = parse_version(cuda)
    if driver_cuda is not None and driver_cuda >= needed[:2]:
        return True
    minimum = MINIMUM_DRIVERS.get(needed[0])
    if driver and minimum:
        return parse_version(driver) >= parse_version(minimum)
    return driver_cuda is None or driver_cuda[0] >= needed[0]


def choose_precision(capability: tuple[int, int]) -> Precision:
    """Return the type that computes faster than float32 on a GPU; float32 if there is none."""
    return next((name for name, least in MIXED_PRECISIONS.items() if capability >= least), "float32")


def parse_version(text: str) -> tuple[int, ...]:
    """Parse `450.80.02` as `(450, 80, 2)`."""
    return tuple(int(number) for number in re.findall(r"[0-9]+", text))


def read_visible_devices(uuids: Sequence[str], value: str | None) -> list[int]:
    """Return the indexes in `uuids` that CUDA_VISIBLE_DEVICES selects, all of them for None.

    Entries are numbers or beginnings of UUIDs. As in CUDA, the list ends before its first invalid entry, so
    `-1` and the empty text hide all GPUs.
    """
    if value is None:
        return list(range(len(uuids)))
    selected: list[int] = []
    for entry in (part.strip() for part in value.split(",")):
        if re.fullmatch("[0-9]+", entry):
            named = [int(entry)] if int(entry) < len(uuids) else []
        else:
            named = [index for index, uuid in enumerate(uuids) if entry and uuid.startswith(entry)]
        if len(named) != 1 or named[0] in selected:
            break
        selected += named
    return selected
