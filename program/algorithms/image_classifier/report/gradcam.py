"""Grad-CAM: where in a picture a network found the label that it said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tandem.errors import TandemError

#: Pictures at once: their gradients take some hundred MB with the largest network.
TOGETHER = 4

Rows = np.ndarray[Any, np.dtype[Any]]


def locate(network: Any, pixels: Rows, said: Rows) -> Rows:
    """Give float32 (n, rows, columns) from 0 to 1: what in pixels (n, h, w, c) speaks for the labels `said`.

    The map is as coarse as the network's last one before it pools, and 0 where nothing speaks for the label.
    Raises `TandemError` for a network without such a map.
    """
    import keras
    import tensorflow as tf

    maps = [tensor for layer in network.layers if len(getattr(tensor := _input(layer), "shape", ())) == 4]
    if not maps:
        raise TandemError(f"{network.name} has no layer that takes a map of features.")
    before, score = _find_logits(network)
    parts = keras.Model(network.inputs, [maps[-1], before])
    heats = []
    for first in range(0, len(pixels), TOGETHER):
        some = tf.constant(pixels[first : first + TOGETHER], tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(some)  # puts all that follows on the tape, trainable or not
            features, last = parts(some, training=False)
            values = score(last)
            wanted = tf.constant(said[first : first + TOGETHER], tf.int64)
            chosen = tf.gather(values, wanted, axis=1, batch_dims=1)
        gradients = tf.cast(tape.gradient(chosen, features), tf.float32)
        weights = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)
        heat = tf.nn.relu(tf.reduce_sum(tf.cast(features, tf.float32) * weights, axis=-1))
        brightest = tf.reduce_max(heat, axis=(1, 2), keepdims=True)
        heats.append(tf.math.divide_no_nan(heat, brightest).numpy())
    return np.concatenate(heats)


def _input(layer: Any) -> Any:
    """Give the tensor that goes into a layer; None for layers with none or several."""
    try:
        return layer.input
    except (AttributeError, ValueError):
        return None


def _find_logits(network: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Give a tensor of `network`, and what makes the labels' scores of it.

    The scores are those before the softmax: where that says exactly 1 its gradient is 0, and the surest
    mistakes are the ones to look at.
    """
    import tensorflow as tf

    last = network.layers[-1]
    if hasattr(last, "kernel"):
        return last.input, lambda rows: tf.linalg.matmul(
            tf.cast(rows, tf.float32), tf.cast(tf.convert_to_tensor(last.kernel), tf.float32)
        )
    return last.input, lambda rows: tf.cast(rows, tf.float32)
