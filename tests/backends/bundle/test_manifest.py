"""A manifest is validated on reading, and only files that training wrote are accepted."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from backends.bundle.manifest import Manifest, read_manifest, verify
from tandem.errors import UserError

FILES = ("golden.npz", "model.h5", "openvino/model.bin", "openvino/model.xml")


def digest(content):
    return hashlib.sha256(content).hexdigest()


MANIFEST = Manifest(
    labels=("ant", "bee", "caf\u00e9"),
    preprocessing={"height": 8},
    input_shape=(8, 8, 3),
    input_dtype="uint8",
    golden_rows=16,
    files={name: digest(name.encode()) for name in FILES},
)


@pytest.fixture
def bundle(tmp_path):
    """Files that contain their own names, and their manifest."""
    (tmp_path / "openvino").mkdir()
    for name in FILES:
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "manifest.json").write_text(MANIFEST.to_json(), encoding="utf-8")
    return tmp_path


def test_a_written_manifest_is_read_back(bundle):
    assert read_manifest(bundle) == MANIFEST
    verify(bundle, MANIFEST)


def test_the_text_is_json_with_a_format_number(bundle):
    data = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert data["format"] == 1
    assert data["labels"] == ["ant", "bee", "caf\u00e9"]


def test_numpy_numbers_and_paths_become_json_values():
    manifest = Manifest(**vars(MANIFEST) | {"hyperparameters": {"rate": np.float32(0.5), "from": Path("/x")}})
    assert Manifest.from_json(manifest.to_json()).hyperparameters == {"rate": 0.5, "from": "/x"}


def test_a_missing_manifest_is_none(tmp_path):
    assert read_manifest(tmp_path) is None


@pytest.mark.parametrize("missing", ["openvino/model.bin", "openvino/model.xml"])
def test_one_openvino_file_alone_is_not_a_model(missing):
    assert MANIFEST.has_openvino
    files = {name: value for name, value in MANIFEST.files.items() if name != missing}
    assert not Manifest(**vars(MANIFEST) | {"files": files}).has_openvino


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_one_changed_byte_is_named(bundle, name):
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} .* SHA-256"):
        verify(bundle, MANIFEST)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(UserError, match=f"{name} .* missing"):
        verify(bundle, MANIFEST)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("labels", []),
        ("labels", ["a", "a"]),
        ("labels", ["a", 1]),
        ("labels", "abc"),
        ("preprocessing", None),
        ("input_shape", [8, 0, 3]),
        ("input_shape", [8, None, 3]),
        ("input_dtype", "object"),
        ("input_dtype", []),
        ("golden_rows", True),
        ("golden_rows", 0),
        ("golden_tolerance", 0),
        ("golden_tolerance", 1e9),
        ("precisions", []),
        ("precisions", {"int8": 0.1}),
        ("precisions", {"int8": {"largest_difference": 0.01}}),
        ("precisions", {"int8": {"tolerance": 1}}),
        ("files", {"model.h5": "00"}),
        ("files", {"model.h5": "00", "golden.npz": 0}),
        ("files", {"model.h5": "00", "golden.npz": "00", "../../etc/passwd": "00"}),
        ("files", {"model.h5": "00", "golden.npz": "00", "/etc/passwd": "00"}),
    ],
)
def test_an_invalid_or_missing_entry_is_named(name, value):
    data = json.loads(MANIFEST.to_json())
    with pytest.raises(UserError, match=f"got .* for '{name}', expected"):
        Manifest.from_json(json.dumps(data | {name: value}))
    if name == "precisions":
        return  # older manifests have none
    del data[name]
    with pytest.raises(UserError, match=f"got nothing for '{name}', expected"):
        Manifest.from_json(json.dumps(data))


def test_the_manifest_states_each_precisions_tolerance():
    manifest = Manifest(
        **vars(MANIFEST) | {"golden_tolerance": 0.004, "precisions": {"int8": {"tolerance": 0.2}}}
    )
    assert [manifest.tolerance(name) for name in ("float32", "bfloat16", "int8")] == [0.004, 0.03, 0.2]
    stated = json.loads(MANIFEST.to_json())["precisions"]
    assert stated == {"bfloat16": {"tolerance": 0.03}, "int8": {"tolerance": 0.1}}


def test_a_manifest_from_before_reduced_precision_is_read():
    data = json.loads(MANIFEST.to_json())
    del data["precisions"]
    manifest = Manifest.from_json(json.dumps(data))
    assert manifest.precisions == {}
    assert [manifest.tolerance(name) for name in ("float32", "bfloat16", "int8")] == [0.005, 0.03, 0.1]


@pytest.mark.parametrize("missing", ["openvino/int8/model.bin", "openvino/int8/model.xml", "both"])
def test_one_int8_file_alone_is_not_a_model(missing):
    both = {"openvino/int8/model.xml": "00", "openvino/int8/model.bin": "00"}
    assert Manifest(**vars(MANIFEST) | {"files": MANIFEST.files | both}).has_int8
    kept = {} if missing == "both" else {name: value for name, value in both.items() if name != missing}
    assert not Manifest(**vars(MANIFEST) | {"files": MANIFEST.files | kept}).has_int8


def test_unknown_entries_are_ignored():
    data = json.loads(MANIFEST.to_json()) | {"trained_by": "a later version"}
    assert Manifest.from_json(json.dumps(data)) == MANIFEST


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', "null", '{"format": 1'])
def test_other_formats_and_invalid_json_are_rejected(text):
    with pytest.raises(UserError, match=r"manifest\.json"):
        Manifest.from_json(text)


def test_a_manifest_that_is_not_utf8_is_rejected(tmp_path):
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_manifest(tmp_path)
