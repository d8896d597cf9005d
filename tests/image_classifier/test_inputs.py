"""Decoding of requests and encoding of responses."""

import base64
import io
import json

import numpy as np
import pytest

from algorithms.image_classifier import inputs, outputs
from algorithms.image_classifier.training import train
from tandem import formats
from tandem.errors import NotAcceptable, PayloadTooLarge, UnsupportedMediaType, UserError


@pytest.mark.parametrize(
    ("shape", "count"), [((6, 7), 1), ((6, 7, 3), 1), ((6, 7, 1), 1), ((5, 6, 7), 5), ((5, 6, 7, 3), 5)]
)
def test_the_axes_of_an_array_determine_the_number_of_images(shape, count):
    """Three axes are one image only if the last one is color."""
    buffer = io.BytesIO()
    np.save(buffer, np.full(shape, 7, np.uint8))
    spec = train.describe_preprocessing(8, "RGB")
    assert inputs.read_images(buffer.getvalue(), formats.NPY, spec).shape == (count, 8, 8, 3)


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        ("application/json", b"{", "JSON"),
        ("application/json", b"[]", "instances"),
        ("application/json", b'{"instances": []}', "no instance"),
        ("application/json", b'{"instances": [[[0]], 5]}', "instance 1: got int"),
        ("application/json", b'{"instances": [[[0]], "%%"]}', "instance 1.*base64"),
        ("application/json", b'{"instances": [[[0], [1, 2]]]}', "instance 0"),
        ("application/json", b'{"instances": [[[0]], {"url": "x"}]}', "instance 1.*b64"),
        ("application/json", b'{"instances": [[[0, 300]]]}', "instance 0"),
        ("application/jsonlines", b"[[0]]\n{", "line 2"),
        ("application/jsonlines", b"[[0]]\n[[0]]\n7", "instance 2"),
        ("application/x-npy", b"no array", "NPY"),
        ("image/png", b"no image", "."),
        ("image/png", b"", "."),
    ],
)
def test_an_invalid_body_is_rejected_with_the_position_and_the_reason(content_type, body, message):
    spec = train.describe_preprocessing(8, "RGB")
    with pytest.raises(UserError, match=message):
        inputs.read_images(body, content_type, spec)


def test_the_error_of_an_image_in_json_has_its_reason_and_its_index():
    """The error has the same kind and status as for an image as the body."""
    spec = train.describe_preprocessing(8, "RGB")
    body = json.dumps({"instances": [[[0]], base64.b64encode(b"GIF89a").decode()]}).encode()
    with pytest.raises(UserError, match="^instance 1: this is a GIF") as caught:
        inputs.read_images(body, "application/json", spec)
    assert (caught.value.kind, caught.value.status) == ("image_type_unsupported", 415)


@pytest.mark.parametrize("content_type", ["application/x-npy", "application/jsonlines"])
def test_very_small_images_cannot_become_very_large_rows(content_type, monkeypatch):
    """A megabyte of images of one pixel would be 150 GB of rows for a network of 224 x 224."""
    monkeypatch.setattr(inputs, "MAX_BYTES", 10 * 8 * 8 * 3)
    spec = train.describe_preprocessing(8, "RGB")

    def write(count):
        buffer = io.BytesIO()
        np.save(buffer, np.zeros((count, 1, 1, 1), np.uint8))
        return buffer.getvalue() if content_type == "application/x-npy" else b"[[0]]\n" * count

    assert len(inputs.read_images(write(10), content_type, spec)) == 10
    with pytest.raises(PayloadTooLarge, match="more than 10 images"):
        inputs.read_images(write(11), content_type, spec)


def test_an_array_with_a_false_large_shape_takes_no_memory():
    """The size of the body is compared with the shape first."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 8, 8, 3)}
    )
    with pytest.raises(UserError, match="cut short"):
        inputs.read_images(buffer.getvalue(), "application/x-npy", train.describe_preprocessing(8, "RGB"))


def test_an_unknown_content_type_is_rejected():
    """With status 415, not as an invalid image."""
    with pytest.raises(UnsupportedMediaType, match="text/html"):
        inputs.read_images(b"x", "text/html", train.describe_preprocessing(8, "RGB"))


def test_responses_list_the_best_labels_first_and_ties_in_label_order():
    """Ten labels at most; the probabilities are exactly the model's float32 values."""
    labels = tuple(f"label{number}" for number in range(12))
    probabilities = np.full((1, 12), 0.05, np.float32)
    probabilities[0, 4] = 0.45
    [best] = json.loads(outputs.encode_predictions(probabilities, "application/json", labels))["predictions"]
    assert best["label"] == "label4"
    assert best["probability"] == 0.45
    named = [entry["label"] for entry in best["probabilities"]]
    assert named == ["label4", *[label for label in labels if label != "label4"][:9]]


@pytest.mark.parametrize("count", [1, 9, 10, 11, 500])
@pytest.mark.parametrize("broken", [0, 3, 500])
def test_the_best_ten_labels_are_those_of_a_stable_sort(count, broken):
    """Also with many equal probabilities, and with NaN of a broken network, which comes last."""
    generator = np.random.default_rng(count)
    row = generator.integers(0, 4, count).astype(np.float32)
    row[generator.permutation(count)[:broken]] = np.nan
    labels = [str(number) for number in range(count)]
    named = [entry["label"] for entry in outputs._rank(row, labels)]
    assert named == [str(number) for number in np.argsort(-row, kind="stable")[:10]]


def test_an_unknown_accept_type_is_rejected():
    """With status 406."""
    with pytest.raises(NotAcceptable, match="text/html"):
        outputs.encode_predictions(np.ones((1, 1), np.float32), "text/html", ("a",))
