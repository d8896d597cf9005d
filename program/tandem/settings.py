"""The environment, read once, in this one place, into a frozen dataclass."""

from __future__ import annotations

import dataclasses
import logging
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.errors import UserError


def _whole(minimum: int, maximum: int) -> Callable[[str], int]:
    def cast(text: str) -> int:
        number = int(text)
        if not minimum <= number <= maximum:
            raise ValueError
        return number

    cast.__doc__ = f"a whole number from {minimum} to {maximum}"
    return cast


def _number(minimum: float, maximum: float) -> Callable[[str], float]:
    def cast(text: str) -> float:
        number = float(text)
        if not minimum <= number <= maximum:
            raise ValueError
        return number

    cast.__doc__ = f"a number from {minimum:g} to {maximum:g}"
    return cast


def _one_of(*words: str) -> Callable[[str], str]:
    def cast(text: str) -> str:
        word = text.strip().lower()
        if word not in words:
            raise ValueError
        return word

    cast.__doc__ = " or ".join(words)
    return cast


def _flag(text: str) -> bool:
    """true or false"""  # noqa: D400, D403, D415
    return {"true": True, "1": True, "false": False, "0": False}[text.strip().lower()]


def _entry_point(text: str) -> str:
    """a module and a function in it, such as my_package.training:main"""  # noqa: D400, D403, D415
    module, colon, function = text.strip().partition(":")
    if not colon or not all(name.isidentifier() for name in [*module.split("."), function]):
        raise ValueError
    return text.strip()


def _log_level(text: str) -> int:
    """a Python logging level, as a number (10 debug, 20 info, 30 warning) or a name"""  # noqa: D400, D403, D415
    word = text.strip().upper()
    return int(logging.getLevelName(word) if word.isalpha() else word)


def _setting(
    variables: str, default: Any, cast: Callable[[str], Any], help_text: str, shown: str | None = None
) -> Any:
    """Declare a setting: its variables (first one set wins), its default as a value, and its help."""
    metadata = {"variables": variables.split(), "cast": cast, "help": help_text, "shown": shown}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """What the environment says; every field works without being set."""

    base_dir: Path = _setting(
        "SAGEMAKER_BASE_DIR",
        Path("/opt/ml"),
        Path,
        "Root of the platform's tree; another one for local runs.",
    )
    algorithm: str = _setting(
        "ALGORITHM",
        "",
        str,
        "The algorithm, a Python module of `program/`.",
        shown="algorithms.image_classifier",
    )
    job_name: str = _setting(
        "TRAINING_JOB_NAME", "", str, "Set by the platform: a job with a name shows no progress bar."
    )
    program: str = _setting(
        "SAGEMAKER_PROGRAM",
        "",
        str,
        "A Python file of yours that takes the algorithm's place, in `SAGEMAKER_SUBMIT_DIRECTORY`, "
        "the `code` channel, `code/` beside the model, or `/opt/ml/code`.",
    )
    submit_directory: str = _setting(
        "SAGEMAKER_SUBMIT_DIRECTORY", "", str, "The folder that holds `SAGEMAKER_PROGRAM`."
    )
    training_module: str = _setting(
        "SAGEMAKER_TRAINING_MODULE",
        "",
        _entry_point,
        "A function that trains instead, `module:function`, as AWS's training toolkit calls it.",
    )
    device: str = _setting(
        "TANDEM_DEVICE",
        "auto",
        _one_of("auto", "gpu", "cpu"),
        "`auto`: a GPU where one is usable; `gpu`: an unusable GPU is an error; `cpu`: never a GPU.",
    )
    visible_devices: str | None = _setting(
        "CUDA_VISIBLE_DEVICES", None, str, "CUDA's own variable: GPUs outside it are left alone.", shown="all"
    )
    backend: str = _setting(
        "BACKEND",
        "auto",
        _one_of("auto", "tensorflow", "openvino"),
        "Which engine computes when serving; `auto`: the GPU's TensorFlow, else OpenVINO, else TensorFlow.",
    )
    precision: str = _setting(
        "PRECISION",
        "float32",
        _one_of("auto", "float32", "bfloat16", "int8"),
        "What OpenVINO computes with: `bfloat16` where the processor has it, `int8` where training made that "
        "form, `auto` the faster of both; only if the golden answers stay within tolerance, else `float32`.",
    )
    port: int = _setting(
        "SAGEMAKER_BIND_TO_PORT",
        8080,
        _whole(1, 65535),
        "The port that `serve` listens on, on all interfaces.",
    )
    workers: int | None = _setting(
        "SAGEMAKER_MODEL_SERVER_WORKERS MODEL_SERVER_WORKERS",
        None,
        _whole(1, 256),
        "Serving processes, each with its own copy of the model.",
        shown="planned from cores, GPUs, memory and the model's size",
    )
    threads: int = _setting(
        "SERVER_THREADS",
        128,
        _whole(2, 1024),
        "Requests in progress at once in a serving process; past them, 503 at once.",
    )
    timeout: float = _setting(
        "SAGEMAKER_MODEL_SERVER_TIMEOUT MODEL_SERVER_TIMEOUT",
        60,
        _number(1, 3600),
        "Seconds after which a request that still waits is answered with 503 and not computed.",
    )
    max_batch_rows: int | None = _setting(
        "MAX_BATCH_ROWS",
        None,
        _whole(1, 65536),
        "Rows the model computes at once, at most.",
        shown="the algorithm's own",
    )
    batch_wait_ms: float = _setting(
        "BATCH_WAIT_MS",
        5,
        _number(0, 1000),
        "Milliseconds a batch waits for requests that are still being decoded; a lone request never waits.",
    )
    queue_rows: int = _setting(
        "QUEUE_ROWS", 1024, _whole(1, 1_000_000), "Rows that may wait for the model; past it, 503 at once."
    )
    batch: bool = _setting(
        "SAGEMAKER_BATCH",
        False,  # noqa: FBT003
        _flag,
        "Set by the platform in batch transform.",
        shown="false",
    )
    payload_mb: int | None = _setting(
        "SAGEMAKER_MAX_PAYLOAD_IN_MB",
        None,
        _whole(0, 1024),
        "Largest request body in MB, up to 1024 for asynchronous inference; 0: no limit.",
        shown="25, or 100 in batch transform",
    )
    default_accept: str = _setting(
        "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT",
        "application/json",
        str,
        "The answer's media type where the caller names none.",
    )
    nginx: bool = _setting(
        "NGINX",
        False,  # noqa: FBT003
        _flag,
        "`true`: nginx in front, where it is installed; it costs more than it gives (docs/performance.md).",
        shown="false",
    )
    emf_seconds: float = _setting(
        "EMF_SECONDS",
        0,
        _number(0, 3600),
        "Seconds between lines in CloudWatch's embedded metric format on standard output; 0: none.",
    )
    log_level: int = _setting(
        "SAGEMAKER_CONTAINER_LOG_LEVEL",
        logging.INFO,
        _log_level,
        "Python's logging level: 10 debug, 20 info, 30 warning.",
    )

    @property
    def max_payload_mb(self) -> int:
        """Largest request body in MB, by the mode that the container serves in; 0: no limit."""
        if self.payload_mb is not None:
            return self.payload_mb
        return 100 if self.batch else 25

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> Settings:
        """Read the settings from `environ`; raise `UserError` naming every variable that is off."""
        values: dict[str, Any] = {}
        faults = []
        for field in dataclasses.fields(cls):
            for variable in field.metadata["variables"]:
                text = environ.get(variable)
                # An empty variable is one not set; only CUDA's own means something by it, to hide every GPU.
                if text is None or (text == "" and field.name != "visible_devices"):
                    continue
                try:
                    values[field.name] = field.metadata["cast"](text)
                except (ValueError, KeyError):
                    expected = field.metadata["cast"].__doc__
                    faults.append(f"the environment variable {variable} is {text!r}; expected {expected}")
                break
        if faults:
            raise UserError("; ".join(faults) + ".")
        return cls(**values)


def find_base_dir(environ: Mapping[str, str]) -> Path:
    """Give the root of the platform's tree even where other settings are off: failures are written there."""
    return Path(environ.get("SAGEMAKER_BASE_DIR") or Settings.base_dir)


def describe() -> list[tuple[str, str, str]]:
    """Give (variable, default, meaning) for each setting, for the README and `--help`."""
    rows = []
    for field in dataclasses.fields(Settings):
        shown = field.metadata["shown"]
        default = shown if shown is not None else str(field.default)
        rows.append((" or ".join(field.metadata["variables"]), default, field.metadata["help"]))
    return rows


def render_settings() -> str:
    """Give the settings as text for `--help`: a variable with its default, then its meaning."""
    lines = []
    for variables, default, meaning in describe():
        lines.append(f"  {variables} (default: {default or 'none'})")
        lines.append(textwrap.fill(meaning, 100, initial_indent="      ", subsequent_indent="      "))
    return "\n".join(lines)
