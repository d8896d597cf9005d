"""Adding an int8 model to a bundle, quantized by NNCF with real rows, if its answers are close enough."""

import contextlib
import dataclasses
import importlib.util
import io
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.bundle.agreement import compare, time_row
from backends.bundle.manifest import (
    INT8_MODEL,
    MANIFEST,
    OPENVINO_MODEL,
    Manifest,
    read_golden,
    read_manifest,
    sha256,
)
from backends.bundle.writer import open_staging_folder
from backends.engines import openvino_engine
from tandem.errors import UserError

logger = logging.getLogger(__name__)

#: Rows to calibrate on; NNCF's default is 300 too.
CALIBRATION_ROWS = 300

_CONVOLUTIONS = {"Convolution", "GroupConvolution"}

Rows = npt.NDArray[Any]
LabeledBatches = Iterable[tuple[Rows, npt.NDArray[np.int64]]]


def check_installed() -> None:
    """Raise `UserError` unless this image can quantize a model."""
    missing = [name for name in ("openvino", "nncf") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"hyperparameter quantization is 'int8', but this image has no {' and no '.join(missing)}; "
            "train in the cpu or the gpu image, or set it to 'none'."
        )


def add_int8(model_dir: Path, rows: Rows, validation: LabeledBatches) -> None:
    """Add an int8 model to a complete bundle and its measurements to the manifest.

    `rows` are preprocessed training rows in the bundle's input dtype; `validation` yields batches of other
    rows with their label indices. If the int8 model cannot be made, or its answers exceed the tolerance, it
    is left out with a warning.
    """
    manifest = read_manifest(model_dir)
    if manifest is None or not manifest.has_openvino:
        logger.warning("no int8 model is made: the bundle has no OpenVINO model to quantize")
        return
    started = time.monotonic()
    try:
        with open_staging_folder(model_dir) as staging:
            _quantize(model_dir / OPENVINO_MODEL, rows, staging / INT8_MODEL)
            seconds = time.monotonic() - started
            fault, measurements = _evaluate(model_dir, staging, manifest, validation)
            measurements |= {"calibration_rows": len(rows), "seconds": round(seconds, 1)}
            _update_bundle(staging, model_dir, manifest, measurements, with_model=not fault)
    except Exception:  # the quantizer does not support every layer, and the disk may be full
        logger.warning("no int8 model was made; the model serves at float32", exc_info=True)
        return
    figures = ", ".join(f"{name} {value:.4g}" for name, value in measurements.items())
    if fault:
        logger.warning("the int8 model is left out: %s (%s)", fault, figures)
    else:
        logger.info("int8 model: %s", figures)


def _quantize(source: Path, rows: Rows, target: Path) -> None:
    """Write the int8 version of the model `source`, which takes float32 rows, as .xml and .bin.

    Of NNCF's options these came closest to float32 for SmallCNN and MobileNetV2: bias correction layer by
    layer (the fast algorithm's error is three to five times larger), min-max ranges, and float32 for the
    first convolution and the last matrix multiplication, which takes hardly more time.
    """
    openvino = openvino_engine.import_openvino()
    with _import_nncf_quietly() as nncf:
        model = openvino.Core().read_model(source)
        operations = [(each.get_type_name(), each.get_friendly_name()) for each in model.get_ordered_ops()]
        first = [name for kind, name in operations if kind in _CONVOLUTIONS][:1]
        last = [name for kind, name in operations if kind == "MatMul"][-1:]
        quantized = nncf.quantize(
            model,
            nncf.Dataset(rows, lambda row: row[np.newaxis].astype(np.float32)),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(rows),
            fast_bias_correction=False,
            ignored_scope=nncf.IgnoredScope(names=first + last),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=(
                    nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
                ),
            ),
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        openvino.save_model(quantized, target, compress_to_fp16=False)


def _evaluate(
    model_dir: Path, staging: Path, manifest: Manifest, validation: LabeledBatches
) -> tuple[str, dict[str, float]]:
    """Compare int8 with the reference answers and with float32; return the fault and the measurements."""
    rows, reference = read_golden(model_dir, manifest)
    cores, dtype = len(os.sched_getaffinity(0)), manifest.input_dtype
    int8 = openvino_engine.load(staging, cores, dtype, "int8", sequential=True)
    float32 = openvino_engine.load(model_dir, cores, dtype, sequential=True)
    agreement = compare(int8.predict(rows), reference, clear_margin=2 * manifest.golden_tolerance)
    measurements = {
        "largest_difference": agreement.largest_difference,
        "same_labels": agreement.same_labels / agreement.rows,
        "ms_per_row": round(time_row(int8.predict, rows), 3),
        "ms_per_row_float32": round(time_row(float32.predict, rows), 3),
    }
    counts = np.zeros(4, np.int64)  # rows, correct at int8, correct at float32, the same label at both
    for batch, labels in validation:
        predicted, expected = (engine.predict(batch).argmax(axis=1) for engine in (int8, float32))
        same = predicted == expected
        counts += [len(batch), (predicted == labels).sum(), (expected == labels).sum(), same.sum()]
    if counts[0]:
        names = ("validation_accuracy", "validation_accuracy_float32", "validation_same_labels")
        measurements |= dict(zip(names, (counts[1:] / counts[0]).tolist(), strict=True))
    return agreement.find_fault(manifest.tolerance("int8")), measurements


def _update_bundle(
    staging: Path, model_dir: Path, manifest: Manifest, measurements: dict[str, float], *, with_model: bool
) -> None:
    """Add the int8 files, then the manifest that lists them; until then the old manifest is valid."""
    files = manifest.files
    if with_model:
        folder = Path(INT8_MODEL).parent
        files = files | {
            path.relative_to(staging).as_posix(): sha256(path)
            for path in sorted((staging / folder).iterdir())
        }
        if (model_dir / folder).exists():
            (model_dir / folder).rename(staging / "replaced")
        (staging / folder).rename(model_dir / folder)
    int8 = {"tolerance": manifest.tolerance("int8"), **measurements}
    changed = dataclasses.replace(manifest, files=files, precisions={**manifest.precisions, "int8": int8})
    (staging / MANIFEST).write_text(changed.to_json(), encoding="utf-8")
    (staging / MANIFEST).replace(model_dir / MANIFEST)


@contextmanager
def _import_nncf_quietly() -> Iterator[Any]:
    """Import NNCF, and keep its own logger and its progress bars off the log.

    It reports no telemetry, as `import_openvino` has blocked the module that would.
    """
    logger_class = logging.getLoggerClass()
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            import nncf
        finally:
            logging.setLoggerClass(logger_class)  # NNCF replaces it for the whole process
        logging.getLogger("nncf").setLevel(logging.ERROR)
        yield nncf
