"""What a bundle says of itself: manifest.json, read strictly, and the hashes of the files that it names."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from tandem.errors import UserError

FORMAT = 1

MANIFEST = "manifest.json"
MODEL = "model.h5"
GOLDEN = "golden.npz"
OPENVINO_MODEL = "openvino/model.xml"
OPENVINO_WEIGHTS = "openvino/model.bin"
INT8_MODEL = "openvino/int8/model.xml"
INT8_WEIGHTS = "openvino/int8/model.bin"

# Largest absolute difference of one probability between two devices. It is far above what float32, TF32 and
# half precision differ by, and far below what a wrong colour order or lost weights do. The label follows:
# where the first two golden probabilities are more than twice this apart, the first label is the same.
TOLERANCE = 0.005

# The same where a precision was asked for because it is faster. Of a number's 24 bits a bfloat16 keeps 8, an
# int8 has 256 values in all, and a probability near one half moves by a quarter of what its logit does: by up
# to 0.024 and 0.06 in a MobileNetV2 that was trained for a minute, by 0.004 and 0.005 in a sure SmallCNN. As
# this bounds little, clear labels must be the same too (backends/bundle/agreement.py).
REDUCED = {"bfloat16": 0.03, "int8": 0.1}


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds and how its rows are made; plain data, the same in Python and in manifest.json."""

    labels: tuple[str, ...]  # in the order of the model's outputs
    preprocessing: dict[str, Any]  # as data; the algorithm that wrote it knows its entries
    input_shape: tuple[int, ...]  # of one row, without the batch axis
    input_dtype: str  # of rows on their way to an engine: "uint8" or "float32"
    versions: dict[str, str] = field(default_factory=dict)
    device: dict[str, Any] = field(default_factory=dict)  # the training device's Decision
    metrics: dict[str, float] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    golden_rows: int = 0
    golden_tolerance: float = TOLERANCE
    # by reduced precision: its tolerance, and what was found of it where the model was written
    precisions: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {name: {"tolerance": tolerance} for name, tolerance in REDUCED.items()}
    )
    files: dict[str, str] = field(default_factory=dict)  # path in the bundle → SHA-256

    @property
    def has_openvino(self) -> bool:
        """Whether the bundle can be computed without TensorFlow."""
        return OPENVINO_MODEL in self.files and OPENVINO_WEIGHTS in self.files

    @property
    def has_int8(self) -> bool:
        """Whether the bundle can be computed in whole numbers."""
        return INT8_MODEL in self.files and INT8_WEIGHTS in self.files

    def tolerance(self, precision: str) -> float:
        """Give by how much a probability may differ from the golden one at a precision."""
        if precision == "float32":
            return self.golden_tolerance
        tolerance: float = self.precisions.get(precision, {}).get("tolerance", REDUCED[precision])
        return tolerance

    def to_json(self) -> str:
        """Give the text of manifest.json."""
        return (
            json.dumps({"format": FORMAT, **asdict(self)}, indent=2, ensure_ascii=False, default=_plain)
            + "\n"
        )

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read manifest.json's text, ignoring entries it does not know; UserError names what is wrong."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{MANIFEST} is not JSON ({error}); restore the whole model") from error
        stated = data.get("format") if isinstance(data, dict) else None
        if stated != FORMAT:
            raise UserError(
                f"{MANIFEST} has format {stated!r}, this program reads format {FORMAT}: "
                "serve the model with the image that trained it, or train again"
            )
        data = {**_LATER, **data}
        for name, (is_valid, expected) in _ENTRIES.items():
            if name not in data or not is_valid(data[name]):
                got = repr(data[name])[:80] if name in data else "nothing"
                raise UserError(f"{MANIFEST}: got {got} for {name!r}, expected {expected}")
        entries = {entry.name: data[entry.name] for entry in fields(cls)}
        return cls(**entries | {"labels": tuple(data["labels"]), "input_shape": tuple(data["input_shape"])})


def read_manifest(model_dir: Path) -> Manifest | None:
    """Read manifest.json; None when there is none, which leaves at most a bare model.h5."""
    path = model_dir / MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{MANIFEST} is not UTF-8 text ({error}); restore the whole model") from error


def verify(model_dir: Path, manifest: Manifest) -> None:
    """Compare every file's SHA-256 with the manifest, before anything parses it; UserError names the file.

    Links are refused, which could point out of the model's directory, or elsewhere by the time of loading.
    """
    for name, expected in manifest.files.items():
        path = model_dir / name
        if not path.is_file():
            raise UserError(
                f"{name} is listed in {MANIFEST} but missing from {model_dir}; restore the whole model"
            )
        if path.resolve() != model_dir.resolve() / name:
            raise UserError(
                f"{name} in {model_dir} is a link or behind one, expected a file of its own; "
                "restore the whole model"
            )
        if sha256(path) != expected:
            raise UserError(
                f"{name} in {model_dir} is not the file that training wrote (its SHA-256 differs from "
                f"{MANIFEST}); restore the whole model"
            )


def sha256(path: Path) -> str:
    """Give a file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Turn what JSON cannot hold into what it can: no training is lost to a NumPy number or a path."""
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


_ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
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
    "files": (_is_files, f"SHA-256 by path inside the model's directory, with {MODEL} and {GOLDEN}"),
}
#: What older manifests of this format lack.
_LATER: dict[str, Any] = {"precisions": {}}
