"""The fit loop: stopping, early stopping, diverging."""

import itertools
import logging
import threading

import numpy as np
import pytest

from algorithms.image_classifier import fitting
from painted import read_epochs
from tandem.errors import UserError


@pytest.fixture
def info(caplog):
    """Give the log, with what a job's log has."""
    caplog.set_level(logging.INFO, "algorithms")
    return caplog


def tiny_fit(batches: int, stop: threading.Event, check=lambda: None, **changes) -> dict[str, float]:
    """Fit the smallest network to noise whose labels mean nothing."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(1)
    images = np.random.default_rng(0).integers(0, 256, (batches * 4, 8, 8, 3), np.uint8)
    labels = np.arange(batches * 4, dtype=np.int64) % 2
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    inputs = keras.Input((8, 8, 3))
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    network = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(flat))
    plan = {"epochs": 3, "steps_per_epoch": batches, "learning_rate": 0.01, "patience": 0}
    plan.update({name: value for name, value in changes.items() if name in plan})
    augment = changes.get("augment", lambda batch: batch)
    validation = changes.get("validation", dataset)
    return fitting.fit(network, augment, dataset, validation, fitting.Plan(**plan), stop=stop, check=check)


def test_a_stop_in_the_middle_of_an_epoch_ends_with_the_step_that_saw_it(info):
    """The third step is the last one; there is no line for the unfinished epoch."""
    stop = threading.Event()
    steps = itertools.count(1)
    taken = []

    def check() -> None:
        taken.append(next(steps))
        if taken[-1] == 3:
            stop.set()

    metrics = tiny_fit(10, stop, check)
    assert "Stopped in epoch 1 after 3 steps" in info.text
    assert len(taken) == 4  # after each of the three steps, and once more at the end of the pass
    assert metrics.keys() == {"epoch", "loss", "accuracy"}


def test_early_stopping_ends_the_fit_and_brings_the_best_epoch_back(info):
    """Noise is learnt by heart: val_loss rises, and the lowest of the printed ones is what is kept."""
    import tensorflow as tf

    other = np.random.default_rng(9).integers(0, 256, (16, 8, 8, 3), np.uint8)
    validation = tf.data.Dataset.from_tensor_slices((other, np.arange(16, dtype=np.int64) % 2)).batch(4)
    metrics = tiny_fit(6, threading.Event(), epochs=50, patience=2, validation=validation)
    lines = read_epochs(info)
    assert len(lines) < 50
    assert metrics["val_loss"] == pytest.approx(min(line["val_loss"] for line in lines), rel=1e-4)
    assert lines[-1]["val_loss"] > metrics["val_loss"]
    assert f"val_loss={metrics['val_loss']:.6g}" in info.records[-1].getMessage()


def test_a_loss_that_is_no_number_ends_the_job_with_a_remedy():
    """The sentence names the hyperparameter to change."""
    with pytest.raises(UserError, match="learning_rate"):
        tiny_fit(2, threading.Event(), augment=lambda batch: batch * float("nan"))
