"""Grad-CAM maps of networks of every architecture."""

import logging

import cv2
import numpy as np
import pytest

from algorithms.image_classifier import networks, report
from algorithms.image_classifier.report import gradcam
from algorithms.image_classifier.report.evaluation import Evaluation
from tandem.errors import TandemError

RED, GREEN = 0, 1


def build_color_finder(sharpness=1.0, policy="float32"):
    """Return a network that predicts 0 for red and 1 for green, so that its feature map is the image."""
    import keras

    inputs = keras.Input((16, 16, 3))
    features = keras.layers.Conv2D(2, 1, use_bias=False, dtype=policy)(inputs)
    pooled = keras.layers.GlobalAveragePooling2D(dtype=policy)(features)
    outputs = keras.layers.Dense(2, activation="softmax", use_bias=False, dtype="float32")(pooled)
    network = keras.Model(inputs, outputs)
    network.set_weights([np.eye(3)[None, None, :, :2] / 255, np.eye(2) * sharpness])
    return network


@pytest.fixture
def images():
    """An image with red in the upper left corner and green in the lower right one."""
    pixels = np.zeros((1, 16, 16, 3), np.uint8)
    pixels[0, :4, :4, 0] = 255
    pixels[0, -8:, -8:, 1] = 255
    return pixels


@pytest.mark.parametrize("sharpness", [1.0, 10_000.0], ids=["uncertain", "saturated"])
@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_the_map_is_bright_at_the_location_of_the_label(images, sharpness, trainable, policy):
    """Also if the softmax is saturated, and if the backbone is frozen."""
    network = build_color_finder(sharpness, policy)
    network.trainable = trainable
    red, green = gradcam.locate(network, np.repeat(images, 2, axis=0), np.array([RED, GREEN]))
    assert red.shape == (16, 16)
    assert (red[:4, :4] == 1).all()
    assert red[4:].max() == 0
    assert (green[-8:, -8:] == 1).all()
    assert green[:8].max() == 0


def test_the_map_of_an_absent_label_is_empty(images):
    images[..., 1] = 0
    assert gradcam.locate(build_color_finder(), images, np.array([GREEN])).max() == 0


@pytest.mark.parametrize(
    ("architecture", "channels"),
    [
        ("SmallCNN", 1),
        *((name, 3) for name in networks.ARCHITECTURES),
        *(
            pytest.param(name, 1, marks=pytest.mark.slow)
            for name in networks.ARCHITECTURES
            if name != "SmallCNN"
        ),
    ],
)
def test_every_architecture_has_a_map(architecture, channels):
    """The map is the last one of the backbone, and differs between labels."""
    import keras

    keras.utils.set_random_seed(0)
    network = networks.build_network(architecture, (64, 48, channels), 5)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 64, 48, channels), dtype=np.uint8)
    heats = gradcam.locate(network, pixels, np.arange(6) % 5)
    assert heats.shape[0] == 6
    assert heats.shape[1] > 1
    assert heats.shape[2] > 1
    assert heats.dtype == np.float32
    assert np.isfinite(heats).all()
    assert 0 <= heats.min() <= heats.max() <= 1
    assert heats.max() == pytest.approx(1)
    others = gradcam.locate(network, pixels, (np.arange(6) + 1) % 5)
    assert not np.allclose(heats, others)


def test_the_report_of_a_network_without_a_feature_map_has_no_grad_cam(tmp_path, caplog):
    import keras

    network = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    with pytest.raises(TandemError, match="no layer that takes a feature map"):
        gradcam.locate(network, np.zeros((1, 8)), np.array([0]))
    caplog.set_level(logging.INFO)
    evaluation = Evaluation("validation", 2)
    evaluation.add(np.full((1, 8, 8, 3), 200, np.uint8), np.array([0]), np.array([[0.25, 0.75]]))
    report.write_report(tmp_path, [evaluation], [], network, ["a", "b"])
    assert "without Grad-CAM" in caplog.text
    assert (tmp_path / "data/mistakes.png").exists()
    assert (tmp_path / "data/report.html").exists()


def test_the_sheet_of_mistakes_has_each_image_and_its_map(tmp_path, images):
    """A green image that is misclassified as red because of its red upper left corner."""
    evaluation = Evaluation("validation", 2)
    evaluation.add(images, np.array([GREEN]), np.array([[0.75, 0.25]]))
    report.write_report(tmp_path, [evaluation], [], build_color_finder(), ["red", "green"])
    sheet = cv2.imread(str(tmp_path / "data/mistakes.png"))  # BGR
    height, width = sheet.shape[:2]
    left, right = sheet[height // 5 :, : width // 2], sheet[height // 5 :, width // 2 :]
    assert (left == (0, 0, 255)).all(axis=2).any()  # the image is unchanged
    assert not (right == (0, 0, 255)).all(axis=2).any()
    rows, columns = np.nonzero((right < 250).any(axis=2))
    panel = right[rows.min() : rows.max(), columns.min() : columns.max()]
    quarter = [side // 4 for side in panel.shape[:2]]
    assert panel[: quarter[0], : quarter[1]].mean() > 2 * panel[-quarter[0] :, : quarter[1]].mean()
