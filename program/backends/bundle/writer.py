"""A trained Keras model as files that load anywhere and prove what they are."""

import importlib.metadata
import logging
import math
import platform
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.bundle.agreement import largest_difference
from backends.bundle.manifest import GOLDEN, MANIFEST, MODEL, OPENVINO_MODEL, TOLERANCE, Manifest, sha256
from backends.engines import openvino_engine, tensorflow_engine
from tandem.errors import UserError
from tandem.runtime.devices import Decision

logger = logging.getLogger(__name__)

GOLDEN_ROWS = 64
#: Bytes that a bundle takes beside its weights and golden rows, at most: graphs, layer names, the manifest.
MARGIN = 8 << 20

_INCOMPLETE = ".incomplete-"
_DISTRIBUTIONS = {
    "tensorflow": "tensorflow",
    "tensorflow-cpu": "tensorflow",
    "keras": "keras",
    "openvino": "openvino",
    "numpy": "numpy",
    "opencv-python-headless": "opencv",
}


def write_bundle(
    model_dir: Path,
    model: Any,
    *,
    labels: Sequence[str],
    preprocessing: Mapping[str, Any],
    golden_inputs: npt.NDArray[Any],
    decision: Decision,
    metrics: Mapping[str, float] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
) -> Manifest:
    """Store a Keras model and all that serving needs: afterwards the bundle is complete, or as it was before.

    `model` takes float32 rows and gives one probability a label. `golden_inputs` are 16 to 64 real rows (more
    are cut off) after preprocessing, of the dtype in which rows travel, uint8 or float32; the model answers
    them here, on the device that trained. Metrics that are not finite are left out, other files in
    `model_dir` are left alone.
    """
    rows = np.ascontiguousarray(golden_inputs[:GOLDEN_ROWS])
    if not len(rows) or rows.dtype not in (np.uint8, np.float32):
        raise ValueError(
            f"golden_inputs: got {rows.shape} of {rows.dtype}, expected rows of uint8 or float32"
        )
    answers = tensorflow_engine.TensorFlowEngine(model, rows.shape[1:], str(rows.dtype)).predict(rows)
    if answers.shape != (len(rows), len(labels)):
        raise ValueError(f"the model answers {len(rows)} rows of {len(labels)} labels with {answers.shape}")
    if not np.isfinite(answers).all():
        raise UserError(
            "the trained model answers with numbers that are not finite; try a lower learning rate"
        )

    check_room(model_dir, model, rows.nbytes)
    with open_aside(model_dir) as aside:
        tensorflow_engine.save(model, aside / MODEL)
        np.savez(aside / GOLDEN, inputs=rows, answers=answers)
        _add_openvino(model, aside, rows, answers)
        manifest = Manifest(
            labels=tuple(labels),
            preprocessing=dict(preprocessing),
            input_shape=rows.shape[1:],
            input_dtype=str(rows.dtype),
            versions=_versions(),
            device=decision.as_dict(),
            metrics={name: float(value) for name, value in (metrics or {}).items() if math.isfinite(value)},
            hyperparameters=dict(hyperparameters or {}),
            golden_rows=len(rows),
            files={
                path.relative_to(aside).as_posix(): sha256(path)
                for path in sorted(aside.rglob("*.*"))
                if path.is_file()
            },
        )
        text = manifest.to_json()
        Manifest.from_json(text)  # what could not be read again must not be written
        (aside / MANIFEST).write_text(text, encoding="utf-8")
        _move_into_place(aside, model_dir)
    logger.info("model written to %s: %s, %s golden rows", model_dir, ", ".join(manifest.files), len(rows))
    return manifest


def read_golden(model_dir: Path, manifest: Manifest) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
    """Read the golden rows and the training device's answers to them; nothing in the file is unpickled."""
    try:
        with (model_dir / GOLDEN).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            rows, answers = stored["inputs"], stored["answers"]
    # TypeError: a .npy file where an archive should be
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{GOLDEN} in {model_dir} cannot be read ({error}); restore the whole model"
        ) from error
    expected = (manifest.golden_rows, *manifest.input_shape)
    if rows.shape != expected or rows.dtype != manifest.input_dtype:
        raise UserError(
            f"{GOLDEN} holds rows {rows.shape} of {rows.dtype}, {MANIFEST} says {expected} of "
            f"{manifest.input_dtype}; restore the whole model"
        )
    if answers.shape != (len(rows), len(manifest.labels)):
        raise UserError(
            f"{GOLDEN} holds answers {answers.shape} for {len(manifest.labels)} labels in {MANIFEST}"
        )
    return rows, answers


@contextmanager
def open_aside(model_dir: Path) -> Iterator[Path]:
    """Give an empty folder on the model's own file system (it may be a mount); it is gone afterwards."""
    model_dir.mkdir(parents=True, exist_ok=True)
    for stale in model_dir.glob(f"{_INCOMPLETE}*"):
        shutil.rmtree(stale, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=_INCOMPLETE, dir=model_dir))
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_room(model_dir: Path, model: Any, golden_bytes: int) -> None:
    """Raise `UserError` if the bundle may not fit: on a full disk its writers crash, or say nothing."""
    model_dir.mkdir(parents=True, exist_ok=True)
    weights = sum(math.prod(weight.shape) for weight in model.weights) * 4
    needed = 2 * weights + golden_bytes + MARGIN  # .h5 and .bin hold the weights both
    free = shutil.disk_usage(model_dir).free
    if free < needed:
        raise UserError(
            f"the disk is full: the model needs {needed >> 20} MB in {model_dir}, which has {free >> 20} MB "
            "free; give the job a larger volume."
        )


def _add_openvino(model: Any, aside: Path, rows: npt.NDArray[Any], answers: npt.NDArray[Any]) -> None:
    """Add the OpenVINO form and compare its answers; a failure costs that form, never the trained model."""
    if not openvino_engine.is_installed():
        logger.info("OpenVINO is not installed: the model will need TensorFlow to serve")
        return
    path = aside / OPENVINO_MODEL
    try:
        openvino_engine.export(model, rows.shape[1:], path)
        engine = openvino_engine.load(aside, cores=1, dtype=str(rows.dtype))
        difference = largest_difference(engine.predict(rows), answers)
    except Exception:  # any layer may be new to the converter
        logger.warning(
            "OpenVINO cannot compute this model, which will need TensorFlow to serve", exc_info=True
        )
        shutil.rmtree(path.parent, ignore_errors=True)
        return
    if difference > TOLERANCE:
        logger.warning(
            "OpenVINO's answers differ by %.2g, above %.2g: not to be served with", difference, TOLERANCE
        )


def _move_into_place(aside: Path, model_dir: Path) -> None:
    """Rename each part, the manifest last, so that a mixture of two bundles would fail its hashes."""
    replaced = aside / "replaced"
    replaced.mkdir()
    for name in (Path(OPENVINO_MODEL).parent.name, GOLDEN, MODEL, MANIFEST):
        new, old = aside / name, model_dir / name
        if old.is_dir() or (old.exists() and not new.exists()):
            old.rename(replaced / name)
        if new.exists():
            new.replace(old)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for distribution, name in _DISTRIBUTIONS.items():
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(distribution)
    return found
