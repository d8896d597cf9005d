"""The fit loop: stopping, early stopping, diverging, freezing, and going on where it was interrupted."""

import logging
import threading

import numpy as np
import pytest

from algorithms.image_classifier.networks import build_augmentation, build_network, find_backbone
from algorithms.image_classifier.training.loop import Fit, Outcome, Plan
from algorithms.image_classifier.training.step import Optimization, Trainer
from algorithms.image_classifier.training.train import describe_preprocessing
from backends.training.checkpoints import CheckpointStore
from backends.training.distribution import create_context
from conftest import CPU
from painted import read_epochs
from tandem.errors import UserError

# TensorFlow's tensors do not know NumPy 2's `copy`; Keras's saving asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def info(caplog):
    """Give the log, with what a job's log has."""
    caplog.set_level(logging.INFO, "algorithms")
    return caplog


class Noise:
    """A source of 8 x 8 noise whose labels mean nothing: batches of 4, in an order of the epoch's."""

    labels = ("even", "odd")

    def __init__(self, steps: int, seed: int = 0, check=lambda: None) -> None:
        self.steps = steps
        self.rows = 4 * steps
        self.check = check
        self.images = np.random.default_rng(seed).integers(0, 256, (self.rows, 8, 8, 3), np.uint8)

    def batches(self, epoch: int, start: int = 0):
        import tensorflow as tf

        order = np.random.default_rng(epoch).permutation(self.rows)
        parts = self.images[order], np.int64(order % 2), np.ones(self.rows, np.float32)
        return tf.data.Dataset.from_tensor_slices(parts).batch(4).skip(start)


class Silent(Noise):
    """A source that gives nothing, as a pipe into which nobody writes when the job is stopped."""

    def batches(self, epoch: int, start: int = 0):
        return super().batches(epoch, start).take(0)


class Padded(Noise):
    """A source of which only the first batches have rows that count."""

    def __init__(self, steps: int, real: int) -> None:
        super().__init__(steps)
        self.real = real

    def batches(self, epoch: int, start: int = 0):
        import tensorflow as tf

        def weigh(number, batch):
            images, labels, weights = batch
            return images, labels, weights * tf.cast(number < self.real, tf.float32)

        return super().batches(epoch).enumerate().map(weigh).skip(start)


class Tiny:
    """The smallest network, and what a fit needs around it."""

    def __init__(self, steps: int = 6, dropout: float = 0.3, **optimization) -> None:
        import keras

        keras.utils.set_random_seed(1)
        self.team = create_context(CPU, ["algo-1"], "algo-1")
        self.network = build_network("SmallCNN", (8, 8, 3), 2, dropout)
        self.stop = threading.Event()
        options = {"label_weights": [1, 1], "learning_rate": 0.01, "steps": 3 * steps, **optimization}
        spec = describe_preprocessing(8, "RGB")
        layers = build_augmentation("light")
        self.trainer = Trainer(self.network, layers, spec, Optimization(**options), self.team)

    def fit(self, training: Noise, validation: Noise | None = None, store=None, **plan) -> Outcome:
        plan = Plan(**{"epochs": 3, **plan})
        held = validation or Noise(2, seed=9)
        fit = Fit(self.trainer, training, held, plan, team=self.team, stop=self.stop, store=store)
        return fit.run()


def test_a_stop_in_the_middle_of_an_epoch_ends_with_the_step_that_saw_it(info):
    """The third step is the last one; there is no line for the unfinished epoch."""
    tiny = Tiny()
    taken = []

    def check() -> None:
        taken.append(1)
        if len(taken) == 3:
            tiny.stop.set()

    outcome = tiny.fit(Noise(10, check=check))
    assert "Stopped in epoch 1 after 3 steps" in info.text
    assert len(taken) == 4  # after each of the three steps, and once more at the end of the pass
    assert outcome.metrics.keys() == {"epoch", "loss", "accuracy"}
    assert outcome.history == []


def test_a_stop_before_the_first_step_leaves_no_model():
    """Random weights must not be taken for a model."""
    tiny = Tiny()
    tiny.stop.set()
    with pytest.raises(UserError, match="before its first step"):
        tiny.fit(Silent(4))


def test_a_step_without_a_row_that_counts_is_not_taken():
    """It would move BatchNormalization's averages and Adam's moments."""
    tiny = Tiny()
    outcome = tiny.fit(Padded(6, real=2), epochs=1)
    assert outcome.history[0]["loss"] > 0
    assert int(tiny.trainer.read()["optimizer"][0]) == 2  # Adam's count of steps


def test_a_checkpoint_that_cannot_be_written_at_a_stop_does_not_cost_the_model(tmp_path, info):
    """It is a warning; the caller goes on to write the model so far."""
    tiny = Tiny()

    class Full(CheckpointStore):
        def save(self, checkpoint):
            raise UserError("the disk is full")

    store = Full(tmp_path, "algo-1", {})
    outcome = tiny.fit(Noise(10, check=tiny.stop.set), store=store, checkpoint_seconds=1000)
    assert outcome.metrics["epoch"] == 1
    assert "The last checkpoint could not be written: the disk is full" in info.text


def test_xla_compiles_the_step_beside_the_augmentation():
    """XLA has no kernels for what the augmentation does; the loss is what it is without, but for dropout."""
    with_xla, without = (Tiny(xla=xla, dropout=0).fit(Noise(4), epochs=2).history for xla in (True, False))
    assert [epoch["loss"] for epoch in with_xla] == pytest.approx(
        [epoch["loss"] for epoch in without], rel=0.02
    )


def test_early_stopping_ends_the_fit_and_brings_the_best_epoch_back(info):
    """Noise is learnt by heart: val_loss rises, and the lowest of the printed ones is what is kept."""
    outcome = Tiny(learning_rate=0.05).fit(Noise(6), epochs=50, patience=2)
    lines = read_epochs(info)
    assert len(lines) == len(outcome.history) < 50
    assert outcome.metrics["val_loss"] == pytest.approx(min(line["val_loss"] for line in lines), rel=1e-4)
    assert lines[-1]["val_loss"] > outcome.metrics["val_loss"]
    assert f"val_loss={outcome.metrics['val_loss']:.6g}" in info.records[-1].getMessage()


def test_a_loss_that_is_no_number_ends_the_job_with_a_remedy():
    """The sentence names the hyperparameter to change."""
    with pytest.raises(UserError, match="learning_rate"):
        Tiny(label_weights=[1, float("nan")]).fit(Noise(2))


def test_while_it_is_frozen_only_the_last_layer_learns():
    """Then all of it does; a frozen BatchNormalization keeps its averages too."""
    import keras

    tiny = Tiny(steps=4, frozen_steps=4, fine_tuning_rate=0.01)
    backbone = find_backbone(tiny.network)
    before = [np.array(weights) for weights in tiny.network.get_weights()]
    tiny.fit(Noise(4), epochs=1)
    after = tiny.network.get_weights()
    body = len(backbone.get_weights())
    for old, new in zip(before[:body], after[:body], strict=True):
        np.testing.assert_array_equal(old, new)
    assert not np.array_equal(before[-2], after[-2])
    tiny.fit(Noise(4), epochs=2)
    unchanged = [
        np.array_equal(old, new) for old, new in zip(before, tiny.network.get_weights(), strict=True)
    ]
    assert not any(unchanged)
    assert isinstance(backbone, keras.Model)
    assert backbone.trainable


@pytest.mark.parametrize("interrupted_at", [1, 6, 7, 11])
def test_an_interrupted_fit_goes_on_to_the_same_bits(tmp_path, interrupted_at):
    """Weights, loss and history: augmentation and dropout too go on where they were."""
    whole = Tiny()
    expected = whole.fit(Noise(6))

    first = Tiny()
    taken = []

    def check() -> None:
        taken.append(1)
        if len(taken) == interrupted_at:
            first.stop.set()

    def store() -> CheckpointStore:
        return CheckpointStore(tmp_path / "checkpoints", "algo-1", {"must": {"what": "noise"}})

    first.fit(Noise(6, check=check), store=store())
    second = Tiny()
    found = second.fit(Noise(6), store=store())
    assert found == expected
    for ours, theirs in zip(whole.trainer.read().items(), second.trainer.read().items(), strict=True):
        for left, right in zip(ours[1], theirs[1], strict=True):
            np.testing.assert_array_equal(left, right, ours[0])


def test_a_finished_fit_has_nothing_left_to_do(tmp_path, info):
    """It is restored as it ended."""
    store = CheckpointStore(tmp_path, "algo-1", {})
    ended = Tiny().fit(Noise(2), store=store, epochs=2)
    lines = len(read_epochs(info))
    assert Tiny().fit(Noise(2), store=store, epochs=2) == ended
    assert len(read_epochs(info)) == lines


def test_rows_of_weight_nothing_change_nothing():
    """An unreadable picture counts neither in the loss nor in the gradients."""
    spoilt, clean = Tiny(), Tiny()
    images = np.random.default_rng(3).integers(0, 256, (4, 8, 8, 3), np.uint8)
    labels = np.array([0, 1, 1, 0], np.int64)

    def step(tiny, wrong_labels, weights):
        import tensorflow as tf

        batch = [tf.constant(images), tf.constant(wrong_labels), tf.constant(weights, tf.float32)]
        return tiny.trainer.train(0, batch).numpy()

    one = step(spoilt, labels, [1, 1, 1, 0])
    other = step(clean, np.array([0, 1, 1, 1], np.int64), [1, 1, 1, 0])
    np.testing.assert_array_equal(one, other)
    assert one[2] == 3
    for left, right in zip(spoilt.network.get_weights(), clean.network.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
