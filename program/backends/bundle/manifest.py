"""A bundle's manifest.json and reference answers, validated on reading, and the hashes of its files."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.errors import UserError

FORMAT = 1

MANIFEST = "manifest.json"
MODEL = "model.h5"
GOLDEN = "golden.npz"
OPENVINO_MODEL = "openvino/model.xml"
OPENVINO_WEIGHTS = "openvino/model.bin"
INT8_MODEL = "openvino/int8/model.xml"
INT8_WEIGHTS = "openvino/int8/model.bin"

# The largest allowed absolute difference of a probability between two devices. float32, TF32 and half
# precision differ by far less; a wrong color order or missing weights differ by far more. Where the two
# highest reference probabilities are more than twice this apart, the predicted label is the same too.
TOLERANCE = 0.005

# The tolerances of the precisions that trade accuracy for speed. A bfloat16 keeps 8 of the 24 significant
# bits, an int8 has 256 values, and a probability near 0.5 changes by a quarter of the change of its logit: by
# up to 0.024 and 0.06 in a MobileNetV2 trained for a minute, by 0.004 and 0.005 in a confident SmallCNN. As
# these bounds are loose, clear labels must not change either (see agreement.py).
REDUCED_TOLERANCES = {"bfloat16": 0.03, "int8": 0.1}


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json: what the bundle contains and how its input rows are made."""

    labels: tuple[str, ...]  # in the order of the model's outputs
    preprocessing: dict[str, Any]  # interpreted by the algorithm that wrote it
    input_shape: tuple[int, ...]  # of one row, without the batch axis
    input_dtype: str  # of the rows passed to an engine: "uint8" or "float32"
    versions: dict[str, str] = field(default_factory=dict)
    device: dict[str, Any] = field(default_factory=dict)  # the training device's Decision
    metrics: dict[str, float] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    golden_rows: int = 0
    golden_tolerance: float = TOLERANCE
    # by reduced precision: its tolerance, and the measurements made when the model was written
    precisions: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {
            name: {"tolerance": tolerance} for name, tolerance in REDUCED_TOLERANCES.items()
        }
    )
    files: dict[str, str] = field(default_factory=dict)  # path in the bundle → SHA-256

    @property
    def has_openvino(self) -> bool:
        """Whether the bundle contains an OpenVINO model, which runs without TensorFlow."""
        return OPENVINO_MODEL in self.files and OPENVINO_WEIGHTS in self.files

    @property
    def has_int8(self) -> bool:
        """Whether the bundle contains an OpenVINO model quantized to int8."""
        return INT8_MODEL in self.files and INT8_WEIGHTS in self.files

    def tolerance(self, precision: str) -> float:
        """Return how much a probability may differ from its reference at a precision."""
        if precision == "float32":
            return self.golden_tolerance
        tolerance: float = self.precisions.get(precision, {}).get("tolerance", REDUCED_TOLERANCES[precision])
        return tolerance

    def to_json(self) -> str:
        """Return the text of manifest.json."""
        entries = {"format": FORMAT, **asdict(self)}
        return json.dumps(entries, indent=2, ensure_ascii=False, default=_to_json_value) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Parse manifest.json, ignoring unknown entries; raises `UserError` naming the first invalid one."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{MANIFEST} is not valid JSON ({error}); restore the whole model.") from error
        version = data.get("format") if isinstance(data, dict) else None
        if version != FORMAT:
            raise UserError(
                f"{MANIFEST} has format {version!r}, but this image reads format {FORMAT}: "
                "serve the model with the image that trained it, or train it again."
            )
        data = {**_DEFAULTS, **data}
        for name, (is_valid, expected) in _VALIDATORS.items():
            if name not in data or not is_valid(data[name]):
                got = repr(data[name])[:80] if name in data else "nothing"
                raise UserError(f"{MANIFEST}: got {got} for {name!r}, expected {expected}.")
        entries = {entry.name: data[entry.name] for entry in fields(cls)}
        return cls(**entries | {"labels": tuple(data["labels"]), "input_shape": tuple(data["input_shape"])})


def read_manifest(model_dir: Path) -> Manifest | None:
    """Return the manifest of `model_dir`; None without a manifest.json, as for a bare model.h5."""
    path = model_dir / MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{MANIFEST} is not UTF-8 text ({error}); restore the whole model.") from error


def verify(model_dir: Path, manifest: Manifest) -> None:
    """Raise `UserError` unless every file has the SHA-256 that the manifest lists; no file is parsed.

    Links are rejected: they could point outside the model's directory, or be changed before loading.
    """
    for name, expected in manifest.files.items():
        path = model_dir / name
        if not path.is_file():
            raise UserError(
                f"{name} is listed in {MANIFEST} but missing from {model_dir}; restore the whole model."
            )
        if path.resolve() != model_dir.resolve() / name:
            raise UserError(
                f"{name} in {model_dir} is reached through a link, expected a regular file; "
                "restore the whole model."
            )
        if sha256(path) != expected:
            raise UserError(
                f"{name} in {model_dir} is not the file that training wrote: its SHA-256 differs from "
                f"{MANIFEST}; restore the whole model."
            )


def read_golden(model_dir: Path, manifest: Manifest) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
    """Return the reference rows and the training device's answers to them; nothing is unpickled."""
    try:
        with (model_dir / GOLDEN).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            rows, answers = arrays["inputs"], arrays["answers"]
    # TypeError: the file is a .npy array instead of an archive
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{GOLDEN} in {model_dir} cannot be read ({error}); restore the whole model."
        ) from error
    expected = (manifest.golden_rows, *manifest.input_shape)
    if rows.shape != expected or rows.dtype != manifest.input_dtype:
        raise UserError(
            f"{GOLDEN} has rows of shape {rows.shape} and {rows.dtype}, but {MANIFEST} states {expected} and "
            f"{manifest.input_dtype}; restore the whole model."
        )
    if answers.shape != (len(rows), len(manifest.labels)):
        raise UserError(
            f"{GOLDEN} has answers of shape {answers.shape}, but {MANIFEST} has {len(manifest.labels)} "
            "labels; restore the whole model."
        )
    return rows, answers


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _to_json_value(value: Any) -> Any:
    """Convert NumPy numbers to Python numbers and anything else, such as a path, to text."""
    return value.item() if hasattr(value, "item") else str(value)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_labels(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(label, str) for label in value)
        and len(set(value)) == len(value)
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_count, value))


def _is_tolerance(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1


def _is_precisions(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(entry, dict) and _is_tolerance(entry.get("tolerance")) for entry in value.values()
    )


def _is_files(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and {MODEL, GOLDEN} <= value.keys()
        and all(isinstance(digest, str) for digest in value.values())
        and not any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in value)
    )


_VALIDATORS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "labels": (_is_labels, "a list of distinct names"),
    "preprocessing": (_is_dict, "an object"),
    "input_shape": (_is_shape, "a list of positive integers"),
    "input_dtype": (lambda value: value in ("uint8", "float32"), "'uint8' or 'float32'"),
    "versions": (_is_dict, "an object"),
    "device": (_is_dict, "an object"),
    "metrics": (_is_dict, "an object"),
    "hyperparameters": (_is_dict, "an object"),
    "golden_rows": (_is_count, "a positive integer"),
    "golden_tolerance": (_is_tolerance, "a number between 0 and 1"),
    "precisions": (_is_precisions, "an object by precision, each with a tolerance between 0 and 1"),
    "files": (_is_files, f"SHA-256 digests by path inside the model's directory, with {MODEL} and {GOLDEN}"),
}
#: Entries that older manifests of this format may lack.
_DEFAULTS: dict[str, Any] = {"precisions": {}}
