"""Requests become rows and probabilities become answers."""

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
def test_the_axes_of_an_array_say_how_many_pictures_it_is(shape, count):
    """Three axes are one picture only where the last one is color."""
    buffer = io.BytesIO()
    np.save(buffer, np.full(shape, 7, np.uint8))
    spec = train.describe_preprocessing(8, "RGB")
    assert inputs.read_pictures(buffer.getvalue(), formats.NPY, spec).shape == (count, 8, 8, 3)


@pytest.mark.parametrize(
    ("content_type", "body", "said"),
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
        ("image/png", b"no picture", "."),
        ("image/png", b"", "."),
    ],
)
def test_a_body_that_cannot_be_read_says_where_and_why(content_type, body, said):
    """The caller learns which instance to mend."""
    spec = train.describe_preprocessing(8, "RGB")
    with pytest.raises(UserError, match=said):
        inputs.read_pictures(body, content_type, spec)


def test_a_picture_in_json_is_refused_by_its_own_reason_and_its_place():
    """Its kind and status are those it has as a body of its own."""
    spec = train.describe_preprocessing(8, "RGB")
    body = json.dumps({"instances": [[[0]], base64.b64encode(b"GIF89a").decode()]}).encode()
    with pytest.raises(UserError, match="^instance 1: this is a GIF") as caught:
        inputs.read_pictures(body, "application/json", spec)
    assert (caught.value.kind, caught.value.status) == ("image_type_unsupported", 415)


@pytest.mark.parametrize("content_type", ["application/x-npy", "application/jsonlines"])
def test_very_small_pictures_cannot_become_very_large_rows(content_type, monkeypatch):
    """A megabyte of single pixels would be 150 GB of rows for a network of 224 x 224."""
    monkeypatch.setattr(inputs, "MAX_BYTES", 10 * 8 * 8 * 3)
    spec = train.describe_preprocessing(8, "RGB")

    def write(count):
        buffer = io.BytesIO()
        np.save(buffer, np.zeros((count, 1, 1, 1), np.uint8))
        return buffer.getvalue() if content_type == "application/x-npy" else b"[[0]]\n" * count

    assert len(inputs.read_pictures(write(10), content_type, spec)) == 10
    with pytest.raises(PayloadTooLarge, match="more than 10 pictures"):
        inputs.read_pictures(write(11), content_type, spec)


def test_an_array_that_claims_to_be_large_takes_no_memory():
    """Its bytes are counted against its shape first."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 8, 8, 3)}
    )
    with pytest.raises(UserError, match="cut short"):
        inputs.read_pictures(buffer.getvalue(), "application/x-npy", train.describe_preprocessing(8, "RGB"))


def test_an_unknown_content_type_is_refused():
    """With status 415, not as a broken picture."""
    with pytest.raises(UnsupportedMediaType, match="text/html"):
        inputs.read_pictures(b"x", "text/html", train.describe_preprocessing(8, "RGB"))


def test_answers_name_labels_best_first_and_ties_keep_the_labels_order():
    """Ten labels at most; the numbers are those of the model to the last float32 digit."""
    labels = tuple(f"label{number}" for number in range(12))
    probabilities = np.full((1, 12), 0.05, np.float32)
    probabilities[0, 4] = 0.45
    [best] = json.loads(outputs.write_answers(probabilities, "application/json", labels))["predictions"]
    assert best["label"] == "label4"
    assert best["probability"] == 0.45
    named = [entry["label"] for entry in best["probabilities"]]
    assert named == ["label4", *[label for label in labels if label != "label4"][:9]]


@pytest.mark.parametrize("count", [1, 9, 10, 11, 500])
@pytest.mark.parametrize("broken", [0, 3, 500])
def test_the_best_ten_are_those_of_a_stable_sort(count, broken):
    """Where many are equal, and where a broken network gives numbers that are none: those come last."""
    generator = np.random.default_rng(count)
    row = generator.integers(0, 4, count).astype(np.float32)
    row[generator.permutation(count)[:broken]] = np.nan
    labels = [str(number) for number in range(count)]
    named = [entry["label"] for entry in outputs._best(row, labels)]
    assert named == [str(number) for number in np.argsort(-row, kind="stable")[:10]]


def test_an_answer_in_another_form_is_refused():
    """With status 406."""
    with pytest.raises(NotAcceptable, match="text/html"):
        outputs.write_answers(np.ones((1, 1), np.float32), "text/html", ("a",))
