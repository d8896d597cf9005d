"""Machines with NVIDIA GPUs, as the fake NVML library reports them to a process."""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml.c")
LIBRARY = "libnvidia-ml.so.1"


@dataclass(frozen=True)
class Card:
    """One GPU; `settings` are further variables for nvml.c, such as `{"ERROR": "15"}` for a lost one."""

    name: str
    capability: str
    mebibytes: int
    settings: Mapping[str, str] = field(default_factory=dict)

    def variables(self, index: int) -> dict[str, str]:
        own = {
            "NAME": self.name,
            "UUID": f"GPU-{index:08d}-aaaa-bbbb-cccc-dddddddddddd",
            "CAPABILITY": self.capability,
            "MIB": str(self.mebibytes),
            **self.settings,
        }
        return {f"NVML_GPU{index}_{key}": value for key, value in own.items()}


K80 = Card("Tesla K80", "3.7", 11441)
V100 = Card("Tesla V100-SXM2-16GB", "7.0", 16160)
T4 = Card("Tesla T4", "7.5", 15360)
A10G = Card("NVIDIA A10G", "8.6", 23028)
H100 = Card("NVIDIA H100 80GB HBM3", "9.0", 81559)
CUT_H100 = Card(
    "NVIDIA H100 80GB HBM3",
    "9.0",
    81559,
    {
        "MIG": "7",
        "MIG0_NAME": "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "MIG0_UUID": "MIG-00000000-1111-2222-3333-444444444444",
        "MIG0_MIB": "40320",
        "MIG2_NAME": "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "MIG2_UUID": "MIG-22222222-1111-2222-3333-444444444444",
        "MIG2_MIB": "9984",
    },
)


def lose(card: Card, code: int = 15) -> Card:
    """Return the card as one that NVML can no longer reach (15: fallen off the bus)."""
    return Card(card.name, card.capability, card.mebibytes, {**card.settings, "ERROR": str(code)})


def build_library(directory: Path) -> Path:
    """Compile the fake library into `directory`, to be put in LD_LIBRARY_PATH before the real driver's."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        message = "gcc is needed to build the fake NVML library: apt-get install gcc libc6-dev"
        raise RuntimeError(message)
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{LIBRARY}"]
    subprocess.run([compiler, *flags, "-o", str(directory / LIBRARY), str(SOURCE)], check=True, timeout=120)
    return directory


def describe_machine(
    library: Path,
    cards: Sequence[Card] = (),
    *,
    driver: str = "550.163.01",
    cuda: int = 12040,
    **settings: str,
) -> dict[str, str]:
    """Return the environment variables that describe this machine; `settings` are further ones: INIT="9"."""
    variables = {
        "LD_LIBRARY_PATH": str(library),
        "NVML_DRIVER": driver,
        "NVML_CUDA": str(cuda),
        "NVML_GPUS": str(len(cards)),
        **{f"NVML_{key}": value for key, value in settings.items()},
    }
    for index, card in enumerate(cards):
        variables |= card.variables(index)
    return variables
