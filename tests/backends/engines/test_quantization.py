"""An int8 model is made from real rows and measured, and left out if its answers differ too much."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from backends.bundle.manifest import read_manifest, verify
from backends.bundle.writer import write_bundle
from backends.engines import quantization
from backends.engines.loader import load_engine
from tandem.errors import UserError
from tandem.runtime.devices import Decision

# Raised inside Keras 3 on TensorFlow 2.21 with NumPy 2.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

PROGRAM = Path(__file__).resolve().parents[3] / "program"
CPU = Decision("cpu", "a test")
LABELS = ("ant", "bee", "cat")
INT8 = {"openvino/int8/model.xml", "openvino/int8/model.bin"}


def draw_rows(seed, count):
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A bundle whose network separates its labels as clearly as a trained one."""
    import keras

    keras.utils.set_random_seed(7)
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((16, 16, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(16, 3, strides=2, activation="relu"),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model_dir = tmp_path_factory.mktemp("written") / "model"
    write_bundle(
        model_dir, model, labels=LABELS, preprocessing={}, golden_inputs=draw_rows(7, 20), decision=CPU
    )
    return model_dir


@pytest.fixture(scope="module")
def quantized(written, tmp_path_factory):
    model_dir = shutil.copytree(written, tmp_path_factory.mktemp("quantized") / "model")
    labels = np.zeros(40, np.int64)
    batches = [(draw_rows(9, 40)[start : start + 16], labels[start : start + 16]) for start in (0, 16, 32)]
    quantization.add_int8(model_dir, draw_rows(8, 50), iter(batches))
    return model_dir


def change_manifest(model_dir, **entries):
    path = model_dir / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_two_files_are_added_with_their_hashes_and_the_others_kept(written, quantized):
    manifest = read_manifest(quantized)
    assert names(quantized) == names(written) | INT8
    assert manifest.has_int8
    assert manifest.files.keys() - read_manifest(written).files.keys() == INT8
    assert read_manifest(written).files.items() <= manifest.files.items()
    verify(quantized, manifest)


def test_the_manifest_has_the_measurements(quantized):
    found = read_manifest(quantized).precisions["int8"]
    assert found["tolerance"] == 0.1
    assert 0 < found["largest_difference"] < 0.1
    assert found["same_labels"] >= 0.9
    assert found["ms_per_row"] > 0 < found["ms_per_row_float32"]
    assert 0 <= found["validation_accuracy"] <= 1
    assert abs(found["validation_accuracy"] - found["validation_accuracy_float32"]) <= 0.1
    assert found["validation_same_labels"] >= 0.9
    assert found["calibration_rows"] == 50


def test_the_int8_model_computes_at_int8(quantized):
    """Its weights are smaller, and its answers are close to float32's but not equal."""
    sizes = [(quantized / name).stat().st_size for name in ("openvino/int8/model.bin", "openvino/model.bin")]
    assert sizes[0] < 0.75 * sizes[1]
    rows = draw_rows(3, 12)
    reduced, exact = (
        load_engine(quantized, "openvino", CPU, 1, precision)[0].predict(rows)
        for precision in ("int8", "float32")
    )
    assert 1e-5 < np.abs(reduced - exact).max() < 0.1


def test_a_model_above_its_tolerance_is_left_out_but_its_measurements_kept(written, tmp_path, caplog):
    model_dir = shutil.copytree(written, tmp_path / "model")
    change_manifest(model_dir, precisions={"int8": {"tolerance": 1e-7}})
    quantization.add_int8(model_dir, draw_rows(8, 20), ())
    manifest = read_manifest(model_dir)
    assert names(model_dir) == names(written)
    assert not manifest.has_int8
    assert manifest.precisions["int8"]["largest_difference"] > 1e-7
    assert "the int8 model is left out: largest difference" in caplog.text
    assert load_engine(model_dir, "auto", CPU, 1)[0].name == "openvino"


def test_a_second_int8_model_replaces_the_first(quantized, tmp_path):
    model_dir = shutil.copytree(quantized, tmp_path / "model")
    quantization.add_int8(model_dir, draw_rows(8, 20), ())
    assert names(model_dir) == names(quantized)
    assert read_manifest(model_dir).precisions["int8"]["calibration_rows"] == 20
    verify(model_dir, read_manifest(model_dir))


def test_a_failure_leaves_the_bundle_unchanged(written, tmp_path, caplog):
    """The rows do not fit the model, which stands for any failure of the quantizer."""
    model_dir = shutil.copytree(written, tmp_path / "model")
    quantization.add_int8(model_dir, np.zeros((4, 3, 3, 1), np.uint8), ())
    assert "no int8 model was made" in caplog.text
    assert names(model_dir) == names(written)
    assert read_manifest(model_dir) == read_manifest(written)


def test_a_bundle_without_an_openvino_model_is_unchanged(written, tmp_path, caplog):
    model_dir = shutil.copytree(written, tmp_path / "model")
    files = {
        name: digest for name, digest in read_manifest(model_dir).files.items() if "openvino" not in name
    }
    change_manifest(model_dir, files=files)
    quantization.add_int8(model_dir, draw_rows(8, 20), ())
    assert "no OpenVINO model to quantize" in caplog.text


def test_a_missing_nncf_is_reported_before_training(monkeypatch):
    quantization.check_installed()
    find = quantization.importlib.util.find_spec
    monkeypatch.setattr(
        quantization.importlib.util, "find_spec", lambda name: None if name == "nncf" else find(name)
    )
    with pytest.raises(UserError, match="quantization is 'int8', but this image has no nncf; train in"):
        quantization.check_installed()


def test_nncf_logs_nothing_sends_nothing_and_leaves_logging_unchanged(written, tmp_path):
    """Quantizing in a new process logs one line, and opens no socket, process or file in the home folder."""
    home = tmp_path / "home"
    home.mkdir()
    model_dir = shutil.copytree(written, tmp_path / "model")
    script = """
import logging, sys
from pathlib import Path
seen = []
def watch(event, _):
    if event.startswith("socket.") or event in ("os.fork", "os.posix_spawn", "subprocess.Popen"):
        seen.append(event)
sys.addaudithook(watch)
import numpy as np
from backends.engines import quantization
logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s", stream=sys.stdout)
for name in ("asyncio", "matplotlib"):
    logging.getLogger(name).setLevel(logging.INFO)
logger_class = logging.getLoggerClass()
rows = np.random.default_rng(8).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
quantization.add_int8(Path(sys.argv[1]), rows, ())
assert seen == [], seen
assert logging.getLoggerClass() is logger_class
assert sys.modules["openvino_telemetry"] is None
found = [name for name in ("tensorflow", "torch", "keras") if name in sys.modules]
assert not found, found
"""
    clean = {
        name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")
    }
    done = subprocess.run(
        [sys.executable, "-c", script, model_dir],
        env=clean | {"HOME": str(home), "PYTHONPATH": str(PROGRAM)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1, done.stdout
    assert done.stdout.startswith("backends.engines.quantization: int8 model: largest_difference ")
    assert done.stderr == ""
    assert list(home.rglob("*")) == []
