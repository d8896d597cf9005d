"""Where a job or an endpoint computes: NVML's word, tried once, before any framework is imported."""

from __future__ import annotations

from backends.cuda_compat import enter_compat
from backends.engines.tensorflow_engine import try_first_op
from backends.tensorflow_build import read_build
from tandem.errors import UserError
from tandem.runtime import devices
from tandem.runtime.devices import Decision


def choose_device(wanted: str, visible: str | None) -> Decision:
    """Decide on a device and try a GPU's first op; where that fails, continue on the CPU and say so.

    `wanted` is auto, gpu or cpu, and `visible` the CUDA_VISIBLE_DEVICES already set, if any.
    Raises `UserError` when `wanted` is gpu and no GPU can be used.
    """
    build = read_build()
    enter_compat(build)
    decision = devices.decide(devices.probe(), build, wanted, visible)
    fault = try_first_op(decision)
    if fault is None:
        return decision
    reason = f"the first op failed on {decision.reason}: {fault}"
    if wanted == "gpu":
        raise UserError(f"TANDEM_DEVICE=gpu, but {reason}")
    return Decision("cpu", reason)
