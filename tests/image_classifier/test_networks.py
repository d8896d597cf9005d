"""The networks: shapes, normalization and augmentation."""

import numpy as np
import pytest

from algorithms.image_classifier import networks
from tandem.errors import UserError

# TensorFlow's tensors do not know NumPy 2's `copy`; Keras's saving asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("architecture", networks.ARCHITECTURES)
def test_each_architecture_returns_class_probabilities(architecture):
    """From float32 pixels of 0 to 255 to float32 rows that add up to 1."""
    network = networks.build_network(architecture, (32, 32, 3), 5)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    probabilities = network(pixels, training=False).numpy()
    assert probabilities.shape == (2, 5)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-4)


def test_the_averages_of_batch_normalization_follow_batches_at_our_momentum():
    """`build_network` sets `momentum` on existing layers, which Keras must use in training."""
    import keras

    network = networks.build_network("SmallCNN", (8, 8, 3), 2)
    backbone = networks.find_backbone(network)
    layer = next(layer for layer in backbone.layers if isinstance(layer, keras.layers.BatchNormalization))
    features = np.full((4, 8, 8, 32), 5, np.float32)
    layer(features, training=True)
    np.testing.assert_allclose(np.array(layer.moving_mean), 5 * (1 - networks.MOMENTUM), rtol=1e-5)


def test_an_image_size_below_the_minimum_is_rejected():
    """Keras's own error would name `input_shape` instead of the hyperparameter."""
    with pytest.raises(UserError, match="image_size is 16.*32 or more"):
        networks.build_network("MobileNetV2", (16, 16, 3), 2)


@pytest.mark.parametrize(("kind", "changes"), [("none", False), ("light", True), ("flip", True)])
def test_augmentation_preserves_shape_and_range(kind, changes):
    """Augmented images look like those of requests."""
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.float32)
    varied = images
    for layer in networks.build_augmentation(kind):
        varied = np.asarray(layer(varied, training=True))
    assert varied.shape == images.shape
    assert varied.min() >= 0
    assert varied.max() <= 255
    assert bool((varied != images).any()) is changes
