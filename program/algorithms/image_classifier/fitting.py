"""The loop that fits a network: epochs, early stopping, and leaving at once when the job is stopped."""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tandem.errors import UserError
from tandem.metrics import format_metrics

logger = logging.getLogger(__name__)

#: Steps between two looks at the loss; each look waits for the device.
LOOK_EVERY = 20


@dataclass(frozen=True)
class Plan:
    """How to fit; `patience` 0 means to go through all epochs, `progress` to show a bar on the terminal."""

    epochs: int
    steps_per_epoch: int
    learning_rate: float
    patience: int
    progress: bool = False


@dataclass
class Tally:
    """Sums over the pictures of one pass; what the device has not computed yet is pending."""

    loss: float = 0.0
    correct: int = 0
    images: int = 0
    steps: int = 0
    labels: set[int] = field(default_factory=set)
    pending: list[Any] = field(default_factory=list)

    def add(self, result: Any, labels: Any) -> None:
        """Take in one step: its (loss, correct, images) and its labels."""
        self.steps += 1
        self.labels.update(labels.numpy().tolist())
        self.pending.append(result)
        if len(self.pending) >= LOOK_EVERY:
            self.settle()

    def settle(self) -> None:
        """Wait for what is pending; raise `UserError` if the loss is not a number any more."""
        for result in self.pending:
            loss, correct, images = result.numpy().tolist()
            self.loss += loss
            self.correct += int(correct)
            self.images += int(images)
        self.pending.clear()
        if not math.isfinite(self.loss):
            raise UserError(
                f"the loss became {self.loss}: the fit diverged. Lower the hyperparameter learning_rate."
            )

    def means(self, prefix: str = "") -> dict[str, float]:
        """Give the mean loss and accuracy of the pictures that are settled."""
        count = max(self.images, 1)
        return {f"{prefix}loss": self.loss / count, f"{prefix}accuracy": self.correct / count}


class Progress:
    """Keras's progress bar, for one pass."""

    def __init__(self, epoch: int, plan: Plan) -> None:
        import keras

        sys.stdout.write(f"Epoch {epoch}/{plan.epochs}\n")
        self._bar = keras.utils.Progbar(plan.steps_per_epoch, stateful_metrics=["loss", "accuracy"])

    def show(self, tally: Tally) -> None:
        """Show the step just taken, waiting for it."""
        tally.settle()
        self._bar.update(tally.steps, list(tally.means().items()), finalize=False)

    def close(self, tally: Tally) -> None:
        """Show the whole pass and end the line."""
        self._bar.update(tally.steps, list(tally.means().items()), finalize=True)


def fit(
    network: Any,
    augment: Callable[[Any], Any],
    training: Any,
    validation: Any,
    plan: Plan,
    *,
    stop: threading.Event,
    check: Callable[[], None],
) -> dict[str, float]:
    """Fit `network` and log one line an epoch; give the numbers of the weights it ends with.

    It leaves right after the step in which `stop` was set. With patience it ends after so many epochs without
    a lower val_loss, and the weights of the best epoch come back, also after a stop. `check` is called after
    each step and may raise. Raises `UserError` if fewer than two classes can be read, or the fit diverges.
    """
    train_step = _train_step(network, augment, training.element_spec, plan)
    test_step = _test_step(network, validation.element_spec)
    best: dict[str, float] = {}
    best_weights: Any = None
    metrics: dict[str, float] = {}
    for epoch in range(1, plan.epochs + 1):
        started = time.monotonic()
        seen = _pass(training, train_step, stop, check, Progress(epoch, plan) if plan.progress else None)
        seconds = time.monotonic() - started
        metrics = {"epoch": epoch, **seen.means()}
        if not stop.is_set() and len(seen.labels) < 2:
            raise UserError(
                f"the readable pictures for training are of {len(seen.labels)} class(es); expected two or "
                "more. The log names the unreadable ones."
            )
        held = _pass(validation, test_step, stop, check) if not stop.is_set() else Tally()
        if stop.is_set():
            logger.info(
                "Stopped in epoch %s after %s steps of it; saving the model so far.", epoch, seen.steps
            )
            break
        if not held.images:
            raise UserError("no picture for validation could be read; the log names them and the reasons.")
        metrics |= held.means("val_")
        logger.info("%s", format_metrics({**metrics, "images_per_second": seen.images / max(seconds, 1e-9)}))
        if not plan.patience:
            continue
        if not best or metrics["val_loss"] < best["val_loss"]:
            best, best_weights = metrics, network.get_weights()
        elif epoch - best["epoch"] >= plan.patience:
            logger.info("No lower val_loss for %s epochs; ending early.", plan.patience)
            break
    if best and best is not metrics:
        network.set_weights(best_weights)
        logger.info("The weights of the best epoch are back: %s", format_metrics(best))
        return best
    return metrics


def _pass(
    batches: Any,
    step: Callable[[Any, Any], Any],
    stop: threading.Event,
    check: Callable[[], None],
    progress: Progress | None = None,
) -> Tally:
    """Take `step` on every batch, or up to the one in which `stop` is set."""
    tally = Tally()
    for images, labels in batches:
        tally.add(step(images, labels), labels)
        check()
        if progress:
            progress.show(tally)
        if stop.is_set():
            break
    tally.settle()
    check()
    if progress:
        progress.close(tally)
    return tally


def _train_step(network: Any, augment: Callable[[Any], Any], signature: Any, plan: Plan) -> Any:
    """Give a graph that fits to one batch: (images, labels) → float32 (loss sum, correct, images)."""
    import keras
    import tensorflow as tf

    # Along a cosine to zero: the last epochs settle, whatever the first ones were.
    falling = keras.optimizers.schedules.CosineDecay(plan.learning_rate, plan.epochs * plan.steps_per_epoch)
    optimizer = keras.optimizers.Adam(falling)
    variables = network.trainable_variables
    optimizer.build(variables)

    def step(images: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            answers = network(augment(tf.cast(images, tf.float32)), training=True)
            losses = keras.losses.sparse_categorical_crossentropy(labels, answers)
            loss = tf.reduce_mean(losses)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return _sums(losses, answers, labels)

    return tf.function(step, input_signature=signature, autograph=False)


def _test_step(network: Any, signature: Any) -> Any:
    """Give a graph that only looks: (images, labels) → float32 (loss sum, correct, images)."""
    import keras
    import tensorflow as tf

    def step(images: Any, labels: Any) -> Any:
        answers = network(tf.cast(images, tf.float32), training=False)
        return _sums(keras.losses.sparse_categorical_crossentropy(labels, answers), answers, labels)

    return tf.function(step, input_signature=signature, autograph=False)


def _sums(losses: Any, answers: Any, labels: Any) -> Any:
    import tensorflow as tf

    correct = tf.math.count_nonzero(tf.equal(tf.argmax(answers, axis=-1), labels))
    return tf.stack(
        [tf.reduce_sum(losses), tf.cast(correct, tf.float32), tf.cast(tf.size(labels), tf.float32)]
    )
