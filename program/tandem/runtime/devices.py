"""The choice of a device: a probe of the GPUs with NVML, and a decision from its result."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tandem.errors import UserError
from tandem.runtime import cuda

# SageMaker's hosts with a driver for each CUDA major version:
# docs.aws.amazon.com/sagemaker/latest/dg/inference-gpu-drivers.html
NEWER_HOSTS = {
    12: "InferenceAmiVersion=al2-ami-sagemaker-inference-gpu-3-1 for an endpoint, "
    "TransformAmiVersion=al2-ami-sagemaker-batch-gpu-535 for batch transform",
    13: "InferenceAmiVersion=al2023-ami-sagemaker-inference-gpu-4-1 for an endpoint",
}
CUDA_11_IMAGE = "an image built with CUDA=11"
CUDA_11_CAPABILITY = (3, 5)

NO_DEVICES = "the NVIDIA driver shows no GPU to this container (NVML counts 0)"
EMPTY_MIG = "every GPU is in MIG mode, and none has a MIG device"
FAULTS = {
    "LibraryNotFound": "no NVIDIA driver library (libnvidia-ml.so.1) in this container: "
    "not a GPU instance, or NVIDIA_DRIVER_CAPABILITIES lacks utility",
    "DriverNotLoaded": "the NVIDIA kernel driver is not loaded",
    "NoPermission": "this process may not open the NVIDIA device files",
    "LibRmVersionMismatch": "the NVIDIA library and kernel driver differ in version: "
    "the host's driver changed under this container, so start a new one",
}


@dataclass(frozen=True)
class Gpu:
    """One GPU, or one MIG device, that its UUID pins."""

    name: str
    uuid: str
    memory_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Probe:
    """The report of NVML: the GPUs that answer, in its order, and in `lost` why others do not.

    `fault` is the reason if there is no GPU; `cuda_version` is the newest that `libcuda` supports.
    """

    gpus: tuple[Gpu, ...] = ()
    lost: tuple[str, ...] = ()
    driver_version: str | None = None
    cuda_version: tuple[int, int] | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Build:
    """The targets of a framework's build, such as `sm_80` (native code) and `compute_90` (PTX).

    `cuda_version` is None for a build without CUDA. Empty `capabilities` are unknown: any GPU is tried.
    """

    framework: str
    cuda_version: str | None
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """The device, the reason (one log line), and the precision its GPUs may mix with float32."""

    device: Literal["gpu", "cpu"]
    reason: str
    gpus: tuple[Gpu, ...] = ()
    precision: cuda.Precision = "float32"

    def environment(self, gpu: int | None = None) -> dict[str, str]:
        """Return the variables to set before a framework is imported; `gpu`, an index, pins one of `gpus`.

        Pin MIG devices: of several, CUDA uses only the first.
        """
        if self.device == "cpu":
            return {"CUDA_VISIBLE_DEVICES": "-1"}
        chosen = self.gpus if gpu is None else (self.gpus[gpu],)
        return {"CUDA_VISIBLE_DEVICES": ",".join(each.uuid for each in chosen)}

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON for the manifest."""
        gpus = [{**asdict(gpu), "capability": _dotted(gpu.capability)} for gpu in self.gpus]
        return {**asdict(self), "gpus": gpus}


def probe() -> Probe:
    """Return the GPUs that NVML reports; never raises."""
    try:
        import pynvml  # noqa: PLC0415  # the import takes 20 ms
    except ImportError:
        return Probe(fault="pynvml is not installed, so no GPU can be found: install nvidia-ml-py")
    try:
        pynvml.nvmlInit()
        try:
            return _report(pynvml)
        finally:
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return Probe(fault=_phrase(error))


def decide(probe: Probe, build: Build | None, wanted: str = "auto", visible: str | None = None) -> Decision:
    """Choose the device among those that `visible`, the CUDA_VISIBLE_DEVICES already set, allows.

    Its numbers refer to NVML's order, which is CUDA's if all GPUs are of one kind.
    Raises `UserError` when `wanted` is not auto, gpu or cpu, or is gpu and no GPU can be used.
    """
    if wanted not in ("auto", "gpu", "cpu"):
        raise UserError(f"TANDEM_DEVICE is {wanted!r}; expected auto, gpu or cpu")
    if wanted == "cpu":
        return Decision("cpu", "requested by TANDEM_DEVICE=cpu")
    decision = _choose(probe, build, visible)
    if wanted == "gpu" and decision.device == "cpu":
        raise UserError(f"TANDEM_DEVICE=gpu, but no GPU can be used: {decision.reason}")
    return decision


def _report(nvml: Any) -> Probe:
    gpus: list[Gpu] = []
    lost: list[str] = []
    count = nvml.nvmlDeviceGetCount()
    for index in range(count):
        with _collecting(nvml, lost, f"GPU {index}"):
            whole = nvml.nvmlDeviceGetHandleByIndex(index)
            capability = nvml.nvmlDeviceGetCudaComputeCapability(whole)
            for slot in _slots(nvml, whole):
                # an empty MIG slot answers NotFound
                with _collecting(nvml, lost, f"GPU {index}"), suppress(nvml.NVMLError_NotFound):
                    gpu = whole if slot is None else nvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, slot)
                    name, uuid = nvml.nvmlDeviceGetName(gpu), nvml.nvmlDeviceGetUUID(gpu)
                    memory_bytes = nvml.nvmlDeviceGetMemoryInfo(gpu).total
                    gpus.append(Gpu(_text(name), _text(uuid), memory_bytes, capability))
    driver_version = cuda_version = None
    with suppress(nvml.NVMLError, UnicodeError):
        driver_version = _text(nvml.nvmlSystemGetDriverVersion())
    with suppress(nvml.NVMLError):
        number = nvml.nvmlSystemGetCudaDriverVersion_v2()  # 12040 is 12.4
        cuda_version = (number // 1000, number % 1000 // 10)
    fault = None if gpus or lost else EMPTY_MIG if count else NO_DEVICES
    return Probe(tuple(gpus), tuple(lost), driver_version, cuda_version, fault)


def _slots(nvml: Any, whole: Any) -> Iterable[int | None]:
    """Return the MIG slots of a GPU in MIG mode, which CUDA cannot use as a whole; else None, for itself."""
    try:
        mode = nvml.nvmlDeviceGetMigMode(whole)[0]
    except nvml.NVMLError:  # most GPUs do not have this mode
        return (None,)
    is_enabled = mode == nvml.NVML_DEVICE_MIG_ENABLE
    return range(nvml.nvmlDeviceGetMaxMigDeviceCount(whole)) if is_enabled else (None,)


@contextmanager
def _collecting(nvml: Any, lost: list[str], label: str) -> Iterator[None]:
    try:
        yield
    except (nvml.NVMLError, UnicodeError) as error:
        lost.append(f"{label}: {_phrase(error)}")


def _phrase(error: Exception) -> str:
    kind = type(error).__name__.removeprefix("NVMLError_")
    return f"{FAULTS.get(kind, error)} (NVML {kind})"


def _text(value: str | bytes) -> str:
    # pynvml before 11.525 returns bytes
    return value.decode() if isinstance(value, bytes) else value


def _choose(probe: Probe, build: Build | None, visible: str | None) -> Decision:
    if build is None or build.cuda_version is None:
        return Decision("cpu", _explain_no_cuda(probe.gpus, build))
    if not probe.gpus:
        return Decision("cpu", probe.fault or "; ".join(probe.lost) or "no GPU was found")
    indexes = cuda.read_visible_devices([gpu.uuid for gpu in probe.gpus], visible)
    shown = tuple(probe.gpus[index] for index in indexes)
    if not shown:
        return Decision("cpu", f"CUDA_VISIBLE_DEVICES={visible!r} hides {_describe_gpus(probe.gpus)}")
    kernels = {gpu: cuda.find_kernels(gpu.capability, build.capabilities) for gpu in shown}
    usable = tuple(gpu for gpu in shown if kernels[gpu])
    if not usable:
        return Decision("cpu", _explain_no_kernels(shown, build, build.cuda_version))
    if not cuda.is_driver_enough(probe.driver_version, probe.cuda_version, build.cuda_version):
        return Decision("cpu", _explain_old_describe_driver(probe, build, build.cuda_version))
    facts = [
        f"{_describe_gpus(usable)}, {_describe_driver(probe)}, {build.framework} (CUDA {build.cuda_version})"
    ]
    if any(kernels[gpu] == "PTX" for gpu in usable):
        facts.append(_describe_ptx(probe, build.cuda_version))
    if left_out := [gpu for gpu in shown if not kernels[gpu]]:
        facts.append(f"no kernels for {_describe_gpus(left_out)}")
    precision = cuda.choose_precision(min(gpu.capability for gpu in usable))
    return Decision("gpu", "; ".join([*facts, *probe.lost]), usable, precision)


def _explain_no_cuda(gpus: Sequence[Gpu], build: Build | None) -> str:
    reason = f"{build.framework} is built without CUDA" if build else "no GPU framework is installed here"
    return f"{reason}: use a GPU image for {_describe_gpus(gpus)}" if gpus else reason


def _explain_no_kernels(gpus: Sequence[Gpu], build: Build, cuda_version: str) -> str:
    best = max(gpu.capability for gpu in gpus)
    is_older = all(best < capability for _, capability in cuda.parse_targets(build.capabilities))
    has_image = is_older and best >= CUDA_11_CAPABILITY and cuda.parse_version(cuda_version) >= (12,)
    remedy = CUDA_11_IMAGE if has_image else "another instance type"
    own = f"{build.framework} ({' '.join(build.capabilities)})"
    return f"{own} has no kernels for {_describe_gpus(gpus)}: use {remedy}"


def _explain_old_describe_driver(probe: Probe, build: Build, cuda_version: str) -> str:
    major = cuda.parse_version(cuda_version)[0]
    remedy = NEWER_HOSTS.get(major, "a host with a newer driver")
    if major > 11 and cuda.is_driver_enough(probe.driver_version, probe.cuda_version, "11.8"):
        remedy += f", or {CUDA_11_IMAGE}"
    minimum = cuda.MINIMUM_DRIVERS.get(major, f"for CUDA {major}")
    need = f"whose CUDA {cuda_version} needs driver {minimum} or newer"
    return f"{_describe_driver(probe)} is too old for {build.framework}, {need}: use {remedy}"


def _describe_ptx(probe: Probe, cuda_version: str) -> str:
    note = "kernels are compiled from PTX at first use"
    # if PTX is newer than the driver's compiler, loading a kernel fails with error 222
    if probe.cuda_version and probe.cuda_version < cuda.parse_version(cuda_version)[:2]:
        note += f", which may fail: the driver is older than CUDA {cuda_version}"
    return note


def _describe_driver(probe: Probe) -> str:
    own_cuda = f" (CUDA {_dotted(probe.cuda_version)})" if probe.cuda_version else ""
    return f"driver {probe.driver_version or 'of unknown version'}{own_cuda}"


def _describe_gpus(gpus: Iterable[Gpu]) -> str:
    kinds = Counter(f"{gpu.name} (capability {_dotted(gpu.capability)})" for gpu in gpus)
    return " and ".join(f"{count} x {kind}" for kind, count in kinds.items())


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
