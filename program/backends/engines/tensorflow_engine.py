"""Inference with TensorFlow on a GPU or the CPU, and reading and writing Keras models safely."""

import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.bundle.manifest import MODEL
from tandem.errors import ModelError, UserError
from tandem.runtime.devices import Decision

logger = logging.getLogger(__name__)

WARM_UP_ROWS = (1, 8)
FIRST_OP_SECONDS = 120.0

_FIRST_OP = """
import sys, tensorflow as tf
gpus = tf.config.list_physical_devices("GPU")
if len(gpus) < int(sys.argv[1]):
    sys.exit(f"TensorFlow finds {len(gpus) or 'no'} GPU, {sys.argv[1]} expected")
for index in range(len(gpus)):
    with tf.device(f"/GPU:{index}"):
        # Elementwise kernels come with TensorFlow, the others with the CUDA libraries: both kinds must load.
        image = tf.tanh(tf.zeros((1, 8, 8, 4))) + 1.0
        total = tf.reduce_sum(tf.nn.conv2d(image, tf.ones((3, 3, 4, 8)), 1, "VALID"))
        if float(tf.linalg.matmul([[total]], [[1.0]])[0, 0]) != 10368.0:
            sys.exit(f"GPU {index} computes a wrong result")
"""

# Keras 2 runs the code in these layers of an HDF5 file and imports any module that the file names.
_CODE = "it has a Lambda layer, whose Python code would run on loading: replace it with a named layer"
_CODE_LAYERS = {"Lambda", "__lambda__"}
_CODE_MODULES = re.compile(r"(keras|builtins)(\.|$)")

# Parts of Keras's error messages, and what they mean for the user.
_MEANINGS = {
    "`Lambda`": _CODE,
    "No model config": "it contains weights but no model: save the whole model with model.save('model.h5')",
    "Unknown layer": "it has a layer that this image does not support",
    "file signature not found": "it is not an HDF5 file",
    "truncated file": "it is truncated: copy it again",
}


class TensorFlowEngine:
    """Compute rows with a traced function of a Keras model; only one thread may use it."""

    name = "tensorflow"
    concurrency = None
    max_batch_rows = 64

    def __init__(self, model: Any, shape: Sequence[int], dtype: str) -> None:
        import tensorflow as tf

        def predict(rows: Any) -> Any:
            return tf.cast(model(tf.cast(rows, tf.float32), training=False), tf.float32)

        signature = [tf.TensorSpec((None, *shape), dtype)]  # any batch size, so that it is traced once
        self._function = tf.function(predict, input_signature=signature, autograph=False)
        self._shape = tuple(shape)
        self._dtype = dtype

    def predict(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return one float32 answer per row; rows are (n, h, w, c) of the dtype given to the constructor."""
        if rows.dtype != self._dtype:
            raise ModelError(f"got rows of {rows.dtype}, the model was loaded for {self._dtype}.")
        answers: npt.NDArray[np.float32] = self._function(rows).numpy()
        return answers

    def warm_up(self) -> None:
        """Compute a small and a larger batch, as the first ones are slow."""
        for count in WARM_UP_ROWS:
            self.predict(np.zeros((count, *self._shape), self._dtype))


def is_installed() -> bool:
    """Return whether TensorFlow can be imported, without importing it."""
    return importlib.util.find_spec("tensorflow") is not None


def environment(decision: Decision, cores: int | None = None) -> dict[str, str]:
    """Return the environment variables to set before TensorFlow is imported.

    Variables that are already set keep their values, except that a CPU decision hides all GPUs.
    """
    variables = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    if cores is not None:
        variables |= {"TF_NUM_INTRAOP_THREADS": str(cores), "TF_NUM_INTEROP_THREADS": str(cores)}
    variables |= decision.environment()
    forced = decision.environment() if decision.device == "cpu" else {}
    return {name: forced.get(name, os.environ.get(name, value)) for name, value in variables.items()}


def start(decision: Decision, cores: int | None = None) -> None:
    """Import TensorFlow for the device decided on; nothing may have imported it before."""
    os.environ.update(environment(decision, cores))
    import tensorflow as tf

    if decision.device == "cpu":
        # A second safeguard: with a too old driver TensorFlow lists the GPU, then fails in the first op.
        if tf.config.get_visible_devices("GPU"):
            tf.config.set_visible_devices([], "GPU")
        return
    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        logger.warning(
            "%s GPU(s) were selected, but TensorFlow finds none and will use the CPU", len(decision.gpus)
        )
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)  # noqa: FBT003 - TensorFlow's signature


def make_deterministic() -> None:
    """Make every op deterministic, which is slower; ops without a deterministic implementation fail."""
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


def try_first_op(decision: Decision, seconds: float = FIRST_OP_SECONDS) -> str | None:
    """Run a small computation on each GPU decided on; return the error in one line, or None on success.

    It runs in a separate process: GPU libraries may abort, and a failed CUDA context cannot be reset.
    """
    if decision.device == "cpu":
        return None
    # Of several MIG devices CUDA shows a process only the first.
    expected = 1 if any(gpu.uuid.startswith("MIG-") for gpu in decision.gpus) else len(decision.gpus)
    command = [sys.executable, "-c", _FIRST_OP, str(expected)]
    try:
        done = subprocess.run(
            command,
            env=os.environ | environment(decision) | decision.environment(),
            cwd="/",  # so that no module in the current folder shadows a standard one
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the first op on the GPU did not finish within {seconds:.0f} s"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    if done.returncode < 0:
        return f"the first op on the GPU ended with signal {-done.returncode}"
    return lines[-1][:300] if lines else f"the first op on the GPU ended with exit code {done.returncode}"


def read_model(path: Path) -> Any:
    """Read a Keras model from a file without compiling it or running code that the file contains.

    Files of Keras 2 load in Keras 3, and vice versa, if both have all of their layers. Raises `UserError`
    with the reason if the file cannot be loaded.
    """
    import keras

    writer, has_code = _inspect(path)
    if has_code:
        raise UserError(f"{path.name} cannot be loaded: {_CODE}.")
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError) as error:
        text = str(error)
        meaning = next(
            (meaning for part, meaning in _MEANINGS.items() if part in text), text.split("\n", 1)[0][:200]
        )
        if writer and writer.split(".")[0] != keras.__version__.split(".")[0]:
            meaning = (
                f"Keras {writer} saved it, and this image's Keras {keras.__version__} cannot load it "
                f"({meaning}): serve the whole model folder, whose OpenVINO model needs no Keras, or use an "
                f"image with Keras {writer.split('.')[0]}"
            )
        raise UserError(f"{path.name} cannot be loaded: {meaning}.") from error


def _inspect(path: Path) -> tuple[str, bool]:
    """Return the Keras version that wrote a file, empty if unknown, and whether the file contains code.

    A file may be both HDF5 and, read from its end, a .keras archive: both are inspected.
    """
    import h5py

    writer, configs = "", []
    with suppress(OSError, ValueError):  # not HDF5, or damaged: Keras reports the error
        with h5py.File(path) as file:
            writer, config = (file.attrs.get(name, "") for name in ("keras_version", "model_config"))
        writer = writer.decode() if isinstance(writer, bytes) else str(writer)
        configs.append(json.loads(config or "{}"))
    with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        configs.append(json.loads(archive.read("config.json")))
    return writer, any(map(_contains_code, configs))


def _contains_code(config: Any) -> bool:
    if isinstance(config, dict):
        module = config.get("module") if "class_name" in config else None
        if config.get("class_name") in _CODE_LAYERS or (module and not _CODE_MODULES.match(str(module))):
            return True
        return any(map(_contains_code, config.values()))
    return isinstance(config, list) and any(map(_contains_code, config))


def load(
    model_dir: Path, decision: Decision, cores: int, shape: Sequence[int], dtype: str
) -> TensorFlowEngine:
    """Load model.h5 for rows of `shape` and `dtype` on the device decided on, and warm it up."""
    start(decision, cores)
    engine = TensorFlowEngine(read_model(model_dir / MODEL), shape, dtype)
    engine.warm_up()
    return engine


def save(model: Any, path: Path) -> None:
    """Write a Keras model as .h5 without its optimizer, which serving does not need."""
    with _without_legacy_warning():
        model.save(path, include_optimizer=False)


@contextmanager
def _without_legacy_warning() -> Iterator[None]:
    """Drop Keras's advice to use its own format: the artifact must be called model.h5."""

    def is_other(record: logging.LogRecord) -> bool:
        return "considered legacy" not in record.getMessage()

    log = logging.getLogger("absl")
    log.addFilter(is_other)
    try:
        yield
    finally:
        log.removeFilter(is_other)
