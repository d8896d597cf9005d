"""The networks to choose from: pixels 0…255 in, class probabilities out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tandem.errors import UserError

logger = logging.getLogger(__name__)

#: Filters of SmallCNN's blocks; each block halves the picture, down to no less than SMALLEST_MAP.
WIDTHS = (32, 64, 128)
SMALLEST_MAP = 4

#: How slowly BatchNormalization's averages follow the batches. Keras's own architectures have up to 0.999,
#: with which their answers are noise until thousands of steps have passed.
MOMENTUM = 0.9


@dataclass(frozen=True)
class Architecture:
    """A choice of `architecture`: how to build it, how it wants its pixels, and its sizes."""

    build: Callable[[tuple[int, int, int], float], Any]
    scale: float
    offset: float
    image_size: int
    smallest: int


def build_network(architecture: str, shape: tuple[int, int, int], classes: int, dropout: float = 0.3) -> Any:
    """Build a Keras model from float32 (n, *shape) of 0…255 to float32 (n, classes) that add up to 1.

    `dropout` is the share of features left out before the last layer while training. Raises `UserError`
    where the architecture cannot take pictures as small as `shape`.
    """
    import keras

    chosen = ARCHITECTURES[architecture]
    if min(shape[:2]) < chosen.smallest:
        raise UserError(
            f"hyperparameter image_size is {min(shape[:2])}, but {architecture} takes {chosen.smallest} or "
            "more; raise image_size or choose SmallCNN."
        )
    backbone = chosen.build(shape, dropout)
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = MOMENTUM
    inputs = keras.Input(shape, dtype="float32", name="pixels")
    scaled = keras.layers.Rescaling(chosen.scale, chosen.offset)(inputs)
    features = keras.layers.GlobalAveragePooling2D()(backbone(scaled))
    features = keras.layers.Dropout(dropout)(features)
    outputs = keras.layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities")(
        features
    )
    return keras.Model(inputs, outputs, name=architecture.lower())


def build_augmentation(kind: str) -> list[Any]:
    """Give the layers that vary a batch of training pictures, (n, h, w, c) of 0…255; not part of the network.

    `light` shifts, turns, zooms and changes light and contrast a little; `flip` also mirrors left and right,
    which letters and digits do not survive.
    """
    import keras

    if kind == "none":
        return []
    # float32 whatever the policy: half precision would cut brightness to eight steps of 32.
    layers = {"dtype": "float32"}
    light = [
        keras.layers.RandomTranslation(0.08, 0.08, fill_mode="nearest", **layers),
        keras.layers.RandomRotation(0.03, fill_mode="nearest", **layers),
        keras.layers.RandomZoom(0.1, fill_mode="nearest", **layers),
        keras.layers.RandomBrightness(0.1, value_range=(0, 255), **layers),
        keras.layers.RandomContrast(0.1, **layers),  # of 0…255 in Keras 2 and 3 alike
    ]
    return [keras.layers.RandomFlip("horizontal", **layers), *light] if kind == "flip" else light


def find_backbone(network: Any) -> Any:
    """Give the part of a network that is not its last layers: what published weights are of."""
    import keras

    return next(layer for layer in network.layers if isinstance(layer, keras.Model))


def _small_cnn(shape: tuple[int, int, int], dropout: float) -> Any:
    import keras

    inputs = keras.Input(shape)
    features = inputs
    for width in WIDTHS:
        for _ in range(2):
            features = keras.layers.Conv2D(width, 3, padding="same", use_bias=False)(features)
            features = keras.layers.BatchNormalization()(features)
            features = keras.layers.ReLU()(features)
        if min(features.shape[1:3]) > SMALLEST_MAP:
            features = keras.layers.MaxPooling2D(2, padding="same")(features)
        features = keras.layers.Dropout(dropout / 3)(features)
    return keras.Model(inputs, features, name="backbone")


def _published(name: str, **options: Any) -> Callable[[tuple[int, int, int], float], Any]:
    """Give a builder of `keras.applications`' architecture without its last layer, weights at random."""

    def build(shape: tuple[int, int, int], _dropout: float) -> Any:
        import keras

        return getattr(keras.applications, name)(
            include_top=False, weights=None, input_shape=shape, **options
        )

    return build


ARCHITECTURES = {
    "SmallCNN": Architecture(_small_cnn, 1 / 127.5, -1.0, image_size=32, smallest=8),
    "MobileNetV2": Architecture(_published("MobileNetV2"), 1 / 127.5, -1.0, image_size=224, smallest=32),
    # It brings its own scaling, which its published weights rely on.
    "EfficientNetV2B0": Architecture(
        _published("EfficientNetV2B0", include_preprocessing=True), 1.0, 0.0, image_size=224, smallest=32
    ),
    "ResNet50V2": Architecture(_published("ResNet50V2"), 1 / 127.5, -1.0, image_size=224, smallest=32),
}
