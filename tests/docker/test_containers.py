"""The images at work: train, serve and predict in containers, started and stopped as the platform does it."""

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

OWNER = 4321  # nobody's number: what belongs to it does so because it was given
OFFLINE = ["--network", "none"]
READ_ONLY = ["--read-only", "--tmpfs", "/tmp"]
NON_ROOT = ["--user", "12345:12345"]
RESTRICTIONS = pytest.mark.parametrize(
    "options", [OFFLINE, READ_ONLY, NON_ROOT, [*OFFLINE, *READ_ONLY, *NON_ROOT]], ids=" ".join
)
EVERY = pytest.mark.parametrize("name", NAMES)
EVERY_TRAINING = pytest.mark.parametrize("name", TRAINING)
#: Between two images on one machine; the golden answers' own tolerance is 0.005.
LARGEST_DIFFERENCE = 1e-4


@pytest.fixture(scope="module")
def engine():
    need_engine()


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A miniature /opt/ml with the handwritten digits."""
    folder = tmp_path_factory.mktemp("sample")
    shutil.copytree(ROOT / "local_test" / "test_dir" / "input" / "config", folder / "input" / "config")
    digits.write_digits(folder)
    return folder


@pytest.fixture(scope="module")
def trained(sample, tmp_path_factory):
    """`trained(name)` is a miniature /opt/ml after local_test/train.sh with that image."""

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
    """`answers(trained, serving, backend)` are the probabilities of all held-out digits, (n, 10)."""
    pictures = sorted((sample / digits.HELD_OUT).glob("*/*.png"))

    @functools.cache
    def ask(trainer, server, backend="auto"):
        options = [*mount(trained(trainer) / "model"), "--env", f"BACKEND={backend}"]
        with Container(build(server), options) as container:
            return container.wait_until_healthy().predict(pictures)

    ask.truth = np.array([int(path.parent.name) for path in pictures])
    return ask


def mount(model):
    return ["--volume", f"{model}:/opt/ml/model:ro"]


def prepare(sample, folder, **hyperparameters):
    """Give options of `docker run` with a job's folders, writable where the platform lets a job write."""
    config = folder / "config"
    shutil.copytree(sample / "input" / "config", config)
    (config / "hyperparameters.json").write_text(json.dumps({"image_size": "16", **hyperparameters}))
    options = ["--volume", f"{config}:/opt/ml/input/config:ro"]
    options += ["--volume", f"{sample / 'input' / 'data'}:/opt/ml/input/data:ro"]
    for place in ("model", "output"):
        (folder / place).mkdir()
        (folder / place).chmod(0o777)
        options += ["--volume", f"{folder / place}:/opt/ml/{place}"]
    return options


@EVERY_TRAINING
def test_what_it_trains_it_serves(trained, answers, name):
    """And the files on the host belong to whom the folder belongs to."""
    model = trained(name) / "model"
    assert {"golden.npz", "manifest.json", "model.h5", "openvino"} == {path.name for path in model.iterdir()}
    assert {path.stat().st_uid for path in trained(name).rglob("*") if "input" not in path.parts} == {OWNER}
    accuracy = np.mean(answers(name, name).argmax(axis=1) == answers.truth)
    assert accuracy >= 0.97


@pytest.mark.parametrize("trainer", TRAINING)
def test_a_model_of_each_is_served_by_each(answers, trainer):
    """With the same answers in all images, and with TensorFlow where it was trained (-rP shows them)."""
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
def test_training_keeps_to_what_the_platform_allows(sample, tmp_path, options):
    done = run(build("cpu"), "train", options=[*options, *prepare(sample, tmp_path, epochs="1")])
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "model" / "model.h5").exists()


@EVERY_TRAINING
def test_training_keeps_to_all_of_it_in_every_image(sample, tmp_path, name):
    """Offline, on a read-only root file system, as some user; and with no command at all it trains."""
    options = [*OFFLINE, *READ_ONLY, *NON_ROOT, *prepare(sample, tmp_path, epochs="1")]
    done = run(build(name), options=options)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "model" / "openvino" / "model.xml").exists()


@RESTRICTIONS
def test_serving_keeps_to_what_the_platform_allows(trained, options):
    with Container(build("cpu"), [*options, *mount(trained("cpu") / "model")]) as container:
        assert container.wait_until_healthy().stop() == 0


@EVERY
def test_serving_keeps_to_all_of_it_in_every_image(trained, name):
    """Offline, on a read-only root file system, as some user; and it writes nowhere but in /tmp."""
    options = [*OFFLINE, *READ_ONLY, *NON_ROOT, *mount(trained("cpu") / "model")]
    with Container(build(name), options) as container:
        container.wait_until_healthy()
        assert container.stop() == 0, container.log
        assert "Traceback" not in container.log


@EVERY
def test_serving_without_restrictions_changes_no_file_outside_tmp(trained, name):
    """So neither caches nor compiled Python grow in the container."""
    with Container(build(name), mount(trained("cpu") / "model")) as container:
        container.wait_until_healthy()
        changes = [line.split()[1] for line in docker("diff", container.id).stdout.splitlines()]
        assert [
            path for path in changes if not path.startswith("/tmp") and path not in {"/opt", "/opt/ml"}
        ] == [path for path in changes if path == "/opt/ml/model"]


@EVERY_TRAINING
def test_a_stopped_training_keeps_its_model(sample, tmp_path, name):
    options = prepare(sample, tmp_path, epochs="1000")
    with Container(build(name), options, ["train"]) as container:
        container.wait_for_log("epoch=1 ")
        assert container.stop() == 0, container.log
        assert (tmp_path / "model" / "manifest.json").exists()
        assert not (tmp_path / "output" / "failure").exists()


@EVERY
def test_a_stopped_server_ends_well(trained, name):
    with Container(build(name), mount(trained("cpu") / "model")) as container:
        container.wait_until_healthy()
        assert container.stop() == 0, container.log


def test_the_serve_image_says_that_it_cannot_train(sample, tmp_path):
    done = run(build("serve"), "train", options=prepare(sample, tmp_path, epochs="1"))
    assert done.returncode == 1
    assert "tensorflow" in (tmp_path / "output" / "failure").read_text().lower()


def keep_model_alone(source, folder):
    shutil.copy(source / "model" / "model.h5", folder / "model.h5")
    return mount(folder)


def save_small_model(folder, image):
    """Have an image write a model.h5 whose layers are alike in Keras 2 and 3."""
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
    """Keras 2 reads no model.h5 of Keras 3, and Keras 3 none of Keras 2 with a model inside a model."""
    done = run(build(server), "serve", options=keep_model_alone(trained(trainer), tmp_path))
    assert done.returncode
    writer = "3" if trainer == "cpu" else "2"
    assert f"model.h5 cannot be loaded: Keras {writer}." in done.stdout
    assert f"or use an image with Keras {writer}" in done.stdout


def test_keras_2_does_not_run_the_code_of_a_model_file(tmp_path):
    """It has no safe mode for HDF5 files, so the check is ours."""
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
