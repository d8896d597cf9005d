"""Choosing the engine for a model: the first one that reproduces the training device's answers."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from backends.bundle.agreement import compare, time_row
from backends.bundle.manifest import (
    GOLDEN,
    MANIFEST,
    MODEL,
    OPENVINO_MODEL,
    Manifest,
    read_golden,
    read_manifest,
    verify,
)
from backends.engines import openvino_engine, tensorflow_engine
from tandem.errors import ModelError, UserError
from tandem.runtime.devices import Decision

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "tensorflow", "openvino")

#: By value of PRECISION: the precisions that OpenVINO tries, in order; float32 is the fallback.
PRECISIONS = {
    "float32": ("float32",),
    "bfloat16": ("bfloat16", "float32"),
    "int8": ("int8", "float32"),
    "auto": ("int8", "bfloat16", "float32"),
}

_ORDER = {"gpu": ("tensorflow", "openvino"), "cpu": ("openvino", "tensorflow")}
_INSTALLED = {"tensorflow": tensorflow_engine.is_installed, "openvino": openvino_engine.is_installed}
_COLOR_ORDERS = {1: "GRAY", 3: "RGB"}


class Engine(Protocol):
    """Computes rows, up to `max_batch_rows` of them efficiently in one batch."""

    name: str
    max_batch_rows: int

    @property
    def concurrency(self) -> int | None:
        """How many threads may usefully call `predict` at once; None if only the loading thread may."""
        ...

    def predict(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return one answer per row, in order."""
        ...


class _Reference(NamedTuple):
    """Rows with the training device's answers to them, and the manifest that describes both."""

    rows: npt.NDArray[Any]
    answers: npt.NDArray[np.float32]
    manifest: Manifest


def load_engine(
    model_dir: Path, backend: str, decision: Decision, cores: int, precision: str = "float32"
) -> tuple[Engine, Manifest]:
    """Load the model in `model_dir` on the engine that `backend`, `precision` and `decision` select.

    Every file's hash is checked before it is parsed; then the reference answers are computed again. With
    `backend` auto an engine that fails or differs is skipped in favor of the next one, and a reduced
    `precision` in favor of float32. A bare model.h5 gets a manifest of defaults with `golden_rows` 0.

    Raises `UserError` if there is no valid model, and `ModelError` if no engine gives the reference answers.
    """
    for variable, given, known in ("BACKEND", backend, BACKENDS), ("PRECISION", precision, tuple(PRECISIONS)):
        if given not in known:
            raise UserError(f"{variable} is {given!r}, expected one of {', '.join(known)}.")
    manifest = read_manifest(model_dir)
    if manifest is None:
        engine, manifest = _load_bare(model_dir, backend, decision, cores)
    else:
        names = _ORDER[decision.device] if backend == "auto" else (backend,)
        choices = [
            (name, candidate)
            for name in names
            for candidate in (PRECISIONS[precision] if name == "openvino" else ("float32",))
        ]
        shape, dtype = manifest.input_shape, manifest.input_dtype
        loaders: dict[str, Callable[..., Engine]] = {
            "openvino": partial(openvino_engine.load, model_dir, cores, dtype),
            "tensorflow": partial(tensorflow_engine.load, model_dir, decision, cores, shape, dtype),
        }
        engine = _load_first(model_dir, manifest, choices, loaders)
    if engine.name == "tensorflow" and precision != "float32":
        logger.warning("PRECISION is %s, but TensorFlow serves this model and computes at float32", precision)
    return engine, manifest


def _load_first(
    model_dir: Path,
    manifest: Manifest,
    choices: Sequence[tuple[str, str]],
    loaders: Mapping[str, Callable[..., Engine]],
) -> Engine:
    """Load the first of `choices`, pairs of engine and precision, that gives the reference answers."""
    verify(model_dir, manifest)
    reference = _Reference(*read_golden(model_dir, manifest), manifest)
    failures = []
    for name, precision in choices:
        title = name if precision == "float32" else f"{name} at {precision}"
        reason = _find_missing(name, precision, manifest)
        if not reason:
            engine, reason = _load_and_check(title, precision, loaders[name], reference)
            if engine is not None:
                return engine
        elif precision != "float32":
            logger.warning("backend %s is skipped: %s", title, reason)
        failures.append(f"{title}: {reason}")
    raise ModelError(f"no backend can serve the model in {model_dir}: {'; '.join(failures)}")


def _find_missing(name: str, precision: str, manifest: Manifest) -> str:
    """Return what prevents an engine from trying a precision, or the empty string."""
    if name == "openvino" and not manifest.has_openvino:
        return "the bundle has no OpenVINO model"
    if not _INSTALLED[name]():
        return "not installed in this image"
    if precision == "int8" and not manifest.has_int8:
        return "the bundle has no int8 model; train with the hyperparameter quantization=int8 to get one"
    if precision == "bfloat16" and not openvino_engine.has_bfloat16():
        return "this processor does not support bfloat16"
    return ""


def _load_and_check(
    title: str, precision: str, load: Callable[..., Engine], reference: _Reference
) -> tuple[Engine | None, str]:
    """Load an engine and check its answers; return (None, reason) if it must not serve."""
    started = time.monotonic()
    gain = ""
    try:
        # First, so that this engine's memory is free again before the one that serves is loaded.
        exact = None if precision == "float32" else time_row(load(sequential=True).predict, reference.rows)
        engine = load() if exact is None else load(precision=precision)
        clear_margin = 2 * reference.manifest.golden_tolerance
        agreement = compare(engine.predict(reference.rows), reference.answers, clear_margin)
        if exact is not None:
            share = 100 * agreement.same_labels / agreement.rows
            reduced = time_row(engine.predict, reference.rows)
            gain = f", {share:.3g} % of labels the same, {reduced:.2f} ms per row instead of {exact:.2f}"
    except Exception as error:  # an engine that fails is skipped like one with wrong answers
        logger.exception("backend %s cannot load the model", title)
        return None, f"{type(error).__name__}: {error}".split("\n", 1)[0][:300]
    fault = agreement.find_fault(reference.manifest.tolerance(precision))
    if fault:
        logger.warning("backend %s is skipped: %s", title, fault)
        return None, fault
    logger.info("backend %s: %s%s, ready in %.1f s", title, agreement, gain, time.monotonic() - started)
    return engine, ""


def _load_bare(model_dir: Path, backend: str, decision: Decision, cores: int) -> tuple[Engine, Manifest]:
    """Load a model.h5 without a manifest: it was trained elsewhere, so all but its shape is assumed."""
    if not (model_dir / MODEL).is_file():
        found = sorted(path.name for path in model_dir.iterdir()) if model_dir.is_dir() else []
        raise UserError(
            f"no model in {model_dir}: expected {MODEL}, found {', '.join(found[:20]) or 'nothing'}; "
            "train first, or provide a model.tar.gz with model.h5 at its top level."
        )
    leftovers = [name for name in (GOLDEN, OPENVINO_MODEL, MANIFEST) if (model_dir / name).exists()]
    if leftovers:
        raise UserError(
            f"{MANIFEST} is missing from {model_dir}, but {leftovers[0]} shows that Tandem wrote this model; "
            "restore the whole model, as its answers would be wrong without the manifest."
        )
    if backend == "openvino":
        raise UserError(
            f"BACKEND=openvino needs the OpenVINO model that training writes; {model_dir} has a bare {MODEL}."
        )
    if not tensorflow_engine.is_installed():
        raise UserError(
            f"a bare {MODEL} needs TensorFlow, which this image lacks: use the cpu or the gpu image."
        )
    tensorflow_engine.start(decision, cores)
    model = tensorflow_engine.read_model(model_dir / MODEL)
    manifest = _assume_manifest(model.input_shape, model.output_shape)
    engine = tensorflow_engine.TensorFlowEngine(model, manifest.input_shape, manifest.input_dtype)
    engine.warm_up()
    total = float(engine.predict(np.zeros((1, *manifest.input_shape), manifest.input_dtype)).sum())
    if abs(total - 1) > 0.01:
        logger.warning("the outputs of %s add up to %.3g, not 1: they are returned as they are", MODEL, total)
    logger.warning(
        "there is no %s beside %s, so defaults are assumed: %s, and labels 0 to %s",
        *(MANIFEST, MODEL, manifest.preprocessing, len(manifest.labels) - 1),
    )
    return engine, manifest


def _assume_manifest(input_shape: Sequence[int | None], output_shape: Sequence[int | None]) -> Manifest:
    """Return default entries for a model's shapes; raises `UserError` if it is not an image classifier."""
    match tuple(input_shape), tuple(output_shape):
        case (_, int(height), int(width), (1 | 3) as channels), (_, int(classes)) if classes > 1:
            pass
        case _:
            raise UserError(
                f"{MODEL} maps {input_shape} to {output_shape}; without a {MANIFEST} only an image "
                "classifier of fixed size can be served: (None, height, width, 1 or 3) to (None, 2 or more)."
            )
    return Manifest(
        labels=tuple(str(index) for index in range(classes)),
        preprocessing={
            "height": height,
            "width": width,
            "channels": channels,
            "color_order": _COLOR_ORDERS[channels],
            "resize": "stretch",
            "interpolation": "area_or_linear",
            "scale": 1 / 255,
            "offset": 0.0,
        },
        input_shape=(height, width, channels),
        input_dtype="float32",
    )
