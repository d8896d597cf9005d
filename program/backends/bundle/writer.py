"""Writing a trained Keras model as a bundle: its files, its reference answers and its manifest."""

import importlib.metadata
import logging
import math
import platform
import shutil
import tempfile
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
#: The most bytes a bundle needs besides its weights and reference rows: graphs, layer names, the manifest.
MARGIN = 8 << 20

_STAGING = ".incomplete-"
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
    """Write a Keras model and all that serving needs; after an error the previous bundle is unchanged.

    `model` takes float32 rows and returns one probability per label. `golden_inputs` are real preprocessed
    rows, uint8 or float32 as serving will pass them; up to 64 of them are stored with the model's answers,
    computed here on the training device. Metrics that are not finite are left out. Other files in `model_dir`
    are not touched.
    """
    rows = np.ascontiguousarray(golden_inputs[:GOLDEN_ROWS])
    if not len(rows) or rows.dtype not in (np.uint8, np.float32):
        raise ValueError(
            f"golden_inputs: got shape {rows.shape} of {rows.dtype}, expected rows of uint8 or float32."
        )
    answers = tensorflow_engine.TensorFlowEngine(model, rows.shape[1:], str(rows.dtype)).predict(rows)
    if answers.shape != (len(rows), len(labels)):
        raise ValueError(f"The model's output is {answers.shape}, expected {(len(rows), len(labels))}.")
    if not np.isfinite(answers).all():
        raise UserError("the trained model's outputs are not finite; try a lower learning rate.")

    check_disk_space(model_dir, model, rows.nbytes)
    with open_staging_folder(model_dir) as staging:
        tensorflow_engine.save(model, staging / MODEL)
        np.savez(staging / GOLDEN, inputs=rows, answers=answers)
        _add_openvino(model, staging, rows, answers)
        manifest = Manifest(
            labels=tuple(labels),
            preprocessing=dict(preprocessing),
            input_shape=rows.shape[1:],
            input_dtype=str(rows.dtype),
            versions=_find_versions(),
            device=decision.as_dict(),
            metrics={name: float(value) for name, value in (metrics or {}).items() if math.isfinite(value)},
            hyperparameters=dict(hyperparameters or {}),
            golden_rows=len(rows),
            files={
                path.relative_to(staging).as_posix(): sha256(path)
                for path in sorted(staging.rglob("*.*"))
                if path.is_file()
            },
        )
        text = manifest.to_json()
        Manifest.from_json(text)  # a manifest that cannot be read back must not be written
        (staging / MANIFEST).write_text(text, encoding="utf-8")
        _replace_bundle(staging, model_dir)
    logger.info(
        "model written to %s: %s, %s reference answers", model_dir, ", ".join(manifest.files), len(rows)
    )
    return manifest


@contextmanager
def open_staging_folder(model_dir: Path) -> Iterator[Path]:
    """Yield a temporary folder inside `model_dir`, so that its files can be renamed into the bundle.

    A system-wide temporary folder may be on another file system. Folders of killed processes are removed.
    """
    model_dir.mkdir(parents=True, exist_ok=True)
    for stale in model_dir.glob(f"{_STAGING}*"):
        shutil.rmtree(stale, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=model_dir))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_disk_space(model_dir: Path, model: Any, golden_bytes: int) -> None:
    """Raise `UserError` if the bundle may not fit: on a full disk the libraries crash or fail silently."""
    model_dir.mkdir(parents=True, exist_ok=True)
    weights = sum(math.prod(weight.shape) for weight in model.weights) * 4
    needed = 3 * weights + golden_bytes + MARGIN  # the weights in .h5, in .bin and in the export's SavedModel
    free = shutil.disk_usage(model_dir).free
    if free < needed:
        raise UserError(
            f"the disk is full: the model needs {needed >> 20} MB in {model_dir}, which has {free >> 20} MB "
            "free; give the job a larger volume."
        )


def _add_openvino(model: Any, staging: Path, rows: npt.NDArray[Any], answers: npt.NDArray[Any]) -> None:
    """Add the OpenVINO model and compare its answers; if the conversion fails, the bundle goes without it."""
    if not openvino_engine.is_installed():
        logger.info("OpenVINO is not installed: the model will need TensorFlow to serve")
        return
    path = staging / OPENVINO_MODEL
    try:
        openvino_engine.export(model, rows.shape[1:], path)
        engine = openvino_engine.load(staging, cores=1, dtype=str(rows.dtype))
        difference = largest_difference(engine.predict(rows), answers)
    except Exception:  # the converter does not support every layer
        logger.warning(
            "OpenVINO cannot convert or run this model, which will need TensorFlow to serve", exc_info=True
        )
        shutil.rmtree(path.parent, ignore_errors=True)
        return
    if difference > TOLERANCE:
        logger.warning(
            "OpenVINO's answers differ by %.2g, above %.2g: it will not serve this model",
            difference,
            TOLERANCE,
        )


def _replace_bundle(staging: Path, model_dir: Path) -> None:
    """Rename each part into place, the manifest last, so that a mix of two bundles fails its hashes."""
    replaced = staging / "replaced"
    replaced.mkdir()
    for name in (Path(OPENVINO_MODEL).parent.name, GOLDEN, MODEL, MANIFEST):
        new, old = staging / name, model_dir / name
        if old.is_dir() or (old.exists() and not new.exists()):
            old.rename(replaced / name)
        if new.exists():
            new.replace(old)


def _find_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for distribution, name in _DISTRIBUTIONS.items():
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(distribution)
    return versions
