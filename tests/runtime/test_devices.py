"""The probe with the real pynvml over a stand-in libnvidia-ml.so.1, and the decision from its result."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvml.machine import (
    A10G,
    CUT_H100,
    H100,
    K80,
    T4,
    V100,
    Card,
    build_library,
    describe_machine,
    lose,
)
from tandem.errors import UserError
from tandem.runtime.devices import Build, Decision, Gpu, Probe, decide, probe

PROGRAM = Path(__file__).resolve().parents[2] / "program"
CUDA_12 = Build("TensorFlow 2.21.0", "12.5.1", ("sm_60", "sm_70", "sm_80", "sm_89", "compute_90"))
CUDA_11 = Build("TensorFlow 2.14.1", "11.8", ("sm_35", "sm_50", "sm_60", "sm_70", "sm_75", "compute_80"))
CUDA_13 = Build("TensorFlow 9.9", "13.0", ("sm_75", "compute_120"))
NO_CUDA = Build("TensorFlow 2.21.0", None)
ENDPOINT, TRANSFORM = "InferenceAmiVersion=", "TransformAmiVersion="

PROBE = """
import dataclasses, json, os, sys
from backends.tensorflow_build import read_build
from tandem.runtime.devices import Build, decide, probe

import pynvml
for name in os.environ.get("BYTES", "").split():
    # before 11.525 these functions did not decode the C library's bytes
    setattr(pynvml, name, getattr(pynvml, name).__wrapped__)
seen = probe()
again = probe()
read_build()
build = Build(**json.loads(os.environ["BUILD"]))
decision = decide(seen, build, visible=os.environ.get("CUDA_VISIBLE_DEVICES"))
frameworks = {"tensorflow", "keras", "openvino", "torch", "jax"} & set(sys.modules)
print(json.dumps({
    "probe": dataclasses.asdict(seen),
    "same": seen == again,
    "decision": decision.as_dict(),
    "environment": decision.environment(),
    "frameworks": sorted(frameworks),
}))
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The folder of the stand-in NVML library; fails without a C compiler."""
    return build_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def look(library, tmp_path):
    """`look(cards, driver=…)` probes that host in a fresh process: (Probe, Decision as plain data)."""

    def run(cards=(), *, build=CUDA_12, variables=None, **machine):
        calls = tmp_path / "calls"
        environ = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        environ |= describe_machine(library, cards, CALLS=str(calls), **machine)
        environ |= {"PYTHONPATH": str(PROGRAM), "BUILD": json.dumps(vars(build)), **(variables or {})}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", PROBE],
            env=environ,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        output = json.loads(done.stdout)
        assert output["same"], "a second probe in the process must see the same"
        assert output["frameworks"] == [], "a framework was imported before the device was chosen"
        made = calls.read_text().split() if calls.exists() else []
        assert made in ([], ["init", "shutdown"] * 2), "NVML was left open"
        reported = output["probe"]
        seen = Probe(
            gpus=tuple(Gpu(**{**gpu, "capability": tuple(gpu["capability"])}) for gpu in reported["gpus"]),
            lost=tuple(reported["lost"]),
            driver_version=reported["driver_version"],
            cuda_version=reported["cuda_version"] and tuple(reported["cuda_version"]),
            fault=reported["fault"],
        )
        return seen, {**output["decision"], "environment": output["environment"]}

    return run


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (4, "NoPermission", "may not open the NVIDIA device files"),
        (9, "DriverNotLoaded", "kernel driver is not loaded"),
        (12, "LibraryNotFound", "no NVIDIA driver library"),
        (18, "LibRmVersionMismatch", "start a new one"),
        (999, "Unknown", "Unknown Error"),
        (777, "NVMLError", "an error of the stand-in"),
    ],
)
def test_a_failing_nvml_means_cpu_with_its_error_in_the_reason(look, code, kind, words):
    seen, decision = look([T4], INIT=str(code))
    assert seen.gpus == ()
    assert f"(NVML {kind})" in seen.fault
    assert words in seen.fault
    assert decision["device"] == "cpu"
    assert decision["reason"] == seen.fault
    assert decision["environment"] == {"CUDA_VISIBLE_DEVICES": "-1"}


def test_a_missing_driver_library_means_cpu(look, tmp_path):
    """An unreadable libnvidia-ml.so.1 comes first, so the test passes on hosts with a driver too."""
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"")
    seen, decision = look(variables={"LD_LIBRARY_PATH": str(tmp_path)})
    assert "(NVML LibraryNotFound)" in seen.fault
    assert decision["device"] == "cpu"
    assert decision["reason"] == seen.fault


def test_a_driver_without_gpus_means_cpu(look):
    seen, decision = look([])
    assert (
        seen.fault
        == decision["reason"]
        == ("the NVIDIA driver shows no GPU to this container (NVML counts 0)")
    )
    assert seen.driver_version == "550.163.01"
    assert decision["device"] == "cpu"


def test_an_nvml_that_cannot_count_its_gpus_means_cpu(look):
    seen, decision = look([T4], COUNT_ERROR="999")
    assert "(NVML Unknown)" in seen.fault
    assert decision["device"] == "cpu"


def test_an_absent_pynvml_means_cpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    seen = probe()
    assert seen.gpus == ()
    assert "install nvidia-ml-py" in seen.fault
    assert decide(seen, CUDA_12).reason == seen.fault


def test_the_reason_names_the_image_that_runs_a_k80(look):
    """Driver 470 is the last for a K80, so a newer host does not help."""
    seen, decision = look([K80], driver="470.256.02", cuda=11040)
    assert seen == Probe(
        gpus=(Gpu("Tesla K80", "GPU-00000000-aaaa-bbbb-cccc-dddddddddddd", 11441 << 20, (3, 7)),),
        driver_version="470.256.02",
        cuda_version=(11, 4),
    )
    assert decision["device"] == "cpu"
    assert decision["reason"] == (
        "TensorFlow 2.21.0 (sm_60 sm_70 sm_80 sm_89 compute_90) has no kernels for "
        "1 x Tesla K80 (capability 3.7): use an image built with CUDA=11"
    )


def test_a_k80_computes_in_the_cuda_11_image(look):
    _, decision = look([K80] * 8, driver="470.256.02", cuda=11040, build=CUDA_11)
    assert decision["device"] == "gpu"
    assert len(decision["gpus"]) == 8
    assert decision["precision"] == "float32"


@pytest.mark.parametrize(
    ("card", "precision", "capability"),
    [(V100, "float16", "7.0"), (T4, "float16", "7.5"), (A10G, "bfloat16", "8.6"), (H100, "bfloat16", "9.0")],
)
def test_a_gpu_with_kernels_and_a_new_enough_driver_computes(look, card, precision, capability):
    seen, decision = look([card], driver="580.65.06", cuda=13000)
    assert seen.cuda_version == (13, 0)
    assert decision["device"] == "gpu"
    assert decision["precision"] == precision
    assert decision["gpus"][0]["capability"] == capability
    assert decision["environment"] == {"CUDA_VISIBLE_DEVICES": seen.gpus[0].uuid}
    assert card.name in decision["reason"]
    assert "driver 580.65.06 (CUDA 13.0)" in decision["reason"]
    assert "TensorFlow 2.21.0 (CUDA 12.5.1)" in decision["reason"]


def test_an_old_driver_means_cpu_naming_both_versions_and_the_remedies(look):
    _, decision = look([T4], driver="470.256.02", cuda=11040)
    assert decision["device"] == "cpu"
    for words in ("470.256.02", "CUDA 11.4", "CUDA 12.5.1", "525", ENDPOINT, TRANSFORM, "CUDA=11"):
        assert words in decision["reason"]


def test_the_cuda_11_image_computes_on_an_old_driver(look):
    _, decision = look([T4], driver="470.256.02", cuda=11040, build=CUDA_11)
    assert decision["device"] == "gpu"


def test_four_gpus_are_used_by_uuid_and_can_be_pinned_one_by_one(look):
    seen, decided = look([A10G] * 4)
    uuids = [gpu.uuid for gpu in seen.gpus]
    assert len(set(uuids)) == 4
    assert decided["environment"] == {"CUDA_VISIBLE_DEVICES": ",".join(uuids)}
    assert decided["reason"].startswith("4 x NVIDIA A10G (capability 8.6)")
    decision = decide(seen, CUDA_12)
    assert [decision.environment(gpu=index) for index in range(4)] == [
        {"CUDA_VISIBLE_DEVICES": uuid} for uuid in uuids
    ]


def test_a_lost_gpu_does_not_hide_the_others(look):
    seen, decision = look([A10G, A10G, lose(A10G), A10G])
    assert [gpu.uuid[:12] for gpu in seen.gpus] == ["GPU-00000000", "GPU-00000001", "GPU-00000003"]
    assert seen.lost == ("GPU 2: GPU is lost (NVML GpuIsLost)",)
    assert seen.fault is None
    assert decision["device"] == "gpu"
    assert len(decision["gpus"]) == 3
    assert decision["reason"].endswith("; GPU 2: GPU is lost (NVML GpuIsLost)")


def test_a_gpu_lost_during_the_probe_does_not_hide_the_others(look):
    failing = Card(A10G.name, A10G.capability, A10G.mebibytes, {"NAME_ERROR": "999"})
    seen, _ = look([failing, A10G])
    assert [gpu.uuid[:12] for gpu in seen.gpus] == ["GPU-00000001"]
    assert seen.lost == ("GPU 0: Unknown Error (NVML Unknown)",)


def test_only_lost_gpus_mean_cpu_with_each_cause(look):
    _, decision = look([lose(T4), lose(T4, code=4)])
    assert decision["device"] == "cpu"
    assert decision["reason"] == (
        "GPU 0: GPU is lost (NVML GpuIsLost); "
        "GPU 1: this process may not open the NVIDIA device files (NVML NoPermission)"
    )


def test_a_gpu_with_an_undecodable_name_does_not_hide_the_others(look):
    seen, _ = look([Card(os.fsdecode(b"\xff\xfe"), "8.6", 1), A10G])
    assert [gpu.name for gpu in seen.gpus] == ["NVIDIA A10G"]
    assert len(seen.lost) == 1


def test_bytes_from_an_old_pynvml_are_decoded(look):
    """Before 11.525 pynvml returned the C library's bytes, as its undecorated functions do here."""
    questions = "nvmlDeviceGetName nvmlDeviceGetUUID nvmlSystemGetDriverVersion"
    seen, decision = look([T4], variables={"BYTES": questions})
    assert seen.gpus[0].name == "Tesla T4"
    assert seen.gpus[0].uuid == "GPU-00000000-aaaa-bbbb-cccc-dddddddddddd"
    assert seen.driver_version == "550.163.01"
    assert decision["device"] == "gpu"


def test_mig_devices_replace_their_gpu(look):
    seen, decision = look([CUT_H100, H100], driver="580.65.06", cuda=13000)
    assert seen.gpus[:2] == (
        Gpu(
            "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
            "MIG-00000000-1111-2222-3333-444444444444",
            40320 << 20,
            (9, 0),
        ),
        Gpu(
            "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
            "MIG-22222222-1111-2222-3333-444444444444",
            9984 << 20,
            (9, 0),
        ),
    )
    assert [gpu.uuid[:3] for gpu in seen.gpus] == ["MIG", "MIG", "GPU"]
    assert seen.lost == ()
    assert decision["device"] == "gpu"


def test_a_gpu_with_mig_mode_disabled_is_used_whole(look):
    seen, _ = look([Card(H100.name, H100.capability, H100.mebibytes, {"MIG_OFF": "1"})])
    assert [gpu.uuid[:3] for gpu in seen.gpus] == ["GPU"]


def test_mig_mode_without_a_mig_device_means_cpu(look):
    seen, decision = look([Card(H100.name, H100.capability, H100.mebibytes, {"MIG": "7"})])
    assert seen.gpus == ()
    assert decision["device"] == "cpu"
    assert "MIG mode" in decision["reason"]


def test_a_failing_shutdown_keeps_the_result(look):
    seen, _ = look([T4], SHUTDOWN="1")
    assert len(seen.gpus) == 1


def test_the_choice_respects_a_visible_list_that_is_already_set(look):
    """NVML ignores the variable, so the probe sees all GPUs and the decision narrows them."""
    seen, decision = look([A10G] * 4, variables={"CUDA_VISIBLE_DEVICES": "2"})
    assert len(seen.gpus) == 4
    assert decision["environment"] == {"CUDA_VISIBLE_DEVICES": seen.gpus[2].uuid}


@pytest.mark.gpu
def test_a_real_gpu_is_found_and_described():
    version = Path("/proc/driver/nvidia/version")
    if not version.exists():
        pytest.skip("no NVIDIA driver on this machine (/proc/driver/nvidia/version is missing)")
    seen = probe()
    assert seen.fault is None
    assert seen.driver_version in version.read_text()
    assert seen.gpus
    for gpu in seen.gpus:
        assert gpu.uuid.startswith(("GPU-", "MIG-"))
        assert gpu.memory_bytes > 1 << 30
        assert gpu.capability >= (3, 5)


def make_probe(*capabilities, driver="550.163.01", cuda=(12, 4), lost=()):
    gpus = tuple(
        Gpu(f"card {index}", f"GPU-{index}-x", 1 << 34, own) for index, own in enumerate(capabilities)
    )
    return Probe(gpus, lost=lost, driver_version=driver, cuda_version=cuda)


def test_only_usable_gpus_are_used_and_the_others_are_named():
    decision = decide(make_probe((3, 7), (7, 0), (8, 6)), CUDA_12)
    assert [gpu.capability for gpu in decision.gpus] == [(7, 0), (8, 6)]
    assert decision.environment() == {"CUDA_VISIBLE_DEVICES": "GPU-1-x,GPU-2-x"}
    assert decision.precision == "float16", "the least capable usable GPU rules"
    assert "no kernels for 1 x card 0 (capability 3.7)" in decision.reason


@pytest.mark.parametrize(
    ("driver", "cuda", "build", "device"),
    [
        ("450.80.02", (11, 0), CUDA_11, "gpu"),
        ("450.51.06", (11, 0), CUDA_11, "cpu"),
        ("470.256.02", (11, 4), CUDA_11, "gpu"),
        ("470.256.02", (11, 4), CUDA_12, "cpu"),
        ("520.61.05", (11, 8), CUDA_12, "cpu"),
        ("525.60.13", (12, 0), CUDA_12, "gpu"),
        ("535.183.01", (12, 2), CUDA_12, "gpu"),
        ("580.65.06", (13, 0), CUDA_12, "gpu"),
        ("575.57.08", (12, 9), CUDA_13, "cpu"),
        ("580.65.06", (13, 0), CUDA_13, "gpu"),
        ("470.256.02", (12, 5), CUDA_12, "gpu"),  # NVIDIA's forward compatibility package is in use
        (None, (12, 4), CUDA_12, "gpu"),
        (None, (11, 4), CUDA_12, "cpu"),
        ("525.60.13", None, CUDA_12, "gpu"),
        ("470.256.02", None, CUDA_12, "cpu"),
        ("600.1", (13, 2), Build("F", "14.0"), "cpu"),
        ("700.1", (14, 0), Build("F", "14.1"), "gpu"),
    ],
)
def test_the_driver_must_be_new_enough_for_the_build(driver, cuda, build, device):
    assert decide(make_probe((7, 5), driver=driver, cuda=cuda), build).device == device


@pytest.mark.parametrize(
    ("driver", "cuda", "build", "offered", "withheld"),
    [
        ("470.256.02", (11, 4), CUDA_12, [ENDPOINT, TRANSFORM, "an image built with CUDA=11"], []),
        ("440.33.01", (10, 2), CUDA_12, [ENDPOINT, TRANSFORM], ["CUDA=11"]),
        ("440.33.01", (10, 2), CUDA_11, ["450.80.02", "a host with a newer driver"], ["CUDA=11"]),
        ("535.183.01", (12, 2), CUDA_13, [f"{ENDPOINT}al2023-ami-sagemaker-inference-gpu-4-1"], [TRANSFORM]),
    ],
)
def test_the_reason_names_remedies_for_an_old_driver(driver, cuda, build, offered, withheld):
    reason = decide(make_probe((7, 5), driver=driver, cuda=cuda), build).reason
    assert driver in reason
    assert build.cuda_version in reason
    assert all(words in reason for words in offered)
    assert not any(words in reason for words in withheld)


@pytest.mark.parametrize(
    ("capability", "targets", "device"),
    [
        ((3, 5), ("sm_35",), "gpu"),
        ((3, 7), ("sm_35",), "gpu"),
        ((3, 0), ("sm_35",), "cpu"),
        ((8, 6), ("sm_80",), "gpu"),
        ((8, 0), ("sm_86",), "cpu"),
        ((9, 0), ("sm_80",), "cpu"),
        ((9, 0), ("compute_80",), "gpu"),
        ((12, 0), ("sm_60", "compute_90"), "gpu"),
        ((8, 9), ("compute_90",), "cpu"),
        ((10, 3), ("sm_100",), "gpu"),
        ((12, 0), ("sm_100",), "cpu"),
        ((9, 0), ("gfx90a",), "cpu"),
        ((1, 0), (), "gpu"),  # an unknown build: the first operation shows it
    ],
)
def test_native_code_runs_on_its_major_version_and_ptx_on_all_later_ones(capability, targets, device):
    assert decide(make_probe(capability), Build("F", "12.4", targets)).device == device


@pytest.mark.parametrize(
    ("capability", "build", "remedy"),
    [
        ((3, 7), CUDA_12, "an image built with CUDA=11"),
        ((5, 2), CUDA_12, "an image built with CUDA=11"),
        ((3, 0), CUDA_12, "another instance type"),
        ((3, 0), CUDA_11, "another instance type"),
        ((9, 0), Build("F", "12.4", ("sm_80",)), "another instance type"),
    ],
)
def test_the_reason_names_a_remedy_for_a_gpu_without_kernels(capability, build, remedy):
    assert decide(make_probe(capability), build).reason.endswith(f"use {remedy}")


@pytest.mark.parametrize(
    ("capability", "cuda", "says_ptx", "says_older"),
    [
        ((8, 9), (12, 2), False, False),
        ((9, 0), (12, 5), True, False),
        ((9, 0), (12, 2), True, True),
        ((9, 0), None, True, False),
    ],
)
def test_the_reason_warns_of_ptx_and_of_a_driver_too_old_for_it(capability, cuda, says_ptx, says_older):
    decision = decide(make_probe(capability, cuda=cuda), CUDA_12)
    assert decision.device == "gpu"
    assert ("PTX" in decision.reason) is says_ptx
    assert ("older than CUDA 12.5.1" in decision.reason) is says_older


def test_without_a_gpu_framework_the_idle_gpus_are_named():
    assert decide(Probe(fault="x"), None).reason == "no GPU framework is installed here"
    assert decide(make_probe((8, 6)), None).reason == (
        "no GPU framework is installed here: use a GPU image for 1 x card 0 (capability 8.6)"
    )
    assert decide(Probe(fault="x"), NO_CUDA).reason == "TensorFlow 2.21.0 is built without CUDA"
    assert "card 0" in decide(make_probe((8, 6)), NO_CUDA).reason


@pytest.mark.parametrize(
    ("visible", "indexes"),
    [
        (None, [0, 1, 2]),
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        ("GPU-1-x", [1]),
        ("GPU-1,GPU-2", [1, 2]),
        ("1,-1,2", [1]),
        ("1,3,2", [1]),
        ("1,1", [1]),
        ("0,GPU-0", [0]),
        ("GPU-", []),  # the beginning of several
        ("MIG-1", []),
        ("0,,1", [0]),
        ("", []),
        ("-1", []),
        ("none", []),
    ],
)
def test_a_visible_list_is_read_as_cuda_reads_it(visible, indexes):
    decision = decide(make_probe((7, 0), (7, 5), (8, 6)), CUDA_12, visible=visible)
    assert [gpu.uuid for gpu in decision.gpus] == [f"GPU-{index}-x" for index in indexes]
    if not indexes:
        assert decision.device == "cpu"
        assert decision.reason.startswith(f"CUDA_VISIBLE_DEVICES={visible!r} hides 1 x card 0")
        assert decision.environment() == {"CUDA_VISIBLE_DEVICES": "-1"}


def test_cpu_can_be_requested_although_there_is_a_gpu():
    assert decide(make_probe((8, 6)), CUDA_12, "cpu") == Decision("cpu", "requested by TANDEM_DEVICE=cpu")


def test_a_requested_gpu_that_cannot_be_used_is_an_error_with_the_reason():
    with pytest.raises(UserError, match="TANDEM_DEVICE=gpu, but no GPU can be used: driver 470.256.02"):
        decide(make_probe((7, 5), driver="470.256.02", cuda=(11, 4)), CUDA_12, "gpu")
    with pytest.raises(UserError, match="no GPU framework is installed here"):
        decide(make_probe((7, 5)), None, "gpu")


def test_any_other_value_than_auto_gpu_or_cpu_is_an_error():
    with pytest.raises(UserError, match="TANDEM_DEVICE is 'GPU'; expected auto, gpu or cpu"):
        decide(make_probe((7, 5)), CUDA_12, "GPU")


def test_the_manifest_gets_plain_json():
    decision = decide(make_probe((8, 6)), CUDA_12)
    assert json.loads(json.dumps(decision.as_dict())) == {
        "device": "gpu",
        "reason": decision.reason,
        "gpus": [{"name": "card 0", "uuid": "GPU-0-x", "memory_bytes": 1 << 34, "capability": "8.6"}],
        "precision": "bfloat16",
    }
    assert decide(Probe(fault="x"), None).as_dict()["gpus"] == []


names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)
capabilities = st.tuples(st.integers(1, 13), st.integers(0, 9))
versions = st.builds("{}.{}".format, st.integers(1, 999), st.integers(0, 299))
gpus = st.builds(Gpu, names, names.map("GPU-{}".format), st.integers(0, 1 << 40), capabilities)
probes = st.builds(
    Probe,
    st.lists(gpus, max_size=4, unique_by=lambda gpu: gpu.uuid).map(tuple),
    st.lists(names, max_size=2).map(tuple),
    st.none() | versions | st.just(""),
    st.none() | st.tuples(st.integers(9, 14), st.integers(0, 9)),
    st.none() | names,
)
targets = st.builds(
    lambda kind, own: f"{kind}_{own[0]}{own[1]}", st.sampled_from(["sm", "compute"]), capabilities
)
builds = st.none() | st.builds(
    Build, names, st.none() | versions, st.lists(targets | names, max_size=4).map(tuple)
)
entries = st.sampled_from(["0", "1", "9", "-1", "", "GPU-", "GPU-a", "²"]) | names
visibles = st.none() | st.lists(entries, max_size=3).map(",".join)


@settings(deadline=None, max_examples=200)
@given(probes, builds, visibles)
def test_a_decision_is_always_made_and_is_consistent(seen, build, visible):
    decision = decide(seen, build, visible=visible)
    assert decision.reason
    assert "\n" not in decision.reason
    json.dumps(decision.as_dict())
    assert set(decision.gpus) <= set(decide(seen, build).gpus), "a visible list never widens"
    if decision.device == "gpu":
        assert decision.gpus
        assert set(decision.gpus) <= set(seen.gpus)
        assert decision.environment() == {"CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in decision.gpus)}
        assert decide(seen, build, "gpu", visible) == decision
        widest = {"float32": (0, 0), "float16": (7, 0), "bfloat16": (8, 0)}[decision.precision]
        assert all(gpu.capability >= widest for gpu in decision.gpus)
    else:
        assert decision.gpus == ()
        assert decision.precision == "float32"
        assert decision.environment() == decision.environment(gpu=0) == {"CUDA_VISIBLE_DEVICES": "-1"}
        with pytest.raises(UserError):
            decide(seen, build, "gpu", visible)
    assert decide(seen, build, "cpu", visible).device == "cpu"
