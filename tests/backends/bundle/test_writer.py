"""A bundle is written completely or not at all, and its reference answers are validated on reading."""

import os
import shutil
import subprocess

import numpy as np
import pytest

from backends.bundle.agreement import largest_difference
from backends.bundle.manifest import Manifest, read_golden, read_manifest, sha256, verify
from backends.bundle.writer import write_bundle
from tandem.errors import UserError
from tandem.runtime.devices import Decision

# Raised inside Keras 3 on TensorFlow 2.21 with NumPy 2.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

CPU = Decision("cpu", "a test")
LABELS = ("ant", "bee", "cat")
FILES = {"model.h5", "golden.npz", "openvino/model.xml", "openvino/model.bin"}


@pytest.fixture(scope="module")
def model():
    import keras

    keras.utils.set_random_seed(7)
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(7).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)


def write(model_dir, model, rows, **changed):
    options = {
        "labels": LABELS,
        "preprocessing": {"height": 8, "width": 8},
        "golden_inputs": rows,
        "decision": CPU,
        "metrics": {"loss": np.float32(0.5), "val_loss": float("nan")},
        "hyperparameters": {"epochs": 3, "learning_rate": np.float64(1e-3)},
    }
    return write_bundle(model_dir, model, **options | changed)


@pytest.fixture(scope="module")
def written(tmp_path_factory, model, rows):
    model_dir = tmp_path_factory.mktemp("written") / "model"
    write(model_dir, model, rows)
    return model_dir


@pytest.fixture
def bundle(written, tmp_path):
    return shutil.copytree(written, tmp_path / "model")


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_has_both_models_the_reference_answers_and_a_manifest(bundle):
    assert names(bundle) == FILES | {"manifest.json"}


def test_the_manifest_describes_the_bundle(bundle, rows):
    manifest = read_manifest(bundle)
    assert manifest.labels == LABELS
    assert (manifest.input_shape, manifest.input_dtype) == ((8, 8, 3), "uint8")
    assert manifest.device == CPU.as_dict() | {"gpus": []}
    assert manifest.metrics == {"loss": 0.5}
    assert manifest.hyperparameters == {"epochs": 3, "learning_rate": 0.001}
    assert set(manifest.files) == FILES
    assert manifest.has_openvino
    assert {"python", "tensorflow", "keras", "openvino", "numpy", "opencv"} == manifest.versions.keys()
    assert Manifest.from_json(manifest.to_json()) == manifest
    verify(bundle, manifest)


def test_the_reference_answers_are_the_models_outputs(bundle, model, rows):
    stored, answers = read_golden(bundle, read_manifest(bundle))
    assert (stored == rows).all()
    assert largest_difference(answers, model(rows.astype("float32"), training=False).numpy()) < 1e-6


def test_at_most_64_reference_answers_are_stored(tmp_path, model, rows):
    assert write(tmp_path, model, np.concatenate([rows] * 5)).golden_rows == 64


def test_model_h5_loads_alone_and_has_no_optimizer(tmp_path, model, rows):
    import h5py
    import keras

    model.compile("adam", keras.losses.SparseCategoricalCrossentropy())
    model.fit(rows.astype("float32"), np.zeros(len(rows)), verbose=0)
    write(tmp_path, model, rows)
    keras.models.load_model(tmp_path / "model.h5", compile=False, safe_mode=True)
    with h5py.File(tmp_path / "model.h5") as file:
        assert "optimizer_weights" not in file


def test_keras_advice_against_h5_is_not_logged(tmp_path, model, rows, caplog):
    write(tmp_path, model, rows)
    assert not [record for record in caplog.records if "legacy" in record.getMessage()]


def test_a_second_bundle_replaces_the_first_and_keeps_other_files(bundle, model, rows):
    (bundle / "notes.txt").write_text("mine")
    write(bundle, model, rows, labels=("x", "y", "z"))
    assert names(bundle) == FILES | {"manifest.json", "notes.txt"}
    assert read_manifest(bundle).labels == ("x", "y", "z")
    verify(bundle, read_manifest(bundle))


def test_files_of_an_interrupted_writer_are_removed(tmp_path, model, rows):
    (tmp_path / ".incomplete-old" / "openvino").mkdir(parents=True)
    (tmp_path / ".incomplete-old" / "model.h5").write_bytes(b"half")
    write(tmp_path, model, rows)
    assert names(tmp_path) == FILES | {"manifest.json"}


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        pytest.param({"hyperparameters": {("no", "key"): 1}}, TypeError, id="after the model is stored"),
        pytest.param({"labels": ("twice", "twice", "once")}, UserError, id="an invalid manifest"),
        pytest.param({"labels": ("one", "too few")}, ValueError, id="labels and outputs differ"),
        pytest.param({"golden_inputs": np.zeros((4, 8, 8, 3))}, ValueError, id="rows of float64"),
        pytest.param({"golden_inputs": np.zeros((0, 8, 8, 3), "uint8")}, ValueError, id="no rows"),
    ],
)
def test_a_failure_leaves_no_files(tmp_path, model, rows, changed, error):
    with pytest.raises(error):
        write(tmp_path, model, rows, **changed)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_previous_bundle_unchanged(bundle, model, rows):
    before = {name: sha256(bundle / name) for name in names(bundle)}
    with pytest.raises(TypeError):
        write(bundle, model, rows, hyperparameters={("no", "key"): 1})
    assert {name: sha256(bundle / name) for name in names(bundle)} == before


def test_a_model_with_nan_outputs_is_rejected(tmp_path, rows):
    import keras

    broken = keras.Sequential([keras.layers.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    broken.set_weights([np.full_like(weight, np.nan) for weight in broken.get_weights()])
    with pytest.raises(UserError, match="not finite.*lower learning rate"):
        write(tmp_path, broken, rows)


def test_a_full_disk_is_reported_before_anything_is_written(tmp_path, model, rows):
    """On a full disk HDF5 and OpenVINO crash or silently write incomplete files."""
    model_dir = tmp_path / "small"
    model_dir.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(model_dir)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can make a small volume")
    try:
        with pytest.raises(UserError, match=r"the disk is full: the model needs 8 MB in .* has [12] MB free"):
            write(model_dir, model, rows)
        assert list(model_dir.iterdir()) == []
    finally:
        subprocess.run(["umount", str(model_dir)], check=True)


def test_a_pickle_in_golden_npz_is_not_loaded(bundle):
    np.savez(bundle / "golden.npz", inputs=np.array([object()]), answers=np.array([object()]))
    with pytest.raises(UserError, match="allow_pickle"):
        read_golden(bundle, read_manifest(bundle))


def test_reference_rows_of_another_shape_are_rejected(bundle):
    np.savez(bundle / "golden.npz", inputs=np.zeros((2, 4, 4, 3), "uint8"), answers=np.zeros((2, 3)))
    with pytest.raises(UserError, match=r"golden\.npz"):
        read_golden(bundle, read_manifest(bundle))


def test_a_model_that_openvino_cannot_convert_is_written_without_it(tmp_path, rows, caplog):
    import keras
    import tensorflow as tf

    class Unsupported(keras.layers.Layer):
        def call(self, inputs):
            return tf.numpy_function(lambda value: value, [inputs], tf.float32)

        def compute_output_shape(self, shape):
            return shape

    layers = keras.layers
    unsupported = keras.Sequential(
        [layers.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3, activation="softmax"), Unsupported()]
    )
    manifest = write(tmp_path, unsupported, rows)
    assert not manifest.has_openvino
    assert names(tmp_path) == {"model.h5", "golden.npz", "manifest.json"}
    assert "will need TensorFlow" in caplog.text
