"""Inference with OpenVINO on the CPU; it needs no TensorFlow."""

import importlib.util
import logging
import math
import sys
import tempfile
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

#: Rows are computed in batches of about BATCH_VALUES input values, but of MIN_ROWS to MAX_ROWS rows. Larger
#: batches need more memory and are no faster per row (docs/performance.md).
BATCH_VALUES = 300_000
MIN_ROWS, MAX_ROWS = 2, 4
#: Calls are treated as concurrent until no two of them have overlapped for this many seconds.
OVERLAP_SECONDS = 0.05
#: By precision: the model's file, and INFERENCE_PRECISION_HINT for the operations that the file leaves open.
#: Without a hint OpenVINO uses bfloat16 where the processor supports it, which changes the answers.
MODELS = {
    "float32": (OPENVINO_MODEL, "f32"),
    "bfloat16": (OPENVINO_MODEL, "bf16"),
    "int8": (INT8_MODEL, "f32"),
}


class OpenVINOEngine:
    """Compute rows with OpenVINO; `predict` may be called from any thread at any time.

    The model is compiled twice, for latency and for throughput. A call that runs alone uses all cores, which
    halves its time; concurrent calls use one core each, which computes a quarter more rows per second.
    """

    name = "openvino"

    def __init__(self, latency_model: Any, throughput_model: Any, cores: int, dtype: str) -> None:
        # On a single core concurrency gains nothing, while batches save each call's overhead.
        self.concurrency = cores if cores > 1 else None
        self._latency_model = latency_model
        self._throughput_model = throughput_model
        self._shape = [size.get_length() for size in list(latency_model.input().partial_shape)[1:]]
        self.max_batch_rows = min(MAX_ROWS, max(MIN_ROWS, BATCH_VALUES // math.prod(self._shape)))
        self._dtype = dtype
        self._tensor = import_openvino().Tensor
        # Idle inference requests; the most recently used one is last.
        self._idle: dict[Any, list[Any]] = {latency_model: [], throughput_model: []}
        self._calls = 0
        self._overlapped_at = -OVERLAP_SECONDS
        self._lock = threading.Lock()

    def predict(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return one float32 answer per row; rows are (n, h, w, c) of the dtype given to `load`."""
        if rows.dtype != self._dtype:  # OpenVINO would convert the rows and truncate decimals
            raise ModelError(f"got rows of {rows.dtype}, the model was loaded for {self._dtype}.")
        with self._lock:
            now = time.monotonic()
            if self._calls:
                self._overlapped_at = now
            is_concurrent = now - self._overlapped_at < OVERLAP_SECONDS
            self._calls += 1
        try:
            compiled = self._throughput_model if is_concurrent else self._latency_model
            size = self.max_batch_rows
            if len(rows) <= size:
                return self._infer(compiled, rows)
            parts = [rows[start : start + size] for start in range(0, len(rows), size)]
            return np.concatenate([self._infer(compiled, part) for part in parts])
        finally:
            with self._lock:
                self._calls -= 1

    def warm_up(self) -> None:
        """Compute a small and a larger batch, as the first ones are slow."""
        for compiled in (self._latency_model, self._throughput_model):
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
    """Return whether OpenVINO can be imported, without importing it."""
    return importlib.util.find_spec("openvino") is not None


def has_bfloat16() -> bool:
    """Return whether this processor supports bfloat16; elsewhere OpenVINO emulates it, which is slower."""
    capabilities = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "BF16" in capabilities


def load(
    model_dir: Path,
    cores: int,
    dtype: str = "uint8",
    precision: str = "float32",
    *,
    sequential: bool = False,
) -> OpenVINOEngine:
    """Compile the bundle's OpenVINO model for `cores` cores and rows of `dtype`, and warm it up.

    With `sequential` it is compiled once, for latency only, which suits calls that never overlap.
    """
    openvino = import_openvino()
    file, hint = MODELS[precision]
    core = openvino.Core()
    model = core.read_model(model_dir / file)
    if dtype != "float32":
        steps = openvino.preprocess.PrePostProcessor(model)
        steps.input().tensor().set_element_type(openvino.Type(np.dtype(dtype)))
        steps.input().preprocess().convert_element_type(openvino.Type.f32)
        model = steps.build()

    def compile_model(streams: int) -> Any:
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": str(cores),
            "NUM_STREAMS": str(streams),
        }
        return core.compile_model(model, "CPU", settings)

    latency_model = compile_model(1)
    throughput_model = latency_model if sequential or cores == 1 else compile_model(cores)
    engine = OpenVINOEngine(latency_model, throughput_model, cores, dtype)
    engine.warm_up()
    return engine


def export(model: Any, shape: tuple[int, ...], path: Path) -> None:
    """Write a Keras model (2 or 3, on TensorFlow) that takes float32 rows of `shape` as .xml and .bin.

    The model is converted from a temporary SavedModel in the target's folder.
    """
    import tensorflow as tf

    openvino = import_openvino()
    module = tf.Module()
    module.predict = tf.function(
        lambda rows: tf.cast(model(rows, training=False), tf.float32),
        input_signature=[tf.TensorSpec((None, *shape), tf.float32)],
        autograph=False,
    )
    # Keras 3 wraps TensorFlow's variables. Tracking the model itself would also save Keras's own functions.
    module.tracked = [each if isinstance(each, tf.Variable) else each.value for each in model.variables]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, _quiet_conversion():
        tf.saved_model.save(module, folder, signatures=module.predict)
        openvino.save_model(openvino.convert_model(folder), path, compress_to_fp16=False)


@contextmanager
def _quiet_conversion() -> Iterator[None]:
    """Hide TensorFlow's progress, and restore the root logger, which a failed conversion leaves silenced."""
    root, *savers = (logging.getLogger(name) for name in (None, "tensorflow", "absl"))
    levels = {logger: logger.level for logger in (root, *savers)}
    filters, handlers = root.filters[:], root.handlers[:]
    for logger in savers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry.

    OpenVINO reports to Google Analytics unless the user opted out, writes to the home directory and forks.
    Where openvino_telemetry cannot be imported, it uses a stub of its own that does nothing.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # import raises ImportError
    import openvino

    return openvino
