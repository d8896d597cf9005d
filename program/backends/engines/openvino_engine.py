"""OpenVINO computes a bundle on the CPU, without TensorFlow."""

import importlib.util
import logging
import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.bundle.manifest import INT8_MODEL, OPENVINO_MODEL
from tandem.errors import ModelError

#: Rows a call computes at once: as many as have so many values together, between the least and the most. More
#: take more memory and give no more rows a second (docs/performance.md).
BATCH_VALUES = 300_000
LEAST_ROWS, MOST_ROWS = 2, 4
#: Seconds for which calls that met are taken to come together.
MEETING_SECONDS = 0.05
#: Precision → the model's file, and how OpenVINO is to compute what that file leaves open. Without a hint it
#: would take bfloat16 where the processor has it, and give other answers.
FORMS = {
    "float32": (OPENVINO_MODEL, "f32"),
    "bfloat16": (OPENVINO_MODEL, "bf16"),
    "int8": (INT8_MODEL, "f32"),
}


class OpenVINOEngine:
    """Compute rows with OpenVINO; `predict` may be called from any thread at any time.

    The model is compiled twice. A call that comes alone has all cores for itself, which halves its time;
    where calls have met lately they have a core each, which gives a quarter more rows a second.
    """

    name = "openvino"

    def __init__(self, alone: Any, together: Any, cores: int, dtype: str) -> None:
        # On one core nothing is gained by meeting, and batches save what each call costs, however small.
        self.concurrency = cores if cores > 1 else None
        self._alone = alone
        self._together = together
        self._shape = [size.get_length() for size in list(alone.input().partial_shape)[1:]]
        self.max_batch_rows = min(MOST_ROWS, max(LEAST_ROWS, BATCH_VALUES // math.prod(self._shape)))
        self._dtype = dtype
        self._tensor = import_openvino().Tensor
        self._idle: dict[Any, list[Any]] = {alone: [], together: []}  # infer requests, the last used last
        self._calls = 0
        self._met = -MEETING_SECONDS
        self._lock = threading.Lock()

    def predict(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Give one float32 answer a row; rows are (n, h, w, c) of the dtype loaded for."""
        if rows.dtype != self._dtype:  # OpenVINO itself would convert, and cut decimals off
            raise ModelError(f"got rows of {rows.dtype}, the model was loaded for {self._dtype}")
        with self._lock:
            now = time.monotonic()
            if self._calls:
                self._met = now
            compiled = self._together if now - self._met < MEETING_SECONDS else self._alone
            self._calls += 1
        try:
            size = self.max_batch_rows
            if len(rows) <= size:
                return self._infer(compiled, rows)
            parts = [rows[start : start + size] for start in range(0, len(rows), size)]
            return np.concatenate([self._infer(compiled, part) for part in parts])
        finally:
            with self._lock:
                self._calls -= 1

    def warm_up(self) -> None:
        """Compute a small and a larger batch, so that no caller pays for what only the first ones cost."""
        for compiled in (self._alone, self._together):
            for count in (1, self.max_batch_rows):
                self._infer(compiled, np.zeros((count, *self._shape), self._dtype))

    def _infer(self, compiled: Any, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        try:
            request = self._idle[compiled].pop()
        except IndexError:
            request = compiled.create_infer_request()
        try:
            # Inputs are always shared: a request that once shared a small batch cannot copy a larger one.
            shared = self._tensor(np.ascontiguousarray(rows), shared_memory=True)
            request.infer(shared, share_inputs=True, share_outputs=True)
            return np.array(request.get_output_tensor().data, dtype=np.float32)
        finally:
            self._idle[compiled].append(request)


def is_installed() -> bool:
    """Whether OpenVINO can be imported, without importing it."""
    return importlib.util.find_spec("openvino") is not None


def has_bfloat16() -> bool:
    """Whether this processor computes bfloat16 itself; elsewhere OpenVINO would imitate it, and be slower."""
    capabilities = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "BF16" in capabilities


def load(
    model_dir: Path,
    cores: int,
    dtype: str = "uint8",
    precision: str = "float32",
    *,
    lone: bool = False,
) -> OpenVINOEngine:
    """Compile the bundle's OpenVINO form for `cores` cores and rows of `dtype`, and warm it up.

    A `lone` engine is compiled once, for calls that come one after the other.
    """
    openvino = import_openvino()
    file, hint = FORMS[precision]
    core = openvino.Core()
    model = core.read_model(model_dir / file)
    if dtype != "float32":
        steps = openvino.preprocess.PrePostProcessor(model)
        steps.input().tensor().set_element_type(openvino.Type(np.dtype(dtype)))
        steps.input().preprocess().convert_element_type(openvino.Type.f32)
        model = steps.build()
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": str(cores)}
    alone = core.compile_model(model, "CPU", {**settings, "NUM_STREAMS": "1"})
    together = (
        core.compile_model(model, "CPU", {**settings, "NUM_STREAMS": str(cores)})
        if cores > 1 and not lone
        else alone
    )
    engine = OpenVINOEngine(alone, together, cores, dtype)
    engine.warm_up()
    return engine


def export(model: Any, shape: tuple[int, ...], path: Path) -> None:
    """Write a Keras model (2 or 3, on TensorFlow) that takes float32 rows of `shape` as .xml and .bin."""
    import tensorflow as tf

    openvino = import_openvino()
    traced = tf.function(
        lambda rows: tf.cast(model(rows, training=False), tf.float32),
        input_signature=[tf.TensorSpec((None, *shape), tf.float32)],
        autograph=False,
    )
    with _logging_kept(), _version_told(tf.__version__):
        converted = openvino.convert_model(traced.get_concrete_function())
    path.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(converted, path, compress_to_fp16=False)


@contextmanager
def _version_told(version: str) -> Iterator[None]:
    """Tell the converter TensorFlow's version, as it fails to find it on Python 3.13.

    There `exec` no longer sees the names of an earlier `exec` (PEP 667), and OpenVINO 2026.4 deletes one.
    """
    from openvino.frontend.tensorflow import utils

    asked = utils.get_environment_setup
    utils.get_environment_setup = lambda _framework: {"tensorflow": version}
    try:
        yield
    finally:
        utils.get_environment_setup = asked


@contextmanager
def _logging_kept() -> Iterator[None]:
    """Give the root logger back as it was: a conversion silences it, and leaves it so when it fails."""
    root = logging.getLogger()
    level, filters, handlers = root.level, root.filters[:], root.handlers[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry.

    The bare import reports to Google Analytics unless the user opted out, writes to the home directory and
    forks. Where openvino_telemetry is not to be found it uses a stub of its own that does nothing.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # "not to be found"
    import openvino

    return openvino
