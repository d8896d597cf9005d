"""The contents of the images that make builds."""

import json
import re
import subprocess

import pytest

from conftest import ROOT
from containers import NAMES, REPOSITORY, build, docker, find_builders, inspect, make, need_engine, run

pytestmark = [pytest.mark.image, pytest.mark.usefixtures("engine")]

GPU = ["gpu", "gpu-cuda11"]
EVERY = pytest.mark.parametrize("name", NAMES)
EVERY_GPU = pytest.mark.parametrize("name", GPU)
SOURCES = "(py|conf|html)"
MEGABYTES = {"serve": 650, "cpu": 2000}
LIST_GPUS = "import tensorflow as tf; print('GPUs:', len(tf.config.list_physical_devices('GPU')))"
FORGET = "rm /etc/ld.so.conf.d/cuda-wheels.conf && ldconfig"


@pytest.fixture(scope="module")
def engine():
    need_engine()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """Options of `docker run` that give a container the substitute for the driver."""
    folder = tmp_path_factory.mktemp("driver")
    for library in ("libcuda.so.1", "libnvidia-ml.so.1"):
        source = ROOT / "tests" / "cuda" / "driver.c"
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", folder / library, source]
        subprocess.run(command, check=True)
    return ["--volume", f"{folder}:/driver:ro", "--env", "LD_LIBRARY_PATH=/driver"]


def execute(name, command, options=()):
    """Return the output of a shell command in the image; the command must succeed."""
    done = run(build(name), "bash", "-c", command, options=options)
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


@pytest.mark.parametrize("name", MEGABYTES)
def test_the_image_is_small(name):
    assert inspect(build(name))["Size"] <= MEGABYTES[name] * 1e6


@EVERY
def test_the_image_has_the_command_and_the_labels_that_sagemaker_reads(name):
    config = inspect(build(name))["Config"]
    assert config["Cmd"] == ["serve" if name == "serve" else "train"]
    assert not config["Entrypoint"]
    revision = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    labels = config["Labels"]
    assert labels["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.revision"] == revision.stdout.strip()
    assert "org.opencontainers.image.version" in labels
    assert "org.opencontainers.image.source" in labels


@EVERY
def test_the_working_directory_is_not_in_a_search_path(name):
    """An empty entry in LD_LIBRARY_PATH or PATH would load files from the working directory."""
    variables = dict(entry.split("=", 1) for entry in inspect(build(name))["Config"]["Env"])
    for variable in ("PATH", "LD_LIBRARY_PATH"):
        assert all(variables.get(variable, "/").split(":")), variables


@EVERY
def test_any_command_runs(name):
    """Version 3 of the SageMaker SDK runs bash, chmod, python3 and pip3 in an image."""
    assert execute(name, "command -v bash chmod python3 pip3 | wc -l && pip3 check").splitlines() == [
        "4",
        "No broken requirements found.",
    ]
    assert run(build(name), "python3", "-c", "print(6 * 7)").stdout == "42\n"
    assert run(build(name), "-c", "echo in bash", options=["--entrypoint", "/bin/bash"]).stdout == "in bash\n"
    assert run(build(name), "sh", "-c", "exit 7").returncode == 7


@EVERY
def test_unneeded_files_are_removed(name):
    unwanted = [
        *("*/tensorflow/include", "*/openvino/include", "*/nvidia/*.a", "*/site-packages/numpy/*/tests"),
        *("*/openvino_telemetry/*", "*/libclang*.so*", "*/libcusolverMg.so*"),
        *("/root/.[a-z]*/*", "/tmp/*", "/var/lib/apt/lists/*", "/opt/ml"),
    ]
    paths = " -o ".join(f"-path '{pattern}'" for pattern in unwanted)
    search = f"find / -xdev \\( {paths} \\) -print; command -v gcc make git curl; true"
    assert execute(name, search) == ""


@EVERY
def test_all_python_files_are_compiled(name):
    """On a read-only root file system, Python would compile again at every start."""
    stale = (
        "import importlib.util as u, pathlib, sys, sysconfig\n"
        "roots = [pathlib.Path('/program'), *map(pathlib.Path(sysconfig.get_path('purelib')).joinpath, "
        "('numpy', 'cv2', 'openvino', 'flask', 'tensorflow', 'keras'))]\n"
        "print([str(p) for r in roots for p in r.rglob('*.py') "
        "if 'template' not in str(p) and not pathlib.Path(u.cache_from_source(p)).exists()][:9])"
    )
    assert run(build(name), "python3", "-c", stale).stdout.strip() == "[]"


@EVERY
def test_the_image_has_the_engines_of_its_kind(name):
    modules = "('tensorflow', 'keras', 'openvino', 'cv2')"
    found = f"import importlib.util as u; print([m for m in {modules} if u.find_spec(m)])"
    wanted = "['openvino', 'cv2']" if name == "serve" else "['tensorflow', 'keras', 'openvino', 'cv2']"
    assert run(build(name), "python3", "-c", found).stdout.strip() == wanted


def test_the_packages_have_the_locked_versions():
    """A package that is in several of cpu, gpu and serve has the same version in each."""
    lists = [
        {
            package["name"].lower().replace("_", "-"): package["version"]
            for package in json.loads(execute(name, "pip3 list --format json"))
        }
        for name in ("serve", "cpu", "gpu")
    ]
    serve, cpu, gpu = lists
    assert serve.items() <= cpu.items()
    assert set(cpu) - set(gpu) == {"tensorflow-cpu"}
    assert {name for name in set(cpu) & set(gpu) if cpu[name] != gpu[name]} == set()
    lock = (ROOT / "docker" / "requirements" / "serve.txt").read_text()
    assert all(f"{name}=={version} " in lock for name, version in serve.items() if name != "pip")


@EVERY_GPU
def test_tensorflow_finds_every_cuda_library_that_it_opens(driver, name):
    """TensorFlow lists a GPU only if it can open all libraries; 2.21 alone does not find cusolver."""
    assert execute(name, f'python3 -c "{LIST_GPUS}" 2>&1 | grep GPUs:', driver) == "GPUs: 1"


def test_tensorflow_by_itself_does_not_find_them(driver):
    """The reason for the test above; if this test fails, TensorFlow has fixed its RUNPATH."""
    assert execute("gpu", f'{FORGET}; python3 -c "{LIST_GPUS}" 2>&1 | grep GPUs:', driver) == "GPUs: 0"


@EVERY_GPU
def test_every_cuda_library_loads(driver, name):
    """This includes libraries that are opened late: NCCL, CUPTI and the parts of cuDNN."""
    library = "libcudnn.so.9" if name == "gpu" else "libcudnn.so.8"
    load = (
        "import ctypes, pathlib, sysconfig; "
        "found = pathlib.Path(sysconfig.get_path('purelib')).glob('nvidia/*/lib/*.so.*'); "
        "[ctypes.CDLL(path.name) for path in found]; "
        f"print(ctypes.CDLL('{library}').cudnnGetVersion())"
    )
    version = {"gpu": "92400", "gpu-cuda11": "8700"}[name]  # known to work with this TensorFlow
    assert execute(name, f'python3 -c "{load}"', driver) == version


@EVERY_GPU
def test_the_driver_comes_from_the_host(name):
    """The image has no driver and no cuda-compat, and requests the needed capabilities from the runtime."""
    variables = inspect(build(name))["Config"]["Env"]
    assert {
        "NVIDIA_VISIBLE_DEVICES=all",
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        "NVIDIA_DISABLE_REQUIRE=1",
    } <= set(variables)
    assert not [entry for entry in variables if entry.startswith("LD_LIBRARY_PATH")]
    drivers = "-name 'libcuda.so*' -o -name 'libnvidia-ml*' -o -path '*/cuda*/compat'"
    assert execute(name, f"find / -xdev \\( {drivers} \\) -print") == ""


def test_only_files_that_the_dockerfile_copies_are_sent_to_the_engine(tmp_path):
    """No model, data, git history or environment is in the build context."""
    dockerfile = "FROM debian:bookworm-slim\nCOPY . /context\n"
    image = f"{REPOSITORY}:context"
    (tmp_path / "Dockerfile").write_text(dockerfile)
    docker("build", "--file", tmp_path / "Dockerfile", "--tag", image, ROOT)
    try:
        files = run(image, "bash", "-c", "cd /context && find . -type f").stdout.split()
    finally:
        docker("image", "rm", image)
    allowed = rf"\./(docker/(install\.sh|requirements/[a-z0-9-]+\.txt)|program/(train|serve|.*\.{SOURCES}))"
    assert [path for path in files if not re.fullmatch(allowed, path)] == []
    assert "./program/train" in files


@pytest.mark.parametrize("builder", ["BuildKit", "classic"])
def test_both_builders_build_the_image(builder):
    if builder not in find_builders():
        pytest.skip(f"no docker client on this computer has the {builder} builder")
    output = make(
        "serve-image", builder=find_builders()[builder], IMAGE=REPOSITORY, TAG=f"serve-{builder.lower()}"
    )
    assert "rror" not in output.replace("No errors", "")
    assert inspect(f"{REPOSITORY}:serve-{builder.lower()}")["Config"]["Cmd"] == ["serve"]


def test_the_bill_of_materials_lists_the_installed_packages():
    build("serve")
    output = make("sbom", IMAGE=REPOSITORY, TAG="serve")
    file = ROOT / re.search(r"^sbom/\S+\.cdx\.json$", output, re.MULTILINE)[0]
    bill = json.loads(file.read_text())
    file.unlink()
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == f"{REPOSITORY}:serve"
    named = {component.get("purl", "").split("@")[0] for component in bill["components"]}
    assert {
        "pkg:pypi/openvino",
        "pkg:pypi/numpy",
        "pkg:deb/debian/libc6",
        "pkg:deb/debian/python3.11",
    } <= named


def test_make_rejects_an_unknown_cuda_version():
    done = subprocess.run(
        ["make", "-C", ROOT, "gpu-image", "CUDA=13"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode
    assert "CUDA is 13, expected 12 or 11" in done.stderr
