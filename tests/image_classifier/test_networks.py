"""The networks: shapes and augmentation."""

import numpy as np
import pytest

from algorithms.image_classifier import networks
from tandem.errors import UserError

# TensorFlow's tensors do not know NumPy 2's `copy`; Keras's saving asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("architecture", networks.ARCHITECTURES)
def test_each_architecture_gives_probabilities_of_the_classes(architecture):
    """float32 pixels of 0 to 255 in, float32 rows that add up to 1 out."""
    network = networks.build_network(architecture, (32, 32, 3), 5)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    probabilities = network(pixels, training=False).numpy()
    assert probabilities.shape == (2, 5)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-4)


def test_an_architecture_names_the_smallest_picture_it_takes():
    """Keras's own sentence would be about `input_shape`, which nobody set."""
    with pytest.raises(UserError, match="image_size is 16.*32 or more"):
        networks.build_network("MobileNetV2", (16, 16, 3), 2)


@pytest.mark.parametrize(("kind", "changes"), [("none", False), ("light", True), ("flip", True)])
def test_augmentation_keeps_shape_and_range(kind, changes):
    """The network sees pictures like those that it will be asked about."""
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.float32)
    varied = images
    for layer in networks.build_augmentation(kind):
        varied = np.asarray(layer(varied, training=True))
    assert varied.shape == images.shape
    assert varied.min() >= 0
    assert varied.max() <= 255
    assert bool((varied != images).any()) is changes
