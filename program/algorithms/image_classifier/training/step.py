"""The training and evaluation steps, as graphs over a network, its optimizer and all replicas."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from algorithms.image_classifier import networks
from backends.training.distribution import DistributedContext
from tandem.images.codec import Preprocessing

Arrays = dict[str, list[np.ndarray[Any, np.dtype[Any]]]]


@dataclass(frozen=True)
class Optimization:
    """How weights are optimized: the first `frozen_steps` fit only the last layer, the others all layers.

    The learning rate of each of the two phases falls to zero along a cosine. `label_weights` (labels,) weight
    an image's loss by its label. `scaled_loss` prevents float16 gradients from underflowing.
    """

    label_weights: Sequence[float]
    learning_rate: float
    steps: int
    frozen_steps: int = 0
    fine_tuning_rate: float = 0.0
    scaled_loss: bool = False
    xla: bool = False


class Trainer:
    """Trains a network batch by batch; must be created inside the scope of the team's strategy.

    A batch is this host's share: (pixels (n, h, w, c), labels int64 (n,), weights float32 (n,)). A step
    returns float32 (loss sum, correct, weight), summed over all replicas of all hosts.
    """

    def __init__(
        self,
        network: Any,
        augmentation: Sequence[Any],
        spec: Preprocessing,
        optimization: Optimization,
        team: DistributedContext,
    ) -> None:
        import keras

        self.network = network
        self._augmentation = augmentation
        self._signature = _batch_signature(spec)
        # XLA has no kernels for the augmentation, which runs before the step, and supports only one replica.
        self._xla = optimization.xla and team.replicas == 1
        self._augment_before: Any = None
        self._optimization = optimization
        self._team = team
        self._optimizer = keras.optimizers.Adam(_schedule(optimization))
        if optimization.scaled_loss:
            self._optimizer = keras.optimizers.LossScaleOptimizer(self._optimizer)
        self._optimizer.build(network.trainable_variables)
        self._steps: dict[str, Any] = {}

    def train(self, step: int, batch: Sequence[Any]) -> Any:
        """Run training step number `step`, counted from 0 over all epochs."""
        kind = "frozen" if step < self._optimization.frozen_steps else "whole"
        run = self._find(kind)
        return run(self._augment_before(batch[0]), *batch[1:]) if self._xla else run(*batch)

    def measure(self, batch: Sequence[Any]) -> Any:
        """Run an evaluation step, which changes nothing."""
        return self._find("measure")(*batch)

    def read(self) -> Arrays:
        """Return everything that a step changes: weights, averages, optimizer moments, random states."""
        return {name: [np.asarray(v.numpy()) for v in vs] for name, vs in self._variables().items()}

    def restore(self, arrays: Mapping[str, Sequence[np.ndarray[Any, np.dtype[Any]]]]) -> None:
        """Restore the arrays that `read` returned."""
        for name, variables in self._variables().items():
            for variable, array in zip(variables, arrays[name], strict=True):
                variable.assign(array)

    def _variables(self) -> dict[str, list[Any]]:
        augmentation = [variable for layer in self._augmentation for variable in layer.variables]
        optimizer = self._optimizer.variables
        return {
            "network": list(self.network.variables),
            "optimizer": list(optimizer() if callable(optimizer) else optimizer),  # a method in Keras 2
            "augmentation": augmentation,
        }

    def _find(self, kind: str) -> Any:
        """Return the graph of a kind of step; it is traced on first use."""
        if kind not in self._steps:
            backbone = networks.find_backbone(self.network)
            backbone.trainable = kind != "frozen"  # a frozen BatchNormalization also keeps its averages
            step = self._measure_step() if kind == "measure" else self._train_step()
            traced = self._team.trace(step, self._make_signature(kind), xla=self._xla)
            traced.get_concrete_function()  # trace now, while `trainable` is set
            self._steps[kind] = traced
            backbone.trainable = True
        return self._steps[kind]

    def _make_signature(self, kind: str) -> list[Any]:
        """Return the input signature of a kind of step; with XLA, the augmentation runs before it."""
        import tensorflow as tf

        pixels, *rest = self._signature
        if not self._xla or kind == "measure":
            return [pixels, *rest]
        self._augment_before = tf.function(self._augment, input_signature=[pixels], autograph=False)
        return [tf.TensorSpec(pixels.shape, tf.float32), *rest]

    def _augment(self, pixels: Any) -> Any:
        """Return an augmented batch of images, float32 (n, h, w, c) of 0 to 255."""
        import tensorflow as tf

        images = tf.cast(pixels, tf.float32)
        for layer in self._augmentation:
            images = layer(images, training=True)
        return images

    def _train_step(self) -> Any:
        import keras
        import tensorflow as tf

        network, optimizer, team = self.network, self._optimizer, self._team
        variables = list(network.trainable_variables)
        label_weights = tf.constant(self._optimization.label_weights, tf.float32)
        scale = optimizer.scale_loss if self._optimization.scaled_loss else lambda loss: loss

        def step(pixels: Any, labels: Any, weights: Any) -> Any:
            images = pixels if self._xla else self._augment(pixels)
            # The loss is the mean over the global batch, on whichever replicas its rows are.
            total = team.sum(tf.reduce_sum(weights))
            weighted = weights * tf.gather(label_weights, labels)
            with tf.GradientTape() as tape:
                probabilities = network(images, training=True)
                losses = keras.losses.sparse_categorical_crossentropy(labels, probabilities)
                loss = scale(tf.math.divide_no_nan(tf.reduce_sum(weighted * losses), total))
            gradients = tape.gradient(loss, variables)
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return _sums(weighted * losses, probabilities, labels, weights)

        return step

    def _measure_step(self) -> Any:
        import keras
        import tensorflow as tf

        def step(pixels: Any, labels: Any, weights: Any) -> Any:
            probabilities = self.network(tf.cast(pixels, tf.float32), training=False)
            losses = keras.losses.sparse_categorical_crossentropy(labels, probabilities)
            return _sums(weights * losses, probabilities, labels, weights)

        return step


def balance_labels(counts: Sequence[int]) -> list[float]:
    """Return weights with which every label counts the same in total, and images have a mean weight of 1."""
    present = [count for count in counts if count]
    return [sum(present) / (len(present) * count) if count else 0.0 for count in counts]


def _batch_signature(spec: Preprocessing) -> list[Any]:
    import tensorflow as tf

    return [
        tf.TensorSpec((None, *spec.shape), spec.dtype),
        tf.TensorSpec((None,), tf.int64),
        tf.TensorSpec((None,), tf.float32),
    ]


def _schedule(optimization: Optimization) -> Any:
    """Return the learning rate as a function of the step."""
    import keras
    import tensorflow as tf

    class Phases(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]  # Keras has no types
        """One cosine for the frozen steps and another one for the rest."""

        def __call__(self, step: Any) -> Any:
            step = tf.cast(step, tf.float32)
            frozen = float(optimization.frozen_steps)
            rest = max(optimization.steps - frozen, 1.0)
            rate = optimization.fine_tuning_rate if frozen else optimization.learning_rate
            whole = rate * _cosine_decay(tf, (step - frozen) / rest)
            if not frozen:
                return whole
            return tf.where(
                step < frozen, optimization.learning_rate * _cosine_decay(tf, step / frozen), whole
            )

    return Phases()


def _cosine_decay(tf: Any, progress: Any) -> Any:
    return 0.5 * (1.0 + tf.cos(math.pi * tf.clip_by_value(progress, 0.0, 1.0)))


def _sums(losses: Any, probabilities: Any, labels: Any, weights: Any) -> Any:
    import tensorflow as tf

    correct = tf.cast(tf.equal(tf.argmax(probabilities, axis=-1), labels), tf.float32)
    return tf.stack([tf.reduce_sum(losses), tf.reduce_sum(weights * correct), tf.reduce_sum(weights)])
