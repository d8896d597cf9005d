"""The engine that serves gives the training device's answers, or does not serve."""

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

from backends.bundle.manifest import read_manifest, sha256
from backends.bundle.writer import read_golden, write_bundle
from backends.engines import openvino_engine, quantization, tensorflow_engine
from backends.engines.loader import load_engine
from tandem.errors import ModelError, UserError
from tandem.images.codec import Preprocessing
from tandem.runtime.devices import Decision, Gpu

# Keras 3 on TensorFlow 2.21 under NumPy 2: theirs to repair.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

PROGRAM = Path(__file__).resolve().parents[2] / "program"
CPU = Decision("cpu", "a test")
GPU = Decision("gpu", "a test", (Gpu("Imagined", "GPU-0", 1 << 34, (8, 0)),))
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
    """Change a file as somebody would who also knows to correct its hash."""
    (model_dir / name).write_bytes(content)
    path = model_dir / "manifest.json"
    data = json.loads(path.read_text())
    data["files"][name] = sha256(model_dir / name)
    path.write_text(json.dumps(data))


def other_weights(model_dir):
    content = (model_dir / "openvino" / "model.bin").read_bytes()
    floats = np.frombuffer(content[: len(content) // 4 * 4], np.float32).copy()
    sane = np.isfinite(floats) & (np.abs(floats) > 1e-3) & (np.abs(floats) < 10)  # leaves shapes and indices
    floats[sane] *= -3
    forge(model_dir, "openvino/model.bin", floats.tobytes() + content[len(content) // 4 * 4 :])


def other_golden_answers(model_dir):
    rows, answers = read_golden(model_dir, read_manifest(model_dir))
    np.savez(model_dir / "golden.npz", inputs=rows, answers=np.roll(answers, 1, axis=1))
    forge(model_dir, "golden.npz", (model_dir / "golden.npz").read_bytes())


def without_openvino(model_dir):
    shutil.rmtree(model_dir / "openvino")
    path = model_dir / "manifest.json"
    data = json.loads(path.read_text())
    data["files"] = {name: digest for name, digest in data["files"].items() if "openvino" not in name}
    path.write_text(json.dumps(data))


def test_both_engines_give_the_models_answers_for_any_batch(bundle, model):
    """Batches of one, of an odd number and of the golden rows agree to a millionth on both engines."""
    rows, golden = read_golden(bundle, read_manifest(bundle))
    for backend in ("tensorflow", "openvino"):
        engine, manifest = load_engine(bundle, backend, CPU, cores=2)
        assert (engine.name, manifest.labels) == (backend, LABELS)
        for count in (1, 20, 7, 2):
            answers = engine.predict(rows[:count])
            assert answers.dtype == np.float32
            np.testing.assert_allclose(answers, golden[:count], atol=1e-6)


@pytest.mark.parametrize(
    ("decision", "chosen"),
    [pytest.param(CPU, "openvino", id="cpu"), pytest.param(GPU, "tensorflow", id="gpu")],
)
def test_the_device_decides_the_order(bundle, decision, chosen):
    assert load_engine(bundle, "auto", decision, cores=1)[0].name == chosen


def test_tensorflow_serves_on_a_cpu_what_has_no_openvino_form(bundle):
    without_openvino(bundle)
    assert load_engine(bundle, "auto", CPU, cores=1)[0].name == "tensorflow"


def test_the_override_tries_only_its_own_backend(bundle):
    without_openvino(bundle)
    with pytest.raises(ModelError, match="openvino: the model has no OpenVINO form$"):
        load_engine(bundle, "openvino", CPU, cores=1)


def test_an_unknown_backend_is_refused_with_the_known_ones(bundle):
    with pytest.raises(UserError, match="'onnx'.*auto, tensorflow, openvino"):
        load_engine(bundle, "onnx", CPU, cores=1)


def test_an_unknown_precision_is_refused_with_the_known_ones(bundle):
    with pytest.raises(UserError, match="PRECISION is 'int4'.*float32, bfloat16, int8, auto"):
        load_engine(bundle, "auto", CPU, cores=1, precision="int4")


needs_bfloat16 = pytest.mark.skipif(
    not openvino_engine.has_bfloat16(), reason="this processor does not compute bfloat16"
)


@pytest.fixture(scope="module")
def with_int8(written, tmp_path_factory):
    model_dir = shutil.copytree(written, tmp_path_factory.mktemp("int8") / "model")
    rows = np.random.default_rng(8).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    quantization.add_int8(model_dir, rows, ())
    return model_dir


def state_tolerance(model_dir, precision, tolerance):
    path = model_dir / "manifest.json"
    data = json.loads(path.read_text())
    data["precisions"][precision]["tolerance"] = tolerance
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("precision", ["int8", "auto", pytest.param("bfloat16", marks=needs_bfloat16)])
def test_a_reduced_precision_serves_within_its_tolerance_and_says_what_it_gained(
    with_int8, precision, caplog
):
    """Its answers are not float32's, so that it is known to compute otherwise; labels and time are told."""
    rows, golden = read_golden(with_int8, read_manifest(with_int8))
    with caplog.at_level("INFO"):
        engine, _ = load_engine(with_int8, "auto", CPU, 2, precision)
    difference = np.abs(engine.predict(rows) - golden).max()
    assert 1e-5 < difference < 0.1
    taken = "int8" if precision == "auto" else precision
    [line] = [record.getMessage() for record in caplog.records if "backend" in record.getMessage()]
    assert re.match(
        rf"backend openvino at {taken}: largest difference [\d.e-]+ over 20 golden rows.*, "
        r"[\d.]+ % of labels the same, [\d.]+ ms a row instead of [\d.]+, ready in",
        line,
    ), line


@pytest.mark.parametrize("precision", ["int8", pytest.param("bfloat16", marks=needs_bfloat16)])
def test_a_reduced_precision_outside_its_tolerance_gives_way_to_float32(
    with_int8, tmp_path, caplog, precision
):
    model_dir = shutil.copytree(with_int8, tmp_path / "model")
    state_tolerance(model_dir, precision, 1e-6)
    engine, _ = load_engine(model_dir, "auto", CPU, 1, precision)
    rows, golden = read_golden(model_dir, read_manifest(model_dir))
    np.testing.assert_allclose(engine.predict(rows), golden, atol=1e-6)
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(f"backend openvino at {precision} is passed over: largest difference 0.")
    assert "above 1e-06" in warning


def test_a_form_with_other_labels_gives_way_to_float32(with_int8, tmp_path, caplog):
    """However much its probabilities may differ, a clear label is a clear label."""
    model_dir = shutil.copytree(with_int8, tmp_path / "model")
    rows, answers = read_golden(model_dir, read_manifest(model_dir))
    order = np.argsort(answers, axis=1)
    swapped = answers.copy()
    places = np.arange(len(answers))
    swapped[places, order[:, -1]] = answers[places, order[:, -2]]
    swapped[places, order[:, -2]] = answers[places, order[:, -1]]
    np.savez(model_dir / "golden.npz", inputs=rows, answers=swapped)
    forge(model_dir, "golden.npz", (model_dir / "golden.npz").read_bytes())
    state_tolerance(model_dir, "int8", 0.99)
    with pytest.raises(ModelError, match=r"openvino at int8: largest difference .* clear in the golden"):
        load_engine(model_dir, "openvino", CPU, 1, "int8")
    assert "with another label" in caplog.text


def test_without_an_int8_form_float32_serves_and_the_log_says_how_to_get_one(bundle, caplog):
    engine, _ = load_engine(bundle, "auto", CPU, 1, "int8")
    rows, golden = read_golden(bundle, read_manifest(bundle))
    np.testing.assert_allclose(engine.predict(rows), golden, atol=1e-6)
    assert "at int8 is passed over: the model has no int8 form, which training makes where" in caplog.text


def test_a_processor_without_bfloat16_serves_at_float32(bundle, caplog, monkeypatch):
    monkeypatch.setattr(openvino_engine, "has_bfloat16", lambda: False)
    engine, _ = load_engine(bundle, "auto", CPU, 1, "bfloat16")
    rows, golden = read_golden(bundle, read_manifest(bundle))
    np.testing.assert_allclose(engine.predict(rows), golden, atol=1e-6)
    assert "at bfloat16 is passed over: this processor does not compute bfloat16" in caplog.text


def test_an_int8_file_that_was_changed_is_refused_as_any_other(with_int8, tmp_path):
    model_dir = shutil.copytree(with_int8, tmp_path / "model")
    (model_dir / "openvino" / "int8" / "model.xml").write_bytes(b"<net")
    with pytest.raises(UserError, match=r"openvino/int8/model\.xml"):
        load_engine(model_dir, "auto", CPU, 1)


def test_tensorflow_says_that_it_computes_at_float32(bundle, caplog):
    assert load_engine(bundle, "tensorflow", CPU, 1, "int8")[0].name == "tensorflow"
    assert "PRECISION is int8, but TensorFlow serves" in caplog.text


def test_an_engine_with_other_answers_is_passed_over(bundle, caplog):
    other_weights(bundle)
    assert load_engine(bundle, "auto", CPU, cores=1)[0].name == "tensorflow"
    assert "openvino is passed over: largest difference" in caplog.text


def test_an_engine_that_cannot_load_is_passed_over(bundle, caplog):
    forge(bundle, "openvino/model.xml", b"<net")
    assert load_engine(bundle, "auto", CPU, cores=1)[0].name == "tensorflow"
    assert "openvino cannot load" in caplog.text


def test_no_engine_serves_when_none_agrees_and_each_difference_is_named(bundle):
    other_golden_answers(bundle)
    with pytest.raises(
        ModelError, match=r"openvino: largest difference 0\.\d+.*tensorflow: largest difference 0\.\d+"
    ):
        load_engine(bundle, "auto", CPU, cores=1)


def test_golden_answers_that_are_no_numbers_prove_nothing(bundle):
    rows, answers = read_golden(bundle, read_manifest(bundle))
    np.savez(bundle / "golden.npz", inputs=rows, answers=np.full_like(answers, np.nan))
    forge(bundle, "golden.npz", (bundle / "golden.npz").read_bytes())
    with pytest.raises(ModelError, match="no backend can serve"):
        load_engine(bundle, "auto", CPU, cores=1)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text"])
def test_a_golden_file_that_is_none_is_refused_in_a_sentence(bundle, content):
    forge(bundle, "golden.npz", content)
    with pytest.raises(UserError, match=r"golden\.npz .* cannot be read"):
        load_engine(bundle, "auto", CPU, cores=1)


def test_a_changed_file_is_refused_before_anything_parses_it(bundle, caplog):
    (bundle / "openvino" / "model.xml").write_bytes(b"<net")
    with pytest.raises(UserError, match=r"openvino/model\.xml"):
        load_engine(bundle, "auto", CPU, cores=1)
    assert "cannot load" not in caplog.text


def test_float_rows_travel_as_they_are(tmp_path, model):
    rows = np.random.default_rng(7).uniform(0, 255, (16, 8, 8, 3)).astype(np.float32)
    write_bundle(tmp_path, model, labels=LABELS, preprocessing={}, golden_inputs=rows, decision=CPU)
    for backend in ("tensorflow", "openvino"):
        engine, _ = load_engine(tmp_path, backend, CPU, cores=1)
        np.testing.assert_allclose(engine.predict(rows), model(rows, training=False).numpy(), atol=1e-6)


@pytest.mark.parametrize("backend", ["tensorflow", "openvino"])
def test_rows_of_another_dtype_are_refused_and_not_rounded(bundle, backend):
    engine, _ = load_engine(bundle, backend, CPU, cores=1)
    with pytest.raises(ModelError, match="float32.*uint8"):
        engine.predict(np.full((1, 8, 8, 3), 0.5, np.float32))


@pytest.mark.parametrize(("shape", "rows"), [((8, 8, 1), 4), ((160, 160, 3), 3), ((512, 512, 3), 2)])
def test_openvino_takes_fewer_large_rows_at_once(shape, rows):
    """A batch takes memory for as many values as pass through the network together."""
    openvino = openvino_engine.import_openvino()
    parameter = openvino.op.Parameter(openvino.Type.f32, openvino.PartialShape([-1, *shape]))
    model = openvino.Model([openvino.opset13.relu(parameter)], [parameter])
    compiled = openvino.Core().compile_model(model, "CPU")
    engine = openvino_engine.OpenVINOEngine(compiled, compiled, 1, "float32")
    assert engine.max_batch_rows == rows
    assert engine.predict(np.ones((5, *shape), np.float32)).shape == (5, *shape)


@pytest.mark.parametrize("backend", ["tensorflow", "openvino"])
def test_threads_get_their_own_rows_answers(bundle, backend):
    """Eight threads with batches of their own sizes are answered as one thread would be."""
    engine, _ = load_engine(bundle, backend, CPU, cores=2)
    rows, golden = read_golden(bundle, read_manifest(bundle))
    together = threading.Barrier(8, timeout=30)

    def hammer(number):
        together.wait()
        for turn in range(50):
            first = (number * 7 + turn) % 12
            part = slice(first, first + 1 + number)
            np.testing.assert_allclose(engine.predict(rows[part]), golden[part], atol=1e-6)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(hammer, range(8)))


def test_openvino_serves_without_tensorflow_and_tells_nobody(with_int8, tmp_path):
    """A process that serves with OpenVINO never imports TensorFlow, writes nothing home, starts no sender."""
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
def test_a_model_of_ours_without_its_manifest_is_not_taken_for_a_bare_one(bundle, leftover):
    """It would be served with another preprocessing than it was trained with, and look healthy."""
    for path in [path for path in bundle.rglob("*.*") if path.is_file()]:
        if path.relative_to(bundle).as_posix() not in {"model.h5", leftover}:
            path.unlink()
    with pytest.raises(UserError, match="manifest.json is missing"):
        load_engine(bundle, "auto", CPU, cores=1)


def test_a_bare_model_whose_outputs_are_no_probabilities_is_warned_of(tmp_path, caplog):
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((8, 8, 3)), layers.Flatten(), layers.Dense(2, bias_initializer="ones")]
    )
    tensorflow_engine.save(model, tmp_path / "model.h5")
    load_engine(tmp_path, "auto", CPU, cores=1)
    assert "add up to 2, not 1" in caplog.text


def test_a_bare_model_of_no_fixed_size_needs_a_manifest(tmp_path):
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((None, None, 3)), layers.GlobalAveragePooling2D(), layers.Dense(2)]
    )
    tensorflow_engine.save(model, tmp_path / "model.h5")
    with pytest.raises(UserError, match="fixed size"):
        load_engine(tmp_path, "auto", CPU, cores=1)


def test_a_bare_model_has_no_openvino_form(tmp_path, model):
    tensorflow_engine.save(model, tmp_path / "model.h5")
    with pytest.raises(UserError, match="BACKEND=openvino"):
        load_engine(tmp_path, "openvino", CPU, cores=1)


def test_a_directory_without_a_model_is_told_by_what_is_there(tmp_path):
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
        (save_weights, "holds weights but no model"),
        (save_half, "cut off"),
        (lambda path: path.write_text("PK"), "not an HDF5 file"),
    ],
)
def test_a_model_that_keras_refuses_is_refused_in_one_sentence(tmp_path, write, sentence):
    write(tmp_path / "model.h5")
    with pytest.raises(UserError, match=sentence):
        load_engine(tmp_path, "auto", CPU, cores=1)


def test_tensorflow_is_told_its_device_and_cores(monkeypatch):
    """Where nothing is set; a test that ran before may have started TensorFlow in this process."""
    for name in tensorflow_engine.environment(GPU, cores=3):
        monkeypatch.delenv(name, raising=False)
    told = tensorflow_engine.environment(GPU, cores=3)
    assert told["CUDA_VISIBLE_DEVICES"] == "GPU-0"
    assert told["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    assert told["TF_NUM_INTRAOP_THREADS"] == "3"


def test_what_is_set_already_is_kept_but_for_gpus_under_a_cpu_decision(monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-0")
    assert tensorflow_engine.environment(GPU)["CUDA_VISIBLE_DEVICES"] == "GPU-0"
    told = tensorflow_engine.environment(CPU)
    assert (told["TF_CPP_MIN_LOG_LEVEL"], told["CUDA_VISIBLE_DEVICES"]) == ("0", "-1")


def test_no_first_op_is_tried_on_a_cpu():
    assert tensorflow_engine.try_first_op(CPU, seconds=0) is None


@pytest.mark.slow
def test_a_gpu_that_tensorflow_cannot_use_is_one_line():
    """The processor's build of TensorFlow, or the other without this GPU, sees none."""
    assert tensorflow_engine.try_first_op(GPU) == "TensorFlow sees no GPU, 1 expected"


def test_a_first_op_that_never_ends_is_given_up():
    assert "no answer within" in tensorflow_engine.try_first_op(GPU, seconds=0.01)


def test_a_gpu_that_tensorflow_does_not_see_is_warned_of(caplog):
    tensorflow_engine.start(GPU)
    assert "sees none" in caplog.text


def test_engines_are_found_installed_without_importing_them():
    assert tensorflow_engine.is_installed()
    assert openvino_engine.is_installed()
