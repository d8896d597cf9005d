"""The available networks, from pixels of 0 to 255 to class probabilities."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tandem.errors import UserError

logger = logging.getLogger(__name__)

#: Filters of SmallCNN's blocks; each block halves the feature map, but not below MIN_MAP_SIZE.
WIDTHS = (32, 64, 128)
MIN_MAP_SIZE = 4

#: The momentum of BatchNormalization's averages. Keras's own architectures have up to 0.999, with which
#: their predictions are noise for the first thousands of steps.
MOMENTUM = 0.9


@dataclass(frozen=True)
class Architecture:
    """A choice of `architecture`: its builder, its scaling of pixels, and its image sizes."""

    build: Callable[[tuple[int, int, int], float], Any]
    scale: float
    offset: float
    image_size: int
    min_size: int


def build_network(architecture: str, shape: tuple[int, int, int], classes: int, dropout: float = 0.3) -> Any:
    """Build a Keras model from float32 (n, *shape) of 0…255 to float32 (n, classes) that add up to 1.

    `dropout` is the share of features dropped before the last layer in training. Raises `UserError` if
    `shape` is too small for the architecture.
    """
    import keras

    chosen = ARCHITECTURES[architecture]
    if min(shape[:2]) < chosen.min_size:
        raise UserError(
            f"hyperparameter image_size is {min(shape[:2])}, but {architecture} needs {chosen.min_size} or "
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
    """Return the layers, not part of the network, that augment training images (n, h, w, c) of 0 to 255.

    `light` slightly shifts, rotates and zooms images and changes brightness and contrast; `flip` also mirrors
    them horizontally, which makes letters and digits unreadable.
    """
    import keras

    if kind == "none":
        return []
    # float32 with any policy: half precision would reduce brightness to eight steps of 32.
    layers = {"dtype": "float32"}
    light = [
        keras.layers.RandomTranslation(0.08, 0.08, fill_mode="nearest", **layers),
        keras.layers.RandomRotation(0.03, fill_mode="nearest", **layers),
        keras.layers.RandomZoom(0.1, fill_mode="nearest", **layers),
        keras.layers.RandomBrightness(0.1, value_range=(0, 255), **layers),
        keras.layers.RandomContrast(0.1, **layers),  # of 0 to 255 in both Keras 2 and 3
    ]
    return [keras.layers.RandomFlip("horizontal", **layers), *light] if kind == "flip" else light


def find_backbone(network: Any) -> Any:
    """Return the network without its last layers, which is the part that published weights are for."""
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
        if min(features.shape[1:3]) > MIN_MAP_SIZE:
            features = keras.layers.MaxPooling2D(2, padding="same")(features)
        features = keras.layers.Dropout(dropout / 3)(features)
    return keras.Model(inputs, features, name="backbone")


def _published(name: str, **options: Any) -> Callable[[tuple[int, int, int], float], Any]:
    """Return a builder of an architecture of `keras.applications` without its top and with random weights."""

    def build(shape: tuple[int, int, int], _dropout: float) -> Any:
        import keras

        return getattr(keras.applications, name)(
            include_top=False, weights=None, input_shape=shape, **options
        )

    return build


ARCHITECTURES = {
    "SmallCNN": Architecture(_small_cnn, 1 / 127.5, -1.0, image_size=32, min_size=8),
    "MobileNetV2": Architecture(_published("MobileNetV2"), 1 / 127.5, -1.0, image_size=224, min_size=32),
    # It has its own scaling, on which its published weights rely.
    "EfficientNetV2B0": Architecture(
        _published("EfficientNetV2B0", include_preprocessing=True), 1.0, 0.0, image_size=224, min_size=32
    ),
    "ResNet50V2": Architecture(_published("ResNet50V2"), 1 / 127.5, -1.0, image_size=224, min_size=32),
}
