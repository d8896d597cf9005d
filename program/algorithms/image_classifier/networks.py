"""The networks to choose from: pixels 0…255 in, class probabilities out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends import tensorflow_backend
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

    build: Callable[[tuple[int, int, int]], Any]
    scale: float
    offset: float
    image_size: int
    smallest: int


def build_network(architecture: str, shape: tuple[int, int, int], classes: int) -> Any:
    """Build a Keras model from float32 (n, *shape) of 0…255 to float32 (n, classes) that add up to 1.

    Raises `UserError` where the architecture cannot take pictures as small as `shape`.
    """
    import keras

    chosen = ARCHITECTURES[architecture]
    if min(shape[:2]) < chosen.smallest:
        raise UserError(
            f"hyperparameter image_size is {min(shape[:2])}, but {architecture} takes {chosen.smallest} or "
            "more; raise image_size or choose SmallCNN."
        )
    backbone = chosen.build(shape)
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = MOMENTUM
    inputs = keras.Input(shape, dtype="float32", name="pixels")
    scaled = keras.layers.Rescaling(chosen.scale, chosen.offset)(inputs)
    features = keras.layers.GlobalAveragePooling2D()(backbone(scaled))
    features = keras.layers.Dropout(0.3)(features)
    outputs = keras.layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities")(
        features
    )
    return keras.Model(inputs, outputs, name=architecture.lower())


def build_augmentation(kind: str) -> Callable[[Any], Any]:
    """Give what varies a batch of training pictures, (n, h, w, c) float32 of 0…255; not part of the network.

    `light` shifts, turns, zooms and changes light and contrast a little; `flip` also mirrors left and right,
    which letters and digits do not survive.
    """
    import keras

    layers: list[Any] = []
    if kind == "flip":
        layers.append(keras.layers.RandomFlip("horizontal"))
    if kind in ("light", "flip"):
        layers += [
            keras.layers.RandomTranslation(0.08, 0.08, fill_mode="nearest"),
            keras.layers.RandomRotation(0.03, fill_mode="nearest"),
            keras.layers.RandomZoom(0.1, fill_mode="nearest"),
            keras.layers.RandomBrightness(0.1, value_range=(0, 255)),
            keras.layers.RandomContrast(0.1),  # of 0…255 in Keras 2 and 3 alike
        ]

    def augment(images: Any) -> Any:
        for layer in layers:
            images = layer(images, training=True)
        return images

    return augment


def load_pretrained(network: Any, path: Path) -> None:
    """Start `network` from the Keras file at `path`: all its weights, or all but the last layer's.

    The file may hold a whole model (.keras, .h5) or weights only (.weights.h5, or Keras's published
    `…_no_top.h5`). Raises `UserError` saying in a sentence why it does not fit.
    """
    import h5py  # type: ignore[import-untyped]  # comes with Keras

    try:
        whole = path.suffix == ".keras"
        if not whole:
            with h5py.File(path) as file:
                whole = "model_config" in file.attrs
        if whole:
            _adopt(network, tensorflow_backend.read_model(path).get_weights(), path)
        else:
            _load_weights(network, path)
    except UserError:
        raise
    except Exception as error:  # a foreign file can fail in any way; each is the file's fault
        raise UserError(
            f"channel pretrained: {path.name} cannot be read as a Keras file: {_first_line(error)}. "
            "Expected a model or weights saved by Keras 3 (.keras, .h5, .weights.h5)."
        ) from error


def _adopt(network: Any, weights: Sequence[Any], path: Path) -> None:
    backbone = _backbone(network)
    wanted = [tuple(weight.shape) for weight in network.get_weights()]
    body = [tuple(weight.shape) for weight in backbone.get_weights()]
    found = [tuple(weight.shape) for weight in weights]
    if found == wanted:
        network.set_weights(weights)
        logger.info("All weights start from %s.", path.name)
    elif found[: len(body)] == body:
        backbone.set_weights(weights[: len(body)])
        logger.info("The weights start from %s, those of the last layer at random.", path.name)
    else:
        pairs = enumerate(zip(found, body, strict=False))
        place = next((i for i, (got, expected) in pairs if got != expected), len(found))
        there = f"shape {found[place]}" if place < len(found) else "nothing"
        raise UserError(
            f"channel pretrained: {path.name} does not fit {network.name}: weight {place + 1} should have "
            f"shape {body[place]}, and the file has {there}. Use weights of the same architecture and color."
        )


def _load_weights(network: Any, path: Path) -> None:
    """Load weights only, into the whole network or else into all but its last layer."""
    before = network.get_weights()
    backbone = _backbone(network)
    try:
        network.load_weights(path)
    except Exception:  # noqa: BLE001  # Keras raises many types; the next attempt says what is wrong
        network.set_weights(before)
    else:
        logger.info("All weights start from %s.", path.name)
        return
    try:
        backbone.load_weights(path)
    except Exception as error:
        network.set_weights(before)
        raise UserError(
            f"channel pretrained: {path.name} does not fit {network.name}: {_first_line(error)}. "
            "Use weights of the same architecture and color."
        ) from error
    logger.info("The weights start from %s, those of the last layer at random.", path.name)


def _backbone(network: Any) -> Any:
    import keras

    return next(layer for layer in network.layers if isinstance(layer, keras.Model))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(". ")


def _small_cnn(shape: tuple[int, int, int]) -> Any:
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
        features = keras.layers.Dropout(0.1)(features)
    return keras.Model(inputs, features, name="backbone")


def _published(name: str, **options: Any) -> Callable[[tuple[int, int, int]], Any]:
    """Give a builder of `keras.applications`' architecture without its last layer, weights at random."""

    def build(shape: tuple[int, int, int]) -> Any:
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
