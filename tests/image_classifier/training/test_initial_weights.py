"""Initial weights: from a published file, or the model of an earlier job."""

import io
import json
import tarfile

import numpy as np
import pytest

from algorithms.image_classifier import networks
from algorithms.image_classifier.training import initial_weights
from sample_images import make_channels, make_job, read_epochs, write_images
from tandem.errors import UserError

# TensorFlow's tensors do not know NumPy 2's `copy`; Keras's saving asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("name", ["model.h5", "model.keras"])
def test_weights_are_loaded_from_a_whole_model(tmp_path, name):
    """With the same labels all weights are loaded; with others all but the last layer's."""
    source = networks.build_network("SmallCNN", (8, 8, 3), 3)
    source.save(tmp_path / name)
    same = networks.build_network("SmallCNN", (8, 8, 3), 3)
    initial_weights.load_weights(same, tmp_path / name)
    other = networks.build_network("SmallCNN", (8, 8, 3), 7)
    initial_weights.load_weights(other, tmp_path / name)
    for index, weights in enumerate(source.get_weights()):
        np.testing.assert_array_equal(same.get_weights()[index], weights)
        if index < len(source.get_weights()) - 2:  # all but the last layer's kernel and bias
            np.testing.assert_array_equal(other.get_weights()[index], weights)


def test_weights_files_may_be_of_the_whole_network_or_the_backbone(tmp_path):
    """Keras's `.weights.h5` of a whole network, or of one without its last layer."""
    source = networks.build_network("SmallCNN", (8, 8, 3), 3)
    source.save_weights(tmp_path / "whole.weights.h5")
    networks.find_backbone(source).save_weights(tmp_path / "body.weights.h5")
    whole, body = (networks.build_network("SmallCNN", (8, 8, 3), 3) for _ in range(2))
    initial_weights.load_weights(whole, tmp_path / "whole.weights.h5")
    initial_weights.load_weights(body, tmp_path / "body.weights.h5")
    for index, weights in enumerate(source.get_weights()):
        np.testing.assert_array_equal(whole.get_weights()[index], weights)
    for index, weights in enumerate(networks.find_backbone(source).get_weights()):
        np.testing.assert_array_equal(body.get_weights()[index], weights)


def test_weights_of_another_architecture_are_rejected_and_change_nothing(tmp_path):
    """The error names the file and what does not fit."""
    networks.build_network("SmallCNN", (8, 8, 1), 2).save_weights(tmp_path / "gray.weights.h5")
    networks.build_network("SmallCNN", (8, 8, 1), 2).save(tmp_path / "gray.keras")
    (tmp_path / "text.h5").write_text("no HDF5")
    network = networks.build_network("SmallCNN", (8, 8, 3), 2)
    before = network.get_weights()
    for name, message in [
        ("gray.weights.h5", "fit"),
        ("gray.keras", "weight 1"),
        ("text.h5", "cannot be read"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            initial_weights.load_weights(network, tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    for ours, theirs in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_pretrained_channel_and_its_hyperparameter_require_each_other(tmp_path):
    """One without the other would waste a training run."""
    (tmp_path / "start.keras").touch()
    folders = {"pretrained": tmp_path}
    assert initial_weights.find_pretrained({}, "random") is None
    assert initial_weights.find_pretrained(make_channels(folders), "start.keras") == tmp_path / "start.keras"
    for given_folders, name, message in [
        ({}, "start.keras", "no channel pretrained"),
        (folders, "random", "weights is 'random'"),
        (folders, "../start.keras", "has: start.keras"),
    ]:
        with pytest.raises(UserError, match=message):
            initial_weights.find_pretrained(make_channels(given_folders), name)


def pack(path, **members):
    """Write a model.tar.gz of these texts and bytes."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            body = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name.replace("_", "."))
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))


def find(folder, *, architecture="SmallCNN", labels=("cat", "dog"), weights="random"):
    """Return the bytes of the file with the initial weights of a job with this channel model."""
    with initial_weights.find_initial_weights(
        make_channels({"model": folder}), weights, architecture, labels
    ) as path:
        return path.read_bytes()


def describe(**changes) -> str:
    """Return the manifest of an earlier job."""
    return json.dumps(
        {
            "format": 1,
            "labels": ["cat", "dog"],
            "preprocessing": {},
            "input_shape": [8, 8, 3],
            "input_dtype": "uint8",
            "versions": {},
            "device": {},
            "metrics": {},
            "hyperparameters": {"architecture": "SmallCNN"},
            "golden_rows": 1,
            "golden_tolerance": 0.005,
            "files": {"model.h5": "", "golden.npz": ""},
            **changes,
        }
    )


def test_the_channel_model_may_have_the_archive_or_its_content(tmp_path):
    """SageMaker provides model.tar.gz; users may unpack it."""
    (tmp_path / "laid").mkdir()
    (tmp_path / "laid" / "model.h5").write_bytes(b"laid")
    (tmp_path / "packed").mkdir()
    pack(tmp_path / "packed" / "model.tar.gz", model_h5=b"packed", manifest_json=describe())
    assert find(tmp_path / "laid") == b"laid"
    assert find(tmp_path / "packed") == b"packed"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "has no model.h5"),
        ({"manifest_json": describe()}, "has no model.h5"),
        (
            {"model_h5": b"x", "manifest_json": describe(hyperparameters={"architecture": "MobileNetV2"})},
            "has a MobileNetV2.*set it to MobileNetV2",
        ),
        ({"model_h5": b"x", "manifest_json": describe(labels=["dog", "cat"])}, "labels dog, cat"),
    ],
)
def test_an_earlier_model_that_does_not_fit_is_rejected(tmp_path, members, message):
    pack(tmp_path / "model.tar.gz", **members)
    with pytest.raises(UserError, match=message):
        find(tmp_path)


def test_an_invalid_archive_is_rejected(tmp_path):
    with pytest.raises(UserError, match="has no files; expected the model.tar.gz"):
        find(tmp_path)
    (tmp_path / "model.tar.gz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot be read"):
        find(tmp_path)


def test_a_link_in_the_archive_is_not_followed(tmp_path):
    """It would read another file of the host as the model."""
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("model.h5")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(UserError, match="has no model.h5"):
        find(tmp_path)


def test_an_earlier_model_and_pretrained_weights_exclude_each_other(tmp_path):
    with pytest.raises(UserError, match="must be left out"):
        find(tmp_path, weights="start.keras")


def test_a_job_continues_the_training_of_an_earlier_one(tmp_path, caplog):
    """The first epoch of the second job has a much lower loss than that of the first job."""
    from algorithms import image_classifier

    caplog.set_level("INFO", "algorithms")
    folder = write_images(tmp_path / "in")
    image_classifier.train(make_job(tmp_path / "first", {"training": folder}, epochs=3))
    first = read_epochs(caplog)
    caplog.clear()
    channels = {"training": folder, "model": tmp_path / "first" / "model"}
    image_classifier.train(make_job(tmp_path / "second", channels, epochs=1, learning_rate=1e-6))
    second = read_epochs(caplog)
    assert second[0]["loss"] < first[0]["loss"] / 4
