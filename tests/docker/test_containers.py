"""Train, serve and predict in containers that are started and stopped as SageMaker does it."""

import functools
import itertools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from conftest import ROOT
from containers import NAMES, TRAINING, Container, build, docker, need_engine, run

sys.path.insert(0, str(ROOT / "local_test"))
import digits

pytestmark = [pytest.mark.image, pytest.mark.usefixtures("engine")]

OWNER = 4321  # a user that does not exist: files belong to it only if their owner was changed
OFFLINE = ["--network", "none"]
READ_ONLY = ["--read-only", "--tmpfs", "/tmp"]
NON_ROOT = ["--user", "12345:12345"]
RESTRICTIONS = pytest.mark.parametrize(
    "options", [OFFLINE, READ_ONLY, NON_ROOT, [*OFFLINE, *READ_ONLY, *NON_ROOT]], ids=" ".join
)
EVERY = pytest.mark.parametrize("name", NAMES)
EVERY_TRAINING = pytest.mark.parametrize("name", TRAINING)
#: Between two images on one computer; the tolerance of the reference answers is 0.005.
LARGEST_DIFFERENCE = 1e-4


@pytest.fixture(scope="module")
def engine():
    need_engine()


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A folder to use as /opt/ml, with the handwritten digits."""
    folder = tmp_path_factory.mktemp("sample")
    shutil.copytree(ROOT / "local_test" / "test_dir" / "input" / "config", folder / "input" / "config")
    digits.write_digits(folder)
    return folder


@pytest.fixture(scope="module")
def trained(sample, tmp_path_factory):
    """`trained(name)` returns a folder used as /opt/ml after local_test/train.sh with that image."""

    @functools.cache
    def make(name):
        folder = tmp_path_factory.mktemp(f"trained-{name}")
        shutil.copytree(sample / "input", folder / "input")
        os.chown(folder, OWNER, OWNER)
        environment = {**os.environ, "TEST_DIR": str(folder)}
        subprocess.run(
            [ROOT / "local_test" / "train.sh", build(name)], env=environment, check=True, timeout=300
        )
        return folder

    return make


@pytest.fixture(scope="module")
def answers(trained, sample):
    """`answers(trainer, server, backend)` returns the probabilities of all held-out digits, (n, 10)."""
    images = sorted((sample / digits.HELD_OUT).glob("*/*.png"))

    @functools.cache
    def ask(trainer, server, backend="auto"):
        options = [*mount(trained(trainer) / "model"), "--env", f"BACKEND={backend}"]
        with Container(build(server), options) as container:
            return container.wait_until_healthy().predict(images)

    ask.truth = np.array([int(path.parent.name) for path in images])
    return ask


def mount(model):
    return ["--volume", f"{model}:/opt/ml/model:ro"]


def prepare(sample, folder, **hyperparameters):
    """Return options of `docker run` for a job's folders; only those that SageMaker makes writable are."""
    config = folder / "config"
    shutil.copytree(sample / "input" / "config", config)
    (config / "hyperparameters.json").write_text(json.dumps({"image_size": "16", **hyperparameters}))
    options = ["--volume", f"{config}:/opt/ml/input/config:ro"]
    options += ["--volume", f"{sample / 'input' / 'data'}:/opt/ml/input/data:ro"]
    for name in ("model", "output"):
        (folder / name).mkdir()
        (folder / name).chmod(0o777)
        options += ["--volume", f"{folder / name}:/opt/ml/{name}"]
    return options


@EVERY_TRAINING
def test_an_image_serves_the_model_that_it_trained(trained, answers, name):
    """The files on the host belong to the owner of the folder."""
    model = trained(name) / "model"
    assert {"golden.npz", "manifest.json", "model.h5", "openvino"} == {path.name for path in model.iterdir()}
    assert {path.stat().st_uid for path in trained(name).rglob("*") if "input" not in path.parts} == {OWNER}
    accuracy = np.mean(answers(name, name).argmax(axis=1) == answers.truth)
    assert accuracy >= 0.97


@pytest.mark.parametrize("trainer", TRAINING)
def test_a_model_of_each_image_is_served_by_each_image(answers, trainer):
    """All images, and TensorFlow in the image that trained, give the same answers (shown by -rP)."""
    given = {name: answers(trainer, name) for name in NAMES}
    given["TensorFlow"] = answers(trainer, trainer, "tensorflow")
    differences = {
        f"{one} and {other}": float(np.abs(given[one] - given[other]).max())
        for one, other in itertools.combinations(given, 2)
    }
    for pair, difference in differences.items():
        print(f"trained in {trainer}, served in {pair}: {difference:.1e}")  # noqa: T201
    assert max(differences.values()) <= LARGEST_DIFFERENCE


@RESTRICTIONS
def test_training_works_under_each_restriction_of_sagemaker(sample, tmp_path, options):
    done = run(build("cpu"), "train", options=[*options, *prepare(sample, tmp_path, epochs="1")])
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "model" / "model.h5").exists()


@EVERY_TRAINING
def test_every_image_trains_under_all_restrictions(sample, tmp_path, name):
    """Offline, on a read-only root file system, not as root, and without a command."""
    options = [*OFFLINE, *READ_ONLY, *NON_ROOT, *prepare(sample, tmp_path, epochs="1")]
    done = run(build(name), options=options)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "model" / "openvino" / "model.xml").exists()


@RESTRICTIONS
def test_serving_works_under_each_restriction_of_sagemaker(trained, options):
    with Container(build("cpu"), [*options, *mount(trained("cpu") / "model")]) as container:
        assert container.wait_until_healthy().stop() == 0


@EVERY
def test_every_image_serves_under_all_restrictions(trained, name):
    """Offline, on a read-only root file system with a writable /tmp, and not as root."""
    options = [*OFFLINE, *READ_ONLY, *NON_ROOT, *mount(trained("cpu") / "model")]
    with Container(build(name), options) as container:
        container.wait_until_healthy()
        assert container.stop() == 0, container.log
        assert "Traceback" not in container.log


@EVERY
def test_serving_without_restrictions_changes_no_file_outside_tmp(trained, name):
    """Neither caches nor compiled Python files are added to the container."""
    with Container(build(name), mount(trained("cpu") / "model")) as container:
        container.wait_until_healthy()
        changes = [line.split()[1] for line in docker("diff", container.id).stdout.splitlines()]
        assert [
            path for path in changes if not path.startswith("/tmp") and path not in {"/opt", "/opt/ml"}
        ] == [path for path in changes if path == "/opt/ml/model"]


@EVERY_TRAINING
def test_a_stopped_training_job_saves_its_model(sample, tmp_path, name):
    options = prepare(sample, tmp_path, epochs="1000")
    with Container(build(name), options, ["train"]) as container:
        container.wait_for_log("epoch=1 ")
        assert container.stop() == 0, container.log
        assert (tmp_path / "model" / "manifest.json").exists()
        assert not (tmp_path / "output" / "failure").exists()


@EVERY
def test_a_stopped_server_exits_with_0(trained, name):
    with Container(build(name), mount(trained("cpu") / "model")) as container:
        container.wait_until_healthy()
        assert container.stop() == 0, container.log


def test_the_serve_image_says_that_it_cannot_train(sample, tmp_path):
    done = run(build("serve"), "train", options=prepare(sample, tmp_path, epochs="1"))
    assert done.returncode == 1
    assert "tensorflow" in (tmp_path / "output" / "failure").read_text().lower()


def copy_bare_model(source, folder):
    shutil.copy(source / "model" / "model.h5", folder / "model.h5")
    return mount(folder)


def save_small_model(folder, image):
    """Write a model.h5, in a container, with layers that are the same in Keras 2 and 3."""
    write = (
        "import keras\n"
        "layers = [keras.layers.Conv2D(4, 3), keras.layers.Flatten(), keras.layers.Dense(3, 'softmax')]\n"
        "keras.Sequential([keras.Input((8, 8, 3)), *layers]).save('/model/model.h5')\n"
    )
    folder.chmod(0o777)
    done = run(image, "python3", "-c", write, options=["--volume", f"{folder}:/model"])
    assert done.returncode == 0, done.stdout
    return mount(folder)


def test_keras_3_loads_a_model_file_of_keras_2(tmp_path):
    with Container(build("cpu"), save_small_model(tmp_path, build("gpu-cuda11"))) as container:
        container.wait_until_healthy()


@pytest.mark.parametrize(("trainer", "server"), [("cpu", "gpu-cuda11"), ("gpu-cuda11", "cpu")])
def test_a_model_file_that_the_other_keras_cannot_load_is_explained(trained, tmp_path, trainer, server):
    """Keras 2 cannot read a model.h5 of Keras 3; Keras 3 cannot read one of Keras 2 with a nested model."""
    done = run(build(server), "serve", options=copy_bare_model(trained(trainer), tmp_path))
    assert done.returncode
    writer = "3" if trainer == "cpu" else "2"
    assert f"model.h5 cannot be loaded: Keras {writer}." in done.stdout
    assert f"or use an image with Keras {writer}" in done.stdout


def test_keras_2_does_not_run_the_code_of_a_model_file(tmp_path):
    """Keras 2 has no safe mode for HDF5 files, so Tandem checks the file."""
    tmp_path.chmod(0o777)
    write = (
        "import keras\n"
        "code = lambda x: [x, __import__('pathlib').Path('/tmp/it-ran').touch()][0]\n"
        "layers = [keras.layers.Lambda(code), keras.layers.Flatten()]\n"
        "keras.Sequential([keras.Input((8, 8, 3)), *layers]).save('/model/model.h5')\n"
    )
    options = ["--volume", f"{tmp_path}:/model"]
    done = run(build("gpu-cuda11"), "python3", "-c", write, options=options)
    assert done.returncode == 0, done.stdout
    with Container(
        build("gpu-cuda11"), mount(tmp_path), ["bash", "-c", "serve; ls /tmp/it-ran"]
    ) as container:
        docker("wait", container.id)
        assert "model.h5 cannot be loaded: it has a Lambda layer" in container.log
        assert "cannot access '/tmp/it-ran'" in container.log
