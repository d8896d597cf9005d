"""Which engine computes a model: the first that gives the answers which the training device gave."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from backends.bundle.agreement import compare, time_row
from backends.bundle.manifest import GOLDEN, MANIFEST, MODEL, OPENVINO_MODEL, Manifest, read_manifest, verify
from backends.bundle.writer import read_golden
from backends.engines import openvino_engine, tensorflow_engine
from tandem.errors import ModelError, UserError
from tandem.runtime.devices import Decision

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "tensorflow", "openvino")

#: What OpenVINO tries, in this order, for each value of PRECISION: float32 serves where no other may.
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
    """What computes rows, `max_batch_rows` at once."""

    name: str
    max_batch_rows: int

    @property
    def concurrency(self) -> int | None:
        """How many threads at once pay; None: only the thread that loaded it may use it."""
        ...

    def predict(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Give one answer a row, in order."""
        ...


class _Proof(NamedTuple):
    """Rows with the training device's answers to them, and what the manifest says of both."""

    rows: npt.NDArray[Any]
    golden: npt.NDArray[np.float32]
    manifest: Manifest


def load_engine(
    model_dir: Path, backend: str, decision: Decision, cores: int, precision: str = "float32"
) -> tuple[Engine, Manifest]:
    """Load the model in `model_dir` on the engine that `backend`, `precision` and `decision` call for.

    Every file's hash is checked before anything is parsed, then the golden answers are computed again; with
    `backend` auto an engine that fails or differs is passed over for the next, and so is a reduced
    `precision` for float32. A bare model.h5 gets a manifest of defaults, with `golden_rows` 0. UserError:
    nothing here can be served; ModelError: no engine gives the golden answers.
    """
    for variable, given, known in ("BACKEND", backend, BACKENDS), ("PRECISION", precision, tuple(PRECISIONS)):
        if given not in known:
            raise UserError(f"{variable} is {given!r}, expected one of {', '.join(known)}")
    manifest = read_manifest(model_dir)
    if manifest is None:
        engine, manifest = _load_bare(model_dir, backend, decision, cores)
    else:
        names = _ORDER[decision.device] if backend == "auto" else (backend,)
        choices = [
            (name, form)
            for name in names
            for form in (PRECISIONS[precision] if name == "openvino" else ("float32",))
        ]
        shape, dtype = manifest.input_shape, manifest.input_dtype
        loaders: dict[str, Callable[..., Engine]] = {
            "openvino": partial(openvino_engine.load, model_dir, cores, dtype),
            "tensorflow": partial(tensorflow_engine.load, model_dir, decision, cores, shape, dtype),
        }
        engine = _load_proven(model_dir, manifest, choices, loaders)
    if engine.name == "tensorflow" and precision != "float32":
        logger.warning("PRECISION is %s, but TensorFlow serves, which computes at float32 here", precision)
    return engine, manifest


def _load_proven(
    model_dir: Path,
    manifest: Manifest,
    choices: Sequence[tuple[str, str]],
    loaders: Mapping[str, Callable[..., Engine]],
) -> Engine:
    """Load the first of `choices`, each an engine's name and a precision, that gives the golden answers."""
    verify(model_dir, manifest)
    proof = _Proof(*read_golden(model_dir, manifest), manifest)
    refused = []
    for name, form in choices:
        title = name if form == "float32" else f"{name} at {form}"
        reason = _find_missing(name, form, manifest)
        if not reason:
            engine, reason = _try(title, form, loaders[name], proof)
            if engine is not None:
                return engine
        elif form != "float32":
            logger.warning("backend %s is passed over: %s", title, reason)
        refused.append(f"{title}: {reason}")
    raise ModelError(f"no backend can serve the model in {model_dir}: {'; '.join(refused)}")


def _find_missing(name: str, form: str, manifest: Manifest) -> str:
    """Say what a backend lacks for computing the model at a precision; empty where it lacks nothing."""
    if name == "openvino" and not manifest.has_openvino:
        return "the model has no OpenVINO form"
    if not _INSTALLED[name]():
        return "not installed in this image"
    if form == "int8" and not manifest.has_int8:
        return (
            "the model has no int8 form, which training makes where the hyperparameter quantization is int8"
        )
    if form == "bfloat16" and not openvino_engine.has_bfloat16():
        return "this processor does not compute bfloat16"
    return ""


def _try(title: str, form: str, load: Callable[..., Engine], proof: _Proof) -> tuple[Engine | None, str]:
    """Load one engine and compare its golden answers; no engine, and why, when it may not serve."""
    started = time.monotonic()
    gained = ""
    try:
        # First, so that its memory is free again when the engine that stays takes its own.
        exact = None if form == "float32" else time_row(load(lone=True).predict, proof.rows)
        engine = load() if exact is None else load(precision=form)
        agreement = compare(engine.predict(proof.rows), proof.golden, 2 * proof.manifest.golden_tolerance)
        if exact is not None:
            share = 100 * agreement.same_labels / agreement.rows
            taken = time_row(engine.predict, proof.rows)
            gained = f", {share:.3g} % of labels the same, {taken:.2f} ms a row instead of {exact:.2f}"
    except Exception as error:  # an engine that breaks is passed over like one that is wrong
        logger.exception("backend %s cannot load the model", title)
        return None, f"{type(error).__name__}: {error}".split("\n", 1)[0][:300]
    fault = agreement.find_fault(proof.manifest.tolerance(form))
    if fault:
        logger.warning("backend %s is passed over: %s", title, fault)
        return None, fault
    logger.info("backend %s: %s%s, ready in %.1f s", title, agreement, gained, time.monotonic() - started)
    return engine, ""


def _load_bare(model_dir: Path, backend: str, decision: Decision, cores: int) -> tuple[Engine, Manifest]:
    """Load a model.h5 without a manifest: it was trained elsewhere, so all but its shape is assumed."""
    if not (model_dir / MODEL).is_file():
        found = sorted(path.name for path in model_dir.iterdir()) if model_dir.is_dir() else []
        raise UserError(
            f"no model in {model_dir}: expected {MODEL}, found {', '.join(found[:20]) or 'nothing'}; "
            "train first, or give a model.tar.gz with model.h5 at its top"
        )
    leftovers = [name for name in (GOLDEN, OPENVINO_MODEL, MANIFEST) if (model_dir / name).exists()]
    if leftovers:
        raise UserError(
            f"{MANIFEST} is missing from {model_dir}, but {leftovers[0]} says that Tandem wrote this model; "
            "restore the whole of it, since without its manifest the answers would be wrong"
        )
    if backend == "openvino":
        raise UserError(
            f"BACKEND=openvino needs the OpenVINO form that training writes; {model_dir} has a bare {MODEL}"
        )
    if not tensorflow_engine.is_installed():
        raise UserError(
            f"a bare {MODEL} needs TensorFlow, which this image lacks: use the cpu or the gpu image"
        )
    tensorflow_engine.start(decision, cores)
    model = tensorflow_engine.read_model(model_dir / MODEL)
    manifest = _assumed(model.input_shape, model.output_shape)
    engine = tensorflow_engine.TensorFlowEngine(model, manifest.input_shape, manifest.input_dtype)
    engine.warm_up()
    total = float(engine.predict(np.zeros((1, *manifest.input_shape), manifest.input_dtype)).sum())
    if abs(total - 1) > 0.01:
        logger.warning("the outputs of %s add up to %.3g, not 1: they are shown as they are", MODEL, total)
    logger.warning(
        "no %s beside %s, so defaults are assumed: %s, and labels 0 to %s",
        MANIFEST,
        MODEL,
        manifest.preprocessing,
        len(manifest.labels) - 1,
    )
    return engine, manifest


def _assumed(input_shape: Sequence[int | None], output_shape: Sequence[int | None]) -> Manifest:
    """Give the manifest of a model known by its shapes only; UserError when it is no image classifier."""
    match tuple(input_shape), tuple(output_shape):
        case (_, int(height), int(width), (1 | 3) as channels), (_, int(classes)) if classes > 1:
            pass
        case _:
            raise UserError(
                f"{MODEL} takes {input_shape} and gives {output_shape}; without a {MANIFEST} only an image "
                "classifier of a fixed size can be served: (None, height, width, 1 or 3) to (None, 2 or more)"
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
