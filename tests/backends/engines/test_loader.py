"""An engine serves only if it reproduces the training device's answers."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from backends.bundle.manifest import read_golden, read_manifest, sha256
from backends.bundle.writer import write_bundle
from backends.engines import openvino_engine, quantization, tensorflow_engine
from backends.engines.loader import load_engine
from tandem.errors import ModelError, UserError
from tandem.images.codec import Preprocessing
from tandem.runtime.devices import Decision, Gpu

# Raised inside Keras 3 on TensorFlow 2.21 with NumPy 2.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

PROGRAM = Path(__file__).resolve().parents[3] / "program"
CPU = Decision("cpu", "a test")
GPU = Decision("gpu", "a test", (Gpu("Imaginary", "GPU-0", 1 << 34, (8, 0)),))
LABELS = ("ant", "bee", "cat")


def make_model(channels=3):
    import keras

    keras.utils.set_random_seed(7)
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, channels)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Conv2D(8, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def written(tmp_path_factory, model):
    model_dir = tmp_path_factory.mktemp("written")
    rows = np.random.default_rng(7).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    write_bundle(model_dir, model, labels=LABELS, preprocessing={}, golden_inputs=rows, decision=CPU)
    return model_dir


@pytest.fixture
def bundle(written, tmp_path):
    return shutil.copytree(written, tmp_path / "model")


def forge(model_dir, name, content):
    """Change a file and its hash in the manifest."""
    (model_dir / name).write_bytes(content)
    path = model_dir / "manifest.json"
    data = json.loads(path.read_text())
    data["files"][name] = sha256(model_dir / name)
    path.write_text(json.dumps(data))


def change_weights(model_dir):
    content = (model_dir / "openvino" / "model.bin").read_bytes()
    floats = np.frombuffer(content[: len(content) // 4 * 4], np.float32).copy()
    is_weight = (
        np.isfinite(floats) & (np.abs(floats) > 1e-3) & (np.abs(floats) < 10)
    )  # not shapes and indices
    floats[is_weight] *= -3
    forge(model_dir, "openvino/model.bin", floats.tobytes() + content[len(content) // 4 * 4 :])


def change_reference_answers(model_dir):
    rows, answers = read_golden(model_dir, read_manifest(model_dir))
    np.savez(model_dir / "golden.npz", inputs=rows, answers=np.roll(answers, 1, axis=1))
    forge(model_dir, "golden.npz", (model_dir / "golden.npz").read_bytes())


def remove_openvino(model_dir):
    shutil.rmtree(model_dir / "openvino")
    path = model_dir / "manifest.json"
    data = json.loads(path.read_text())
    data["files"] = {name: digest for name, digest in data["files"].items() if "openvino" not in name}
    path.write_text(json.dumps(data))


def test_both_engines_give_the_models_answers_for_any_batch_size(bundle, model):
    """Both engines agree to a millionth for batches of one, of an odd number and of all reference rows."""
    rows, reference = read_golden(bundle, read_manifest(bundle))
    for backend in ("tensorflow", "openvino"):
        engine, manifest = load_engine(bundle, backend, CPU, cores=2)
        assert (engine.name, manifest.labels) == (backend, LABELS)
        for count in (1, 20, 7, 2):
            answers = engine.predict(rows[:count])
            assert answers.dtype == np.float32
            np.testing.assert_allclose(answers, reference[:count], atol=1e-6)


@pytest.mark.parametrize(
    ("decision", "chosen"),
    [pytest.param(CPU, "openvino", id="cpu"), pytest.param(GPU, "tensorflow", id="gpu")],
)
def test_the_device_decides_the_order(bundle, decision, chosen):
    assert load_engine(bundle, "auto", decision, cores=1)[0].name == chosen


def test_tensorflow_serves_on_a_cpu_without_an_openvino_model(bundle):
    remove_openvino(bundle)
    assert load_engine(bundle, "auto", CPU, cores=1)[0].name == "tensorflow"


def test_only_the_requested_backend_is_tried(bundle):
    remove_openvino(bundle)
    with pytest.raises(ModelError, match="openvino: the bundle has no OpenVINO model$"):
        load_engine(bundle, "openvino", CPU, cores=1)


def test_an_unknown_backend_is_rejected_with_the_known_ones(bundle):
    with pytest.raises(UserError, match="'onnx'.*auto, tensorflow, openvino"):
        load_engine(bundle, "onnx", CPU, cores=1)


def test_an_unknown_precision_is_rejected_with_the_known_ones(bundle):
    with pytest.raises(UserError, match="PRECISION is 'int4'.*float32, bfloat16, int8, auto"):
        load_engine(bundle, "auto", CPU, cores=1, precision="int4")


needs_bfloat16 = pytest.mark.skipif(
    not openvino_engine.has_bfloat16(), reason="this processor does not support bfloat16"
)


@pytest.fixture(scope="module")
def with_int8(written, tmp_path_factory):
    model_dir = shutil.copytree(written, tmp_path_factory.mktemp("int8") / "model")
    rows = np.random.default_rng(8).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    quantization.add_int8(model_dir, rows, ())
    return model_dir


def set_tolerance(model_dir, precision, tolerance):
    path = model_dir / "manifest.json"
    data = json.loads(path.read_text())
    data["precisions"][precision]["tolerance"] = tolerance
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("precision", ["int8", "auto", pytest.param("bfloat16", marks=needs_bfloat16)])
def test_a_reduced_precision_serves_within_its_tolerance_and_logs_its_gain(with_int8, precision, caplog):
    """Its answers differ from float32's, which shows that it is used."""
    rows, reference = read_golden(with_int8, read_manifest(with_int8))
    with caplog.at_level("INFO"):
        engine, _ = load_engine(with_int8, "auto", CPU, 2, precision)
    difference = np.abs(engine.predict(rows) - reference).max()
    assert 1e-5 < difference < 0.1
    chosen = "int8" if precision == "auto" else precision
    [line] = [record.getMessage() for record in caplog.records if "backend" in record.getMessage()]
    assert re.match(
        rf"backend openvino at {chosen}: largest difference [\d.e-]+ over 20 reference answers.*, "
        r"[\d.]+ % of labels the same, [\d.]+ ms per row instead of [\d.]+, ready in",
        line,
    ), line


@pytest.mark.parametrize("precision", ["int8", pytest.param("bfloat16", marks=needs_bfloat16)])
def test_a_reduced_precision_above_its_tolerance_is_replaced_by_float32(
    with_int8, tmp_path, caplog, precision
):
    model_dir = shutil.copytree(with_int8, tmp_path / "model")
    set_tolerance(model_dir, precision, 1e-6)
    engine, _ = load_engine(model_dir, "auto", CPU, 1, precision)
    rows, reference = read_golden(model_dir, read_manifest(model_dir))
    np.testing.assert_allclose(engine.predict(rows), reference, atol=1e-6)
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(f"backend openvino at {precision} is skipped: largest difference 0.")
    assert "above 1e-06" in warning


def test_a_model_that_changes_clear_labels_is_skipped_whatever_its_tolerance(with_int8, tmp_path, caplog):
    model_dir = shutil.copytree(with_int8, tmp_path / "model")
    rows, answers = read_golden(model_dir, read_manifest(model_dir))
    order = np.argsort(answers, axis=1)
    swapped = answers.copy()
    indices = np.arange(len(answers))
    swapped[indices, order[:, -1]] = answers[indices, order[:, -2]]
    swapped[indices, order[:, -2]] = answers[indices, order[:, -1]]
    np.savez(model_dir / "golden.npz", inputs=rows, answers=swapped)
    forge(model_dir, "golden.npz", (model_dir / "golden.npz").read_bytes())
    set_tolerance(model_dir, "int8", 0.99)
    with pytest.raises(ModelError, match=r"openvino at int8: largest difference .* clear in the reference"):
        load_engine(model_dir, "openvino", CPU, 1, "int8")
    assert "with another label" in caplog.text


def test_without_an_int8_model_float32_serves_and_the_log_explains_how_to_get_one(bundle, caplog):
    engine, _ = load_engine(bundle, "auto", CPU, 1, "int8")
    rows, reference = read_golden(bundle, read_manifest(bundle))
    np.testing.assert_allclose(engine.predict(rows), reference, atol=1e-6)
    assert "at int8 is skipped: the bundle has no int8 model; train with the hyperparameter" in caplog.text


def test_a_processor_without_bfloat16_serves_at_float32(bundle, caplog, monkeypatch):
    monkeypatch.setattr(openvino_engine, "has_bfloat16", lambda: False)
    engine, _ = load_engine(bundle, "auto", CPU, 1, "bfloat16")
    rows, reference = read_golden(bundle, read_manifest(bundle))
    np.testing.assert_allclose(engine.predict(rows), reference, atol=1e-6)
    assert "at bfloat16 is skipped: this processor does not support bfloat16" in caplog.text


def test_a_changed_int8_file_is_rejected(with_int8, tmp_path):
    model_dir = shutil.copytree(with_int8, tmp_path / "model")
    (model_dir / "openvino" / "int8" / "model.xml").write_bytes(b"<net")
    with pytest.raises(UserError, match=r"openvino/int8/model\.xml"):
        load_engine(model_dir, "auto", CPU, 1)


def test_tensorflow_logs_that_it_computes_at_float32(bundle, caplog):
    assert load_engine(bundle, "tensorflow", CPU, 1, "int8")[0].name == "tensorflow"
    assert "PRECISION is int8, but TensorFlow serves" in caplog.text


def test_an_engine_with_other_answers_is_skipped(bundle, caplog):
    change_weights(bundle)
    assert load_engine(bundle, "auto", CPU, cores=1)[0].name == "tensorflow"
    assert "openvino is skipped: largest difference" in caplog.text


def test_an_engine_that_cannot_load_is_skipped(bundle, caplog):
    forge(bundle, "openvino/model.xml", b"<net")
    assert load_engine(bundle, "auto", CPU, cores=1)[0].name == "tensorflow"
    assert "openvino cannot load" in caplog.text


def test_if_no_engine_agrees_each_difference_is_named(bundle):
    change_reference_answers(bundle)
    with pytest.raises(
        ModelError, match=r"openvino: largest difference 0\.\d+.*tensorflow: largest difference 0\.\d+"
    ):
        load_engine(bundle, "auto", CPU, cores=1)


def test_reference_answers_that_are_nan_never_agree(bundle):
    rows, answers = read_golden(bundle, read_manifest(bundle))
    np.savez(bundle / "golden.npz", inputs=rows, answers=np.full_like(answers, np.nan))
    forge(bundle, "golden.npz", (bundle / "golden.npz").read_bytes())
    with pytest.raises(ModelError, match="no backend can serve"):
        load_engine(bundle, "auto", CPU, cores=1)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text"])
def test_an_invalid_golden_npz_is_rejected_in_one_sentence(bundle, content):
    forge(bundle, "golden.npz", content)
    with pytest.raises(UserError, match=r"golden\.npz .* cannot be read"):
        load_engine(bundle, "auto", CPU, cores=1)


def test_a_changed_file_is_rejected_before_it_is_parsed(bundle, caplog):
    (bundle / "openvino" / "model.xml").write_bytes(b"<net")
    with pytest.raises(UserError, match=r"openvino/model\.xml"):
        load_engine(bundle, "auto", CPU, cores=1)
    assert "cannot load" not in caplog.text


def test_float_rows_are_passed_unchanged(tmp_path, model):
    rows = np.random.default_rng(7).uniform(0, 255, (16, 8, 8, 3)).astype(np.float32)
    write_bundle(tmp_path, model, labels=LABELS, preprocessing={}, golden_inputs=rows, decision=CPU)
    for backend in ("tensorflow", "openvino"):
        engine, _ = load_engine(tmp_path, backend, CPU, cores=1)
        np.testing.assert_allclose(engine.predict(rows), model(rows, training=False).numpy(), atol=1e-6)


@pytest.mark.parametrize("backend", ["tensorflow", "openvino"])
def test_rows_of_another_dtype_are_rejected_and_not_rounded(bundle, backend):
    engine, _ = load_engine(bundle, backend, CPU, cores=1)
    with pytest.raises(ModelError, match="float32.*uint8"):
        engine.predict(np.full((1, 8, 8, 3), 0.5, np.float32))


@pytest.mark.parametrize("backend", ["tensorflow", "openvino"])
def test_each_thread_gets_the_answers_to_its_own_rows(bundle, backend):
    """Eight threads, each with its own batch size."""
    engine, _ = load_engine(bundle, backend, CPU, cores=2)
    rows, reference = read_golden(bundle, read_manifest(bundle))
    barrier = threading.Barrier(8, timeout=30)

    def call(number):
        barrier.wait()
        for turn in range(50):
            first = (number * 7 + turn) % 12
            part = slice(first, first + 1 + number)
            np.testing.assert_allclose(engine.predict(rows[part]), reference[part], atol=1e-6)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(call, range(8)))


def test_openvino_serves_without_tensorflow_and_without_telemetry(with_int8, tmp_path):
    """A new process imports no TensorFlow, writes nothing to the home folder and starts no thread."""
    home = tmp_path / "home"
    home.mkdir()
    script = """
import sys, threading
from pathlib import Path
from backends.engines.loader import load_engine
from tandem.runtime.devices import Decision
engine, manifest = load_engine(Path(sys.argv[1]), "auto", Decision("cpu", "a test"), 1, "int8")
found = [name for name in ("tensorflow", "keras", "nncf") if name in sys.modules]
assert engine.name == "openvino" and not found, (engine.name, found)
assert sys.modules["openvino_telemetry"] is None
assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
"""
    clean = {
        name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")
    }
    done = subprocess.run(
        [sys.executable, "-c", script, with_int8],
        env=clean | {"HOME": str(home), "PYTHONPATH": str(PROGRAM)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == []


@pytest.mark.parametrize(("channels", "order"), [(1, "GRAY"), (3, "RGB")])
def test_a_bare_model_serves_with_defaults_and_a_warning(tmp_path, caplog, channels, order):
    model = make_model(channels)
    tensorflow_engine.save(model, tmp_path / "model.h5")
    engine, manifest = load_engine(tmp_path, "auto", CPU, cores=1)
    assert (engine.name, manifest.labels, manifest.golden_rows) == ("tensorflow", ("0", "1", "2"), 0)
    assert "defaults are assumed" in caplog.text
    spec = Preprocessing.from_dict(manifest.preprocessing)
    assert (spec.color_order, spec.resize, spec.scale) == (order, "stretch", 1 / 255)
    assert (spec.shape, spec.dtype) == (manifest.input_shape, manifest.input_dtype)
    rows = np.random.default_rng(7).uniform(0, 1, (3, 8, 8, channels)).astype(np.float32)
    np.testing.assert_allclose(engine.predict(rows), model(rows, training=False).numpy(), atol=1e-6)


@pytest.mark.parametrize("leftover", ["golden.npz", "openvino/model.xml"])
def test_a_bundle_without_its_manifest_is_not_served_as_a_bare_model(bundle, leftover):
    """It would be served with other preprocessing than it was trained with."""
    for path in [path for path in bundle.rglob("*.*") if path.is_file()]:
        if path.relative_to(bundle).as_posix() not in {"model.h5", leftover}:
            path.unlink()
    with pytest.raises(UserError, match="manifest.json is missing"):
        load_engine(bundle, "auto", CPU, cores=1)


def test_a_bare_model_whose_outputs_are_not_probabilities_logs_a_warning(tmp_path, caplog):
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((8, 8, 3)), layers.Flatten(), layers.Dense(2, bias_initializer="ones")]
    )
    tensorflow_engine.save(model, tmp_path / "model.h5")
    load_engine(tmp_path, "auto", CPU, cores=1)
    assert "add up to 2, not 1" in caplog.text


def test_a_bare_model_without_a_fixed_size_needs_a_manifest(tmp_path):
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((None, None, 3)), layers.GlobalAveragePooling2D(), layers.Dense(2)]
    )
    tensorflow_engine.save(model, tmp_path / "model.h5")
    with pytest.raises(UserError, match="fixed size"):
        load_engine(tmp_path, "auto", CPU, cores=1)


def test_a_bare_model_has_no_openvino_model(tmp_path, model):
    tensorflow_engine.save(model, tmp_path / "model.h5")
    with pytest.raises(UserError, match="BACKEND=openvino"):
        load_engine(tmp_path, "openvino", CPU, cores=1)


def test_an_error_lists_the_files_of_a_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match="found nothing"):
        load_engine(tmp_path, "auto", CPU, cores=1)
    (tmp_path / "weights.pt").touch()
    with pytest.raises(UserError, match=r"expected model\.h5, found weights\.pt"):
        load_engine(tmp_path, "auto", CPU, cores=1)


def save_lambda(path):
    import keras

    keras.Sequential([keras.layers.Input((4,)), keras.layers.Lambda(lambda value: value)]).save(path)


def save_weights(path):
    model = make_model()
    model.save_weights(path.with_name("model.weights.h5"))
    path.with_name("model.weights.h5").rename(path)


def save_half(path):
    make_model().save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (save_lambda, "Lambda layer"),
        (save_weights, "contains weights but no model"),
        (save_half, "truncated"),
        (lambda path: path.write_text("PK"), "not an HDF5 file"),
    ],
)
def test_a_model_that_keras_rejects_is_rejected_in_one_sentence(tmp_path, write, sentence):
    write(tmp_path / "model.h5")
    with pytest.raises(UserError, match=sentence):
        load_engine(tmp_path, "auto", CPU, cores=1)


def test_both_engines_are_installed():
    assert tensorflow_engine.is_installed()
    assert openvino_engine.is_installed()
