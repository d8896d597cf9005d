"""Reading what TensorFlow was built for, with the real build_info.py of its wheels."""

import subprocess
import sys
from pathlib import Path

import pytest

from backends.tensorflow_build import read_build
from tandem.errors import TandemError
from tandem.runtime.devices import Build

PROGRAM = Path(__file__).resolve().parents[2] / "program"

# build_info.py of the wheels for CPython 3.11 on x86-64, without its license
HEAD = '''"""Auto-generated module providing information about the build."""
import collections

build_info = collections.OrderedDict('''
TENSORFLOW_2_21_0 = (
    HEAD
    + "[('cpu_compiler', 'clang'), ('cuda_compute_capabilities', ['sm_60', 'sm_70', 'sm_80', 'sm_89', "
    + "'compute_90']), ('cuda_version', '12.5.1'), ('cudnn_version', '9'), ('is_cuda_build', True), "
    + "('is_rocm_build', False), ('is_tensorrt_build', False)])\n"
)
TENSORFLOW_2_14_1 = (
    HEAD
    + "[('cpu_compiler', '/usr/lib/llvm-16/bin/clang'), ('cuda_compute_capabilities', ['sm_35', 'sm_50', "
    + "'sm_60', 'sm_70', 'sm_75', 'compute_80']), ('cuda_version', '11.8'), ('cudnn_version', '8'), "
    + "('is_cuda_build', True), ('is_rocm_build', False), ('is_tensorrt_build', True)])\n"
)
TENSORFLOW_CPU_2_21_0 = (
    HEAD + "[('is_cuda_build', False), ('is_rocm_build', False), ('is_tensorrt_build', False)])\n"
)


@pytest.fixture
def install(tmp_path):
    """`install(build_info, tensorflow="2.21.0")` returns the path of a package that fails when imported."""

    def make(build_info, **versions):
        package = tmp_path / "tensorflow"
        (package / "python" / "platform").mkdir(parents=True)
        for folder in (package, package / "python", package / "python" / "platform"):
            (folder / "__init__.py").write_text("raise AssertionError('it was imported')\n")
        if build_info is not None:
            (package / "python" / "platform" / "build_info.py").write_text(build_info)
        for name, version in versions.items():
            info = tmp_path / f"{name}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.4\nName: {name.replace('_', '-')}\nVersion: {version}\n"
            )
        return [str(tmp_path)]

    return make


def test_the_gpu_wheel_has_a_cuda_version_and_targets(install):
    path = install(TENSORFLOW_2_21_0, tensorflow="2.21.0")
    assert read_build(path) == Build(
        "TensorFlow 2.21.0", "12.5.1", ("sm_60", "sm_70", "sm_80", "sm_89", "compute_90")
    )


def test_the_last_wheel_for_a_k80_has_a_cuda_version_and_targets(install):
    path = install(TENSORFLOW_2_14_1, tensorflow="2.14.1")
    assert read_build(path) == Build(
        "TensorFlow 2.14.1", "11.8", ("sm_35", "sm_50", "sm_60", "sm_70", "sm_75", "compute_80")
    )


def test_the_cpu_wheel_has_no_cuda(install):
    assert read_build(install(TENSORFLOW_CPU_2_21_0, tensorflow_cpu="2.21.0")) == Build(
        "TensorFlow 2.21.0", None
    )


@pytest.mark.parametrize(
    ("build_info", "framework"),
    [(TENSORFLOW_2_21_0, "TensorFlow 2.21.0"), (TENSORFLOW_CPU_2_21_0, "TensorFlow 2.20.0")],
)
def test_of_two_wheels_installed_over_each_other_the_one_in_use_is_named(install, build_info, framework):
    path = install(build_info, tensorflow="2.21.0", tensorflow_cpu="2.20.0")
    assert read_build(path).framework == framework


def test_a_distribution_of_another_name_is_read_without_a_version(install):
    assert read_build(install(TENSORFLOW_2_21_0, tf_nightly="2.22.0")).framework == "TensorFlow"


def test_without_tensorflow_there_is_no_build(tmp_path):
    assert read_build([str(tmp_path)]) is None


def test_a_folder_left_behind_by_an_uninstall_is_not_an_installation(tmp_path):
    (tmp_path / "tensorflow" / "include").mkdir(parents=True)
    assert read_build([str(tmp_path)]) is None


@pytest.mark.parametrize(
    "build_info",
    [None, "", "build_info = ", "build_info = open('x')", "build_info = dict()", "build_info = 7", "\0"],
)
def test_an_incomplete_installation_is_an_error_that_names_the_file(install, build_info):
    with pytest.raises(TandemError, match=r"incomplete: .*build_info.py.*install it again"):
        read_build(install(build_info, tensorflow="2.21.0"))


@pytest.mark.slow
def test_the_file_agrees_with_what_tensorflow_reports_when_imported():
    """Also fails when TensorFlow moves or changes the file, which is not public."""
    script = """
import sys
from backends.tensorflow_build import read_build
build = read_build()
assert "tensorflow" not in sys.modules
import tensorflow
info = tensorflow.sysconfig.get_build_info()
assert build.framework == f"TensorFlow {tensorflow.__version__}", build
assert build.cuda_version == info.get("cuda_version"), build
assert list(build.capabilities) == info.get("cuda_compute_capabilities", []), build
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROGRAM,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
