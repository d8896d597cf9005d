"""The networks: shapes, augmentation, and weights to start from."""

import numpy as np
import pytest

from algorithms.image_classifier import networks, training
from painted import make_channels
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
    varied = np.asarray(networks.build_augmentation(kind)(images))
    assert varied.shape == images.shape
    assert varied.min() >= 0
    assert varied.max() <= 255
    assert bool((varied != images).any()) is changes


@pytest.mark.parametrize("name", ["model.h5", "model.keras"])
def test_a_whole_model_can_be_the_start_of_another(tmp_path, name):
    """With the same labels all weights come over; with others all but the last layer's."""
    source = networks.build_network("SmallCNN", (8, 8, 3), 3)
    source.save(tmp_path / name)
    same = networks.build_network("SmallCNN", (8, 8, 3), 3)
    networks.load_pretrained(same, tmp_path / name)
    other = networks.build_network("SmallCNN", (8, 8, 3), 7)
    networks.load_pretrained(other, tmp_path / name)
    for index, weights in enumerate(source.get_weights()):
        np.testing.assert_array_equal(same.get_weights()[index], weights)
        if index < len(source.get_weights()) - 2:  # all but the last layer's kernel and bias
            np.testing.assert_array_equal(other.get_weights()[index], weights)


def test_weights_only_files_fit_the_whole_or_the_body(tmp_path):
    """Keras's `.weights.h5` of a whole network, or of one without its last layer."""
    source = networks.build_network("SmallCNN", (8, 8, 3), 3)
    source.save_weights(tmp_path / "whole.weights.h5")
    networks._backbone(source).save_weights(tmp_path / "body.weights.h5")
    whole, body = (networks.build_network("SmallCNN", (8, 8, 3), 3) for _ in range(2))
    networks.load_pretrained(whole, tmp_path / "whole.weights.h5")
    networks.load_pretrained(body, tmp_path / "body.weights.h5")
    for index, weights in enumerate(source.get_weights()):
        np.testing.assert_array_equal(whole.get_weights()[index], weights)
    for index, weights in enumerate(networks._backbone(source).get_weights()):
        np.testing.assert_array_equal(body.get_weights()[index], weights)


def test_weights_of_another_architecture_are_refused_and_change_nothing(tmp_path):
    """The sentence names the file and what does not fit."""
    networks.build_network("SmallCNN", (8, 8, 1), 2).save_weights(tmp_path / "gray.weights.h5")
    networks.build_network("SmallCNN", (8, 8, 1), 2).save(tmp_path / "gray.keras")
    (tmp_path / "text.h5").write_text("no HDF5")
    network = networks.build_network("SmallCNN", (8, 8, 3), 2)
    before = network.get_weights()
    for name, said in [("gray.weights.h5", "fit"), ("gray.keras", "weight 1"), ("text.h5", "cannot be read")]:
        with pytest.raises(UserError, match=said) as caught:
            networks.load_pretrained(network, tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    for ours, theirs in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_pretrained_channel_and_its_hyperparameter_go_together(tmp_path):
    """One without the other is a mistake that would cost a training run."""
    (tmp_path / "start.keras").touch()
    folders = {"pretrained": tmp_path}
    assert training.find_pretrained({}, "random") is None
    assert training.find_pretrained(make_channels(folders), "start.keras") == tmp_path / "start.keras"
    for given_folders, name, said in [
        ({}, "start.keras", "no channel pretrained"),
        (folders, "random", "weights is 'random'"),
        (folders, "../start.keras", "has: start.keras"),
    ]:
        with pytest.raises(UserError, match=said):
            training.find_pretrained(make_channels(given_folders), name)
