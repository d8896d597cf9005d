"""One step of training and of measuring: graphs over a network, its optimizer and the team's replicas."""

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
    """How weights change. The first `frozen_steps` fit the last layer only, the others all of the network.

    Each of the two phases has a rate that falls along a cosine to zero: the last epochs settle, whatever the
    first ones were. `label_weights` (labels,) weigh a picture's loss by its label. With `scaled_loss`
    gradients below float16's smallest number are not lost.
    """

    label_weights: Sequence[float]
    learning_rate: float
    steps: int
    frozen_steps: int = 0
    fine_tuning_rate: float = 0.0
    scaled_loss: bool = False
    xla: bool = False


class Trainer:
    """A network that learns batch by batch; made inside the team's scope.

    A batch is (pixels (n, h, w, c), labels int64 (n,), weights float32 (n,)), this host's share of it. What a
    step gives is float32 (loss sum, correct, weight), summed over all replicas of all hosts.
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
        #: XLA has no kernels for what augmentation does, and is for one replica alone.
        self._xla = optimization.xla and team.replicas == 1
        self._vary: Any = None
        self._optimization = optimization
        self._team = team
        self._optimizer = keras.optimizers.Adam(_schedule(optimization))
        if optimization.scaled_loss:
            self._optimizer = keras.optimizers.LossScaleOptimizer(self._optimizer)
        self._optimizer.build(network.trainable_variables)
        self._steps: dict[str, Any] = {}

    def train(self, step: int, batch: Sequence[Any]) -> Any:
        """Take the training's step number `step`, counted from 0 over all epochs."""
        kind = "frozen" if step < self._optimization.frozen_steps else "whole"
        take = self._find(kind)
        return take(self._vary(batch[0]), *batch[1:]) if self._xla else take(*batch)

    def measure(self, batch: Sequence[Any]) -> Any:
        """Only look."""
        return self._find("measure")(*batch)

    def read(self) -> Arrays:
        """Give everything that a step changes: weights, averages, the optimizer's moments, random states."""
        return {name: [np.asarray(v.numpy()) for v in vs] for name, vs in self._variables().items()}

    def restore(self, arrays: Mapping[str, Sequence[np.ndarray[Any, np.dtype[Any]]]]) -> None:
        """Take back what `read` gave."""
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
        """Give the graph of a kind of step, traced when first asked for."""
        if kind not in self._steps:
            backbone = networks.find_backbone(self.network)
            backbone.trainable = kind != "frozen"  # a frozen BatchNormalization also keeps its averages
            step = self._measure_step() if kind == "measure" else self._train_step()
            traced = self._team.trace(step, self._signature_of(kind), xla=self._xla)
            traced.get_concrete_function()  # now, while the backbone is frozen or not
            self._steps[kind] = traced
            backbone.trainable = True
        return self._steps[kind]

    def _signature_of(self, kind: str) -> list[Any]:
        """Give what a kind of step takes; beside XLA, pictures are varied before it."""
        import tensorflow as tf

        pixels, *rest = self._signature
        if not self._xla or kind == "measure":
            return [pixels, *rest]
        self._vary = tf.function(self._augment, input_signature=[pixels], autograph=False)
        return [tf.TensorSpec(pixels.shape, tf.float32), *rest]

    def _augment(self, pixels: Any) -> Any:
        """Vary a batch of pictures; (n, h, w, c) float32 of 0…255."""
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
        scale = getattr(optimizer, "scale_loss", lambda loss: loss)

        def step(pixels: Any, labels: Any, weights: Any) -> Any:
            images = pixels if self._xla else self._augment(pixels)
            # The loss is a mean over the whole batch, wherever its rows are computed.
            total = team.sum(tf.reduce_sum(weights))
            weighed = weights * tf.gather(label_weights, labels)
            with tf.GradientTape() as tape:
                answers = network(images, training=True)
                losses = keras.losses.sparse_categorical_crossentropy(labels, answers)
                loss = scale(tf.math.divide_no_nan(tf.reduce_sum(weighed * losses), total))
            gradients = tape.gradient(loss, variables)
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return _sums(weighed * losses, answers, labels, weights)

        return step

    def _measure_step(self) -> Any:
        import keras
        import tensorflow as tf

        def step(pixels: Any, labels: Any, weights: Any) -> Any:
            answers = self.network(tf.cast(pixels, tf.float32), training=False)
            losses = keras.losses.sparse_categorical_crossentropy(labels, answers)
            return _sums(weights * losses, answers, labels, weights)

        return step


def balance_labels(counts: Sequence[int]) -> list[float]:
    """Give each label the weight with which all labels count the same, and the mean picture 1."""
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
    """Give the learning rate as a function of the step."""
    import keras
    import tensorflow as tf

    class Phases(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]  # Keras has no types
        """One cosine for the frozen steps, another one for the rest."""

        def __call__(self, step: Any) -> Any:
            step = tf.cast(step, tf.float32)
            frozen = float(optimization.frozen_steps)
            rest = max(optimization.steps - frozen, 1.0)
            rate = optimization.fine_tuning_rate if frozen else optimization.learning_rate
            whole = rate * _fall(tf, (step - frozen) / rest)
            if not frozen:
                return whole
            return tf.where(step < frozen, optimization.learning_rate * _fall(tf, step / frozen), whole)

    return Phases()


def _fall(tf: Any, share: Any) -> Any:
    return 0.5 * (1.0 + tf.cos(math.pi * tf.clip_by_value(share, 0.0, 1.0)))


def _sums(losses: Any, answers: Any, labels: Any, weights: Any) -> Any:
    import tensorflow as tf

    right = tf.cast(tf.equal(tf.argmax(answers, axis=-1), labels), tf.float32)
    return tf.stack([tf.reduce_sum(losses), tf.reduce_sum(weights * right), tf.reduce_sum(weights)])
