"""The image classifier as a whole: declared, trained on small images, stored and served."""

import dataclasses
import io
import json
import logging
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from algorithms import image_classifier
from algorithms.image_classifier.files import listing
from algorithms.image_classifier.training import train
from backends.bundle.manifest import read_manifest
from conftest import ROOT
from sample_images import CPU, encode_requests, make_job, paint, read_epochs, write_images
from tandem import hyperparameters
from tandem.algorithm import Context
from tandem.errors import UserError

# TensorFlow's tensors do not know NumPy 2's `copy`; Keras's saving asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train once with a complete job; return the job and its log."""
    root = tmp_path_factory.mktemp("opt_ml")
    job = make_job(root, {"training": write_images(root / "in", count=20)}, epochs=4, augmentation="light")
    records: list[logging.LogRecord] = []
    listener = logging.Handler()
    listener.emit = records.append
    log = logging.getLogger("algorithms")
    level = log.level
    log.addHandler(listener)
    log.setLevel(logging.INFO)
    try:
        image_classifier.train(job)
    finally:
        log.removeHandler(listener)
        log.setLevel(level)
    return SimpleNamespace(job=job, records=records)


@pytest.fixture(scope="module", params=["openvino", "tensorflow"])
def context(trained, request):
    """Return the context of a serving process, once for each backend."""
    empty = Context(model_dir=trained.job.model_dir, decision=CPU, backend=request.param, cores=1)
    return dataclasses.replace(empty, model=image_classifier.model_fn(trained.job.model_dir, empty))


@pytest.fixture
def info(caplog):
    """Return the log at the level of a job's log."""
    caplog.set_level(logging.INFO, "algorithms")
    return caplog


def test_the_declarations_can_be_read_without_importing_a_framework():
    """Help texts and deployment read them without TensorFlow."""
    script = (
        "import sys, algorithms.image_classifier as a; a.Hyperparameters(); a.METRICS; a.CHANNELS; "
        "print(sorted({'tensorflow', 'keras', 'openvino', 'h5py'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT / "program",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"


def test_every_hyperparameter_has_a_valid_default_and_a_help_text():
    """`describe` checks each default against its limits."""
    described = hyperparameters.describe(image_classifier.Hyperparameters)
    assert all(parameter.help for parameter in described)
    assert hyperparameters.convert({}, image_classifier.Hyperparameters) == image_classifier.Hyperparameters()


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", "0"), ("learning_rate", "0"), ("architecture", "smallcnn"), ("validation_share", "0.6")],
)
def test_the_error_names_a_hyperparameter_that_is_out_of_range(name, value):
    with pytest.raises(UserError, match=name):
        hyperparameters.convert({name: value}, image_classifier.Hyperparameters)


def test_training_learns_and_the_declared_metrics_match_its_log(trained):
    """There is one line per epoch, in which every regex finds its number."""
    lines = [r.getMessage() for r in trained.records if r.getMessage().startswith("epoch=")]
    assert [re.match(r"epoch=(\d+) ", line)[1] for line in lines] == ["1", "2", "3", "4"]
    for line in lines:
        for name, regex in image_classifier.METRICS.items():
            assert re.search(regex, line), (name, line)
    assert float(re.search(image_classifier.METRICS["val_accuracy"], lines[-1])[1]) >= 0.9


def test_the_manifest_describes_the_trained_model(trained):
    """Labels in order, resolved hyperparameters, final metrics, and reference answers."""
    manifest = read_manifest(trained.job.model_dir)
    assert manifest.labels == ("blue", "green", "red")
    assert manifest.input_shape == (8, 8, 3)
    assert manifest.input_dtype == "uint8"
    assert manifest.golden_rows == train.REFERENCE_ROWS
    assert manifest.hyperparameters["augmentation"] == "light"
    assert manifest.metrics["epoch"] == 4
    assert manifest.metrics["val_accuracy"] >= 0.9
    assert manifest.has_openvino


def test_the_stored_model_has_no_augmentation_layers(trained):
    """Images must not be augmented in serving."""
    import keras

    model = keras.models.load_model(trained.job.model_dir / "model.h5", compile=False)
    names = [type(layer).__name__ for layer in model.layers]
    assert not [name for name in names if name.startswith("Random")]
    assert names[1] == "Rescaling"


def test_a_stopped_job_ends_within_a_step_and_writes_a_complete_bundle(tmp_path, info):
    """After SIGTERM during the first step there is no validation, but the bundle can be served."""
    job = make_job(tmp_path, {"training": write_images(tmp_path / "in")}, epochs=1000)
    job.stop.set()
    image_classifier.train(job)
    assert "Stopped in epoch 1 after 1 steps" in info.text
    assert not read_epochs(info)
    assert "val_loss" not in read_manifest(job.model_dir).metrics
    context = Context(model_dir=job.model_dir, decision=CPU, backend="auto", cores=1)
    assert image_classifier.model_fn(job.model_dir, context).labels == ("blue", "green", "red")


def test_the_same_seed_gives_the_same_metrics(tmp_path, info):
    """Evaluation, order, weights and augmentation all hang on it."""
    folders = {"training": write_images(tmp_path / "in")}
    for run in ("a", "b"):
        image_classifier.train(make_job(tmp_path / run, folders, augmentation="flip", seed=3))
    first, second = ({**line, "images_per_second": 0} for line in read_epochs(info))
    assert first == pytest.approx(second, rel=1e-3, abs=1e-4)


def test_serving_preprocesses_images_as_training_does(trained, context):
    """The bundle's reference rows equal the rows of the same files in requests."""
    listed = listing.list_images(trained.job.channels, 0.2, 0)
    path, _ = listed.validation[0]
    row = image_classifier.input_fn(path.read_bytes(), "image/png", context)
    golden = np.load(trained.job.model_dir / "golden.npz")["inputs"]
    np.testing.assert_array_equal(row[0], golden[0])


@pytest.mark.parametrize("encoding", encode_requests(paint("red", 0)))
def test_every_encoding_of_an_image_gives_the_same_row_and_the_correct_label(context, encoding):
    """The encoding of a request must not change the model's input."""
    content_type, body = encode_requests(paint("red", 999))[encoding]
    rows = image_classifier.input_fn(body, content_type, context)
    png = image_classifier.input_fn(encode_requests(paint("red", 999))["png"][1], "image/png", context)
    assert rows.dtype == np.uint8
    assert rows.shape[1:] == (8, 8, 3)
    for row in rows:
        np.testing.assert_array_equal(row, png[0])
    prediction = image_classifier.predict_fn(rows, context.model)
    assert prediction.shape == (len(rows), 3)
    answer = json.loads(image_classifier.output_fn(prediction, "application/json", context))
    assert [best["label"] for best in answer["predictions"]] == ["red"] * len(rows)


def test_every_declared_response_type_can_be_decoded(context):
    """JSON, JSON Lines, CSV and NPY have the same predictions for the same two rows."""
    rows = np.stack(
        [np.full((8, 8, 3), (255, 60, 60), np.uint8), np.full((8, 8, 3), (60, 60, 255), np.uint8)]
    )
    prediction = image_classifier.predict_fn(rows, context.model)
    accepts = image_classifier.ACCEPTS
    written = {accept: image_classifier.output_fn(prediction, accept, context) for accept in accepts}
    objects = json.loads(written["application/json"])["predictions"]
    lines = [json.loads(line) for line in written["application/jsonlines"].splitlines()]
    table = [line.split(",") for line in written["text/csv"].decode().splitlines()]
    array = np.load(io.BytesIO(written["application/x-npy"]))
    assert [answer["label"] for answer in objects] == ["red", "blue"]
    assert lines == objects
    assert [(label, float(number)) for label, number in table] == [
        (answer["label"], answer["probability"]) for answer in objects
    ]
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, prediction)
    np.testing.assert_allclose(array.max(axis=1), [answer["probability"] for answer in objects], rtol=1e-6)
