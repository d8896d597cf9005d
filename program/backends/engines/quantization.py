"""A bundle's form in whole numbers (int8), made with NNCF from real rows and kept only if it answers well."""

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
from backends.bundle.manifest import INT8_MODEL, MANIFEST, OPENVINO_MODEL, Manifest, read_manifest, sha256
from backends.bundle.writer import open_aside, read_golden
from backends.engines import openvino_engine
from tandem.errors import UserError

logger = logging.getLogger(__name__)

#: Rows that show which values pass through the network; three hundred are what NNCF takes by default.
CALIBRATION_ROWS = 300

_CONVOLUTIONS = {"Convolution", "GroupConvolution"}

Rows = npt.NDArray[Any]


def require() -> None:
    """Raise `UserError` unless this image can make an int8 form."""
    missing = [name for name in ("openvino", "nncf") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"hyperparameter quantization is 'int8', but this image has no {' and no '.join(missing)}; "
            "train in the cpu or the gpu image, or set it to 'none'."
        )


def add_int8(model_dir: Path, rows: Rows, validation: Iterable[tuple[Rows, npt.NDArray[np.int64]]]) -> None:
    """Add an int8 form to a complete bundle and say in its manifest how good it is.

    `rows` are real ones of the training, preprocessed, of the dtype in which rows travel; `validation` gives
    batches of others with the places of their labels. A form whose golden answers are not within the
    tolerance is left out with a warning, and so is one that cannot be made: the bundle stays as it is.
    """
    manifest = read_manifest(model_dir)
    if manifest is None or not manifest.has_openvino:
        logger.warning("no int8 form is made: the model has no OpenVINO form to make it from")
        return
    started = time.monotonic()
    try:
        with open_aside(model_dir) as aside:
            _quantize(model_dir / OPENVINO_MODEL, rows, aside / INT8_MODEL)
            seconds = time.monotonic() - started
            fault, found = _judge(model_dir, aside, manifest, validation)
            found |= {"calibration_rows": len(rows), "seconds": round(seconds, 1)}
            _move_into_place(aside, model_dir, manifest, None if fault else INT8_MODEL, found)
    except Exception:  # any layer may be new to the quantizer, and the disk may be full
        logger.warning("no int8 form was made; the model serves at float32", exc_info=True)
        return
    said = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
    if fault:
        logger.warning("the int8 form is left out: %s (%s)", fault, said)
    else:
        logger.info("int8 form: %s", said)


def _quantize(source: Path, rows: Rows, target: Path) -> None:
    """Write the int8 form of the model `source`, which takes float32 rows, as .xml and .bin.

    Of what NNCF offers this came nearest to float32 for SmallCNN and MobileNetV2: biases corrected layer by
    layer (its fast way is three to five times as far off), ranges from the smallest to the largest value, and
    the first convolution and the last matrix left as they are, which cost next to nothing.
    """
    openvino = openvino_engine.import_openvino()
    with _nncf_quiet() as nncf:
        model = openvino.Core().read_model(source)
        operations = [(each.get_type_name(), each.get_friendly_name()) for each in model.get_ordered_ops()]
        first = [name for kind, name in operations if kind in _CONVOLUTIONS][:1]
        last = [name for kind, name in operations if kind == "MatMul"][-1:]
        smaller = nncf.quantize(
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
        openvino.save_model(smaller, target, compress_to_fp16=False)


def _judge(
    model_dir: Path,
    aside: Path,
    manifest: Manifest,
    validation: Iterable[tuple[Rows, npt.NDArray[np.int64]]],
) -> tuple[str, dict[str, float]]:
    """Compare the new form with the golden answers, and on other rows with float32; the fault and figures."""
    rows, golden = read_golden(model_dir, manifest)
    cores, dtype = len(os.sched_getaffinity(0)), manifest.input_dtype
    smaller = openvino_engine.load(aside, cores, dtype, "int8", lone=True)
    exact = openvino_engine.load(model_dir, cores, dtype, lone=True)
    agreement = compare(smaller.predict(rows), golden, clear=2 * manifest.golden_tolerance)
    found = {
        "largest_difference": agreement.largest_difference,
        "same_labels": agreement.same_labels / agreement.rows,
        "ms_per_row": round(time_row(smaller.predict, rows), 3),
        "ms_per_row_float32": round(time_row(exact.predict, rows), 3),
    }
    counts = np.zeros(4, np.int64)  # rows, right at int8, right at float32, the same label at both
    for others, labels in validation:
        answers, exact_answers = (engine.predict(others).argmax(axis=1) for engine in (smaller, exact))
        same = answers == exact_answers
        counts += [len(others), (answers == labels).sum(), (exact_answers == labels).sum(), same.sum()]
    if counts[0]:
        accuracy, exact_accuracy, same_labels = (counts[1:] / counts[0]).tolist()
        found |= {
            "validation_accuracy": accuracy,
            "validation_accuracy_float32": exact_accuracy,
            "validation_same_labels": same_labels,
        }
    return agreement.find_fault(manifest.tolerance("int8")), found


def _move_into_place(
    aside: Path, model_dir: Path, manifest: Manifest, form: str | None, found: dict[str, float]
) -> None:
    """Add the form's files, then the manifest that names them: until then the bundle is the one before."""
    files = manifest.files
    if form is not None:
        folder = Path(form).parent
        files = files | {
            path.relative_to(aside).as_posix(): sha256(path) for path in sorted((aside / folder).iterdir())
        }
        if (model_dir / folder).exists():
            (model_dir / folder).rename(aside / "replaced")
        (aside / folder).rename(model_dir / folder)
    entry = {"tolerance": manifest.tolerance("int8"), **found}
    changed = dataclasses.replace(manifest, files=files, precisions={**manifest.precisions, "int8": entry})
    (aside / MANIFEST).write_text(changed.to_json(), encoding="utf-8")
    (aside / MANIFEST).replace(model_dir / MANIFEST)


@contextmanager
def _nncf_quiet() -> Iterator[Any]:
    """Import NNCF and keep from the log what it says; it speaks by its own logger and by progress bars.

    It reports to nobody, as `import_openvino` has hidden the module that does.
    """
    logger_class = logging.getLoggerClass()
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            import nncf
        finally:
            logging.setLoggerClass(logger_class)  # which NNCF changes for everybody
        logging.getLogger("nncf").setLevel(logging.ERROR)
        yield nncf
