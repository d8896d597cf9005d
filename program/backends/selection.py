"""Which engine computes a model: the first that gives the answers which the training device gave."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from backends import openvino_backend, tensorflow_backend
from backends.bundle import largest_difference, read_golden
from backends.manifest import GOLDEN, MANIFEST, MODEL, OPENVINO_MODEL, Manifest, read_manifest, verify
from tandem.devices import Decision
from tandem.errors import ModelError, UserError

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "tensorflow", "openvino")

_ORDER = {"gpu": ("tensorflow", "openvino"), "cpu": ("openvino", "tensorflow")}
_INSTALLED = {"tensorflow": tensorflow_backend.is_installed, "openvino": openvino_backend.is_installed}
_COLOR_ORDERS = {1: "GRAY", 3: "RGB"}


class Engine(Protocol):
    """What computes rows; `concurrency` threads at once are useful, with `max_batch_rows` rows each."""

    name: str
    concurrency: int
    max_batch_rows: int

    def predict(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Give one answer a row, in order."""
        ...


def load_engine(model_dir: Path, backend: str, decision: Decision, cores: int) -> tuple[Engine, Manifest]:
    """Load the model in `model_dir` on the engine that `backend` and `decision` call for.

    Every file's hash is checked before anything is parsed, then the golden answers are computed again; with
    `backend` auto an engine that fails or differs is passed over for the next. A bare model.h5 gets a
    manifest of defaults, with `golden_rows` 0. UserError: nothing here can be served; ModelError: no engine
    gives the golden answers.
    """
    if backend not in BACKENDS:
        raise UserError(f"BACKEND is {backend!r}, expected one of {', '.join(BACKENDS)}")
    manifest = read_manifest(model_dir)
    if manifest is None:
        return _load_bare(model_dir, backend, decision, cores)
    verify(model_dir, manifest)
    rows, golden = read_golden(model_dir, manifest)
    loaders: dict[str, Callable[[], Engine]] = {
        "openvino": partial(openvino_backend.load, model_dir, cores, manifest.input_dtype),
        "tensorflow": partial(
            tensorflow_backend.load, model_dir, decision, cores, manifest.input_shape, manifest.input_dtype
        ),
    }
    refused = []
    for name in _ORDER[decision.device] if backend == "auto" else (backend,):
        if name == "openvino" and not manifest.has_openvino:
            refused.append(f"{name}: the model has no OpenVINO form")
        elif not _INSTALLED[name]():
            refused.append(f"{name}: not installed in this image")
        else:
            engine, reason = _try(name, loaders[name], rows, golden, manifest.golden_tolerance)
            if engine is not None:
                return engine, manifest
            refused.append(f"{name}: {reason}")
    raise ModelError(f"no backend can serve the model in {model_dir}: {'; '.join(refused)}")


def _try(
    name: str,
    load: Callable[[], Engine],
    rows: npt.NDArray[Any],
    golden: npt.NDArray[np.float32],
    tolerance: float,
) -> tuple[Engine | None, str]:
    """Load one engine and compare its golden answers; no engine, and why, when it may not serve."""
    started = time.monotonic()
    try:
        engine = load()
        difference = largest_difference(engine.predict(rows), golden)
    except Exception as error:  # an engine that breaks is passed over like one that is wrong
        logger.exception("backend %s cannot load the model", name)
        return None, f"{type(error).__name__}: {error}".split("\n", 1)[0][:300]
    compared = f"largest difference {difference:.2g} over {len(rows)} golden rows"
    if not difference <= tolerance:  # also where it is no number
        logger.warning("backend %s is passed over: %s, above %.2g", name, compared, tolerance)
        return None, f"{compared}, above {tolerance:.2g}"
    logger.info("backend %s: %s, ready in %.1f s", name, compared, time.monotonic() - started)
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
    if not tensorflow_backend.is_installed():
        raise UserError(
            f"a bare {MODEL} needs TensorFlow, which this image lacks: use the cpu or the gpu image"
        )
    tensorflow_backend.start(decision, cores)
    model = tensorflow_backend.read_model(model_dir / MODEL)
    manifest = _assumed(model.input_shape, model.output_shape)
    engine = tensorflow_backend.TensorFlowEngine(model, manifest.input_shape, manifest.input_dtype)
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
