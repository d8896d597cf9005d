"""Choosing the device of a job or an endpoint: what NVML reports, confirmed by a first op on each GPU."""

from __future__ import annotations

from backends.cuda_compat import restart_with_compat
from backends.engines.tensorflow_engine import try_first_op
from backends.tensorflow_build import read_build
from tandem.errors import UserError
from tandem.runtime import devices
from tandem.runtime.devices import Decision


def choose_device(wanted: str, visible: str | None) -> Decision:
    """Return the device to use; a GPU whose first op fails is replaced by the CPU.

    `wanted` is auto, gpu or cpu; `visible` is CUDA_VISIBLE_DEVICES, if set. No framework is imported here.
    Raises `UserError` if `wanted` is gpu and no GPU can be used.
    """
    build = read_build()
    restart_with_compat(build)
    decision = devices.decide(devices.probe(), build, wanted, visible)
    fault = try_first_op(decision)
    if fault is None:
        return decision
    reason = f"the first op failed on {decision.reason}: {fault}"
    if wanted == "gpu":
        raise UserError(f"TANDEM_DEVICE=gpu, but {reason}")
    return Decision("cpu", reason)
