"""Grad-CAM: the parts of an image that a network's prediction is based on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tandem.errors import TandemError

#: Images per batch, as the gradients take some hundred MB with the largest network.
BATCH_SIZE = 4

Rows = np.ndarray[Any, np.dtype[Any]]


def locate(network: Any, pixels: Rows, labels: Rows) -> Rows:
    """Return float32 (n, rows, columns) of 0 to 1: what in pixels (n, h, w, c) contributes to labels (n,).

    The maps have the resolution of the network's last feature map before pooling, and are 0 where nothing
    contributes to the label. Raises `TandemError` for a network without a feature map.
    """
    import keras
    import tensorflow as tf

    maps = [
        tensor for layer in network.layers if len(getattr(tensor := _find_input(layer), "shape", ())) == 4
    ]
    if not maps:
        raise TandemError(f"{network.name} has no layer that takes a feature map.")
    before, score = _find_logits(network)
    parts = keras.Model(network.inputs, [maps[-1], before])
    heatmaps = []
    for start in range(0, len(pixels), BATCH_SIZE):
        batch = tf.constant(pixels[start : start + BATCH_SIZE], tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(batch)  # records everything that follows, trainable or not
            features, last = parts(batch, training=False)
            values = score(last)
            wanted = tf.constant(labels[start : start + BATCH_SIZE], tf.int64)
            chosen = tf.gather(values, wanted, axis=1, batch_dims=1)
        gradients = tf.cast(tape.gradient(chosen, features), tf.float32)
        weights = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)
        heat = tf.nn.relu(tf.reduce_sum(tf.cast(features, tf.float32) * weights, axis=-1))
        brightest = tf.reduce_max(heat, axis=(1, 2), keepdims=True)
        heatmaps.append(tf.math.divide_no_nan(heat, brightest).numpy())
    return np.concatenate(heatmaps)


def _find_input(layer: Any) -> Any:
    """Return the input tensor of a layer; None for layers with no or several inputs."""
    try:
        return layer.input
    except (AttributeError, ValueError):
        return None


def _find_logits(network: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Return a tensor of `network` and a function that computes the labels' scores from it.

    These are the scores before the softmax, as a softmax of exactly 1 has a gradient of 0, and the mistakes
    with the highest probabilities are the most interesting ones.
    """
    import tensorflow as tf

    last = network.layers[-1]
    if hasattr(last, "kernel"):
        return last.input, lambda rows: tf.linalg.matmul(
            tf.cast(rows, tf.float32), tf.cast(tf.convert_to_tensor(last.kernel), tf.float32)
        )
    return last.input, lambda rows: tf.cast(rows, tf.float32)
