"""The real `train` on records, as a process: from FIFOs and from files."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from conftest import ROOT
from processes import wait_for
from sample_records import Feeder, make_example, pack_images, read_folder, write_tfrecords

SMALL = {"image_size": "16", "augmentation": "none", "learning_rate": "0.003", "seed": "1"}


@pytest.fixture(scope="module")
def samples(digits):
    """Return the handwritten digits as (label, PNG), to train with and to validate with."""
    labels = [str(label) for label in range(10)]
    training, held_out = digits / "input" / "data" / "training", digits / "held_out"
    return read_folder(training, labels), read_folder(held_out, labels)


def configure(opt_ml, hyperparameters, mode="Pipe", **options):
    """Return the tree of a job whose channels have no folders, as in Pipe mode."""
    channels = {name: {"TrainingInputMode": mode, **options} for name in ("training", "validation")}
    return opt_ml({**SMALL, **hyperparameters}, channels=(), inputdataconfig=channels)


def start(root):
    return subprocess.Popen(
        [sys.executable, ROOT / "program" / "train"],
        env={**os.environ, "SAGEMAKER_BASE_DIR": str(root), "TRAINING_JOB_NAME": "records"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_accuracy(output):
    return float(re.findall(r"val_accuracy=([0-9.]+)", output)[-1])


@pytest.mark.slow
def test_two_epochs_through_pipes(opt_ml, samples):
    """One FIFO per epoch, with im2rec's format; the report's pass through validation takes one more."""
    training, validation = samples
    counts = {"num_training_samples": str(len(training)), "num_validation_samples": str(len(validation))}
    root = configure(
        opt_ml, {"epochs": "2", "num_classes": "10", **counts}, ContentType="application/x-recordio"
    )
    data = root / "input" / "data"
    with (
        Feeder(data / "training", [pack_images(training)] * 3) as fed,
        Feeder(data / "validation", [pack_images(validation)] * 4),
        start(root) as process,
    ):
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        assert not (data / "training_0").exists()
        assert not (data / "training_1").exists()
        wait_for((data / "training_2").exists, "the FIFO that nobody asks for")
        assert fed.process.poll() is None
    manifest = json.loads((root / "model" / "manifest.json").read_text())
    assert (root / "model" / "model.h5").is_file()
    assert manifest["labels"] == [str(label) for label in range(10)]
    assert read_accuracy(output) > 0.8


def test_a_stop_while_a_pipe_is_silent_saves_the_model_so_far(opt_ml, samples):
    """The writer is late; the main thread waits in native code, where no handler runs."""
    training, validation = samples
    counts = {"num_training_samples": str(len(training)), "num_validation_samples": str(len(validation))}
    root = configure(opt_ml, {"epochs": "5", "num_classes": "10", **counts})
    data = root / "input" / "data"
    with (
        Feeder(data / "training", [pack_images(training)]),
        Feeder(data / "validation", [pack_images(validation)]),
        start(root) as process,
    ):
        for line in process.stdout:
            if line.startswith("epoch=1 "):
                break
        process.send_signal(signal.SIGTERM)  # there is no training_1
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "saving the model so far" in output
    assert (root / "model" / "model.h5").is_file()


@pytest.mark.slow
def test_tfrecord_files_train_like_pipes(opt_ml, samples, run_train):
    """Two files written by TensorFlow, one compressed; part is for validation, and texts name the labels."""
    training, _ = samples
    root = opt_ml({**SMALL, "epochs": "2"})
    folder = root / "input" / "data" / "training"
    examples = [make_example(label, image, f"digit {label}") for label, image in training]
    write_tfrecords(folder / "a.tfrecord", examples[::2])
    write_tfrecords(folder / "b.tfrecord.gz", examples[1::2], "GZIP")
    done = run_train(root, "algorithms.image_classifier", seconds=300)
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((root / "model" / "manifest.json").read_text())
    assert manifest["labels"] == [f"digit {label}" for label in range(10)]
    assert read_accuracy(done.stdout) > 0.8


@pytest.mark.slow
def test_a_pipe_without_declared_counts_is_one_sentence(opt_ml, run_train):
    root = configure(opt_ml, {"epochs": "1"})
    done = run_train(root, "algorithms.image_classifier")
    assert done.returncode == 1
    assert "set the hyperparameter num_classes" in (root / "output" / "failure").read_text()
    assert "Traceback" not in done.stdout + done.stderr
