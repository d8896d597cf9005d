"""OpenVINO computes a bundle on the CPU, without TensorFlow."""

import importlib.util
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.manifest import OPENVINO_MODEL
from tandem.errors import ModelError

WARM_UP_ROWS = (1, 8)


class OpenVINOEngine:
    """Compute rows with OpenVINO; `predict` may be called from any thread at any time.

    One stream uses all cores for one batch: measured on two cores, two streams took twice the time for a row
    and gave about a tenth more rows a second, which larger batches give as well.
    """

    name = "openvino"
    concurrency = 1

    def __init__(self, compiled: Any, dtype: str) -> None:
        self._compiled = compiled
        self._shape = [size.get_length() for size in list(compiled.input().partial_shape)[1:]]
        self._dtype = dtype
        self._local = threading.local()  # an infer request serves one thread at a time

    def predict(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Give one float32 answer a row; rows are (n, h, w, c) of the dtype loaded for."""
        if rows.dtype != self._dtype:  # OpenVINO itself would convert, and cut decimals off
            raise ModelError(f"got rows of {rows.dtype}, the model was loaded for {self._dtype}")
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        # Shared inputs are always used: a request that once shared a small batch cannot copy a larger one.
        outputs = self._local.request.infer({0: np.ascontiguousarray(rows)}, share_inputs=True)
        return np.array(outputs[0], dtype=np.float32)

    def warm_up(self) -> None:
        """Compute a small and a larger batch, so that no caller pays for what only the first ones cost."""
        for count in WARM_UP_ROWS:
            self.predict(np.zeros((count, *self._shape), self._dtype))


def is_installed() -> bool:
    """Whether OpenVINO can be imported, without importing it."""
    return importlib.util.find_spec("openvino") is not None


def load(model_dir: Path, cores: int, dtype: str = "uint8") -> OpenVINOEngine:
    """Compile the bundle's OpenVINO form for `cores` cores and rows of `dtype`, and warm it up."""
    openvino = _openvino()
    core = openvino.Core()
    model = core.read_model(model_dir / OPENVINO_MODEL)
    if dtype != "float32":
        steps = openvino.preprocess.PrePostProcessor(model)
        steps.input().tensor().set_element_type(openvino.Type(np.dtype(dtype)))
        steps.input().preprocess().convert_element_type(openvino.Type.f32)
        model = steps.build()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the processor has it, and other answers
        "INFERENCE_NUM_THREADS": str(cores),
        "NUM_STREAMS": str(OpenVINOEngine.concurrency),
    }
    engine = OpenVINOEngine(core.compile_model(model, "CPU", settings), dtype)
    engine.warm_up()
    return engine


def export(model: Any, shape: tuple[int, ...], path: Path) -> None:
    """Write a Keras model (2 or 3, on TensorFlow) that takes float32 rows of `shape` as .xml and .bin."""
    import tensorflow as tf

    openvino = _openvino()
    traced = tf.function(
        lambda rows: tf.cast(model(rows, training=False), tf.float32),
        input_signature=[tf.TensorSpec((None, *shape), tf.float32)],
        autograph=False,
    )
    with _logging_kept():
        converted = openvino.convert_model(traced.get_concrete_function())
    path.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(converted, path, compress_to_fp16=False)


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


def _openvino() -> Any:
    """Import OpenVINO without its telemetry.

    The bare import reports to Google Analytics unless the user opted out, writes to the home directory and
    forks. Where openvino_telemetry is not to be found it uses a stub of its own that does nothing.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # "not to be found"
    import openvino

    return openvino
