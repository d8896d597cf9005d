"""Grad-CAM shows where a network saw a label, whatever the network's architecture."""

import logging

import cv2
import numpy as np
import pytest

from algorithms.image_classifier import networks, report
from algorithms.image_classifier.report import gradcam
from algorithms.image_classifier.report.evaluation import Split
from tandem.errors import TandemError

RED, GREEN = 0, 1


def build_color_finder(sharpness=1.0, policy="float32"):
    """Give a network that says 0 where there is red and 1 where there is green: its map is the picture."""
    import keras

    inputs = keras.Input((16, 16, 3))
    features = keras.layers.Conv2D(2, 1, use_bias=False, dtype=policy)(inputs)
    pooled = keras.layers.GlobalAveragePooling2D(dtype=policy)(features)
    outputs = keras.layers.Dense(2, activation="softmax", use_bias=False, dtype="float32")(pooled)
    network = keras.Model(inputs, outputs)
    network.set_weights([np.eye(3)[None, None, :, :2] / 255, np.eye(2) * sharpness])
    return network


@pytest.fixture
def pictures():
    """Red in the upper left corner and green in the lower right one."""
    pixels = np.zeros((1, 16, 16, 3), np.uint8)
    pixels[0, :4, :4, 0] = 255
    pixels[0, -8:, -8:, 1] = 255
    return pixels


@pytest.mark.parametrize("sharpness", [1.0, 10_000.0], ids=["unsure", "sure to the last bit"])
@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_the_map_is_bright_where_the_label_is(pictures, sharpness, trainable, policy):
    """Also where the softmax has no slope left, and where the backbone is frozen."""
    network = build_color_finder(sharpness, policy)
    network.trainable = trainable
    red, green = gradcam.locate(network, np.repeat(pictures, 2, axis=0), np.array([RED, GREEN]))
    assert red.shape == (16, 16)
    assert (red[:4, :4] == 1).all()
    assert red[4:].max() == 0
    assert (green[-8:, -8:] == 1).all()
    assert green[:8].max() == 0


def test_a_label_of_which_there_is_nothing_has_an_empty_map(pictures):
    pictures[..., 1] = 0
    assert gradcam.locate(build_color_finder(), pictures, np.array([GREEN])).max() == 0


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
    """The map is its backbone's last one, and another label has another."""
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


def test_a_network_without_a_map_has_a_report_without_one(tmp_path, caplog):
    import keras

    network = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    with pytest.raises(TandemError, match="no layer that takes a map"):
        gradcam.locate(network, np.zeros((1, 8)), np.array([0]))
    caplog.set_level(logging.INFO)
    split = Split("validation", 2)
    split.add(np.full((1, 8, 8, 3), 200, np.uint8), np.array([0]), np.array([[0.25, 0.75]]))
    report.write_evidence(tmp_path, [split], [], network, ["a", "b"])
    assert "without Grad-CAM" in caplog.text
    assert (tmp_path / "data/mistakes.png").exists()
    assert (tmp_path / "data/report.html").exists()


def test_the_sheet_has_the_picture_and_its_map_beside_it(tmp_path, pictures):
    """The red picture that is said to be red, although it is green: its map glows in the upper left."""
    split = Split("validation", 2)
    split.add(pictures, np.array([GREEN]), np.array([[0.75, 0.25]]))
    report.write_evidence(tmp_path, [split], [], build_color_finder(), ["red", "green"])
    sheet = cv2.imread(str(tmp_path / "data/mistakes.png"))  # BGR
    height, width = sheet.shape[:2]
    left, right = sheet[height // 5 :, : width // 2], sheet[height // 5 :, width // 2 :]
    assert (left == (0, 0, 255)).all(axis=2).any()  # the picture is as it was
    assert not (right == (0, 0, 255)).all(axis=2).any()
    rows, columns = np.nonzero((right < 250).any(axis=2))
    panel = right[rows.min() : rows.max(), columns.min() : columns.max()]
    quarter = [side // 4 for side in panel.shape[:2]]
    assert panel[: quarter[0], : quarter[1]].mean() > 2 * panel[-quarter[0] :, : quarter[1]].mean()
