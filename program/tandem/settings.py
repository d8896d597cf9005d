"""The environment's settings, read once into a frozen dataclass."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem import fields
from tandem.errors import UserError


@dataclass(frozen=True)
class Setting(fields.Parameter):
    """One setting as plain data, for the README and `--help`."""

    #: The environment variables that set it; the first one that is set wins.
    variables: tuple[str, ...] = ()
    #: The default in words, where its value is not telling.
    shown: str = ""

    @property
    def default_text(self) -> str:
        """The default as text."""
        return self.shown or super().default_text


def _word(text: str) -> str:
    return text.strip().lower()


def _entry_point(text: str) -> str:
    module, colon, function = text.strip().partition(":")
    if not colon or not all(name.isidentifier() for name in [*module.split("."), function]):
        raise ValueError("not module:function")
    return text.strip()


def _log_level(text: str) -> int:
    word = text.strip().upper()
    return int(logging.getLevelName(word) if word.isalpha() else word)


def _setting(variables: str, default: Any, help_text: str, **options: Any) -> Any:
    """Declare a setting: its variables, its default, its help, `between=(minimum, maximum)`, and options.

    The options are fields of `Setting`. Choices may be written in any case.
    """
    minimum, maximum = options.pop("between", (None, None))
    options |= {"parse": _word} if "choices" in options else {}
    names = tuple(variables.split())
    return fields.declare(
        Setting(default=default, help=help_text, variables=names, minimum=minimum, maximum=maximum, **options)
    )


@dataclass(frozen=True)
class Settings:
    """The settings. Every one of them has a default."""

    base_dir: Path = _setting(
        "SAGEMAKER_BASE_DIR",
        Path("/opt/ml"),
        "Root of the platform's tree; another one for local runs.",
        parse=Path,
    )
    algorithm: str = _setting(
        "ALGORITHM",
        "",
        "The algorithm, a Python module of `program/`.",
        shown="algorithms.image_classifier",
    )
    job_name: str = _setting(
        "TRAINING_JOB_NAME", "", "Set by the platform: a job with a name shows no progress bar."
    )
    program: str = _setting(
        "SAGEMAKER_PROGRAM",
        "",
        "A Python file of yours that takes the algorithm's place, in `SAGEMAKER_SUBMIT_DIRECTORY`, "
        "the `code` channel, `code/` beside the model, or `/opt/ml/code`.",
    )
    submit_directory: str = _setting(
        "SAGEMAKER_SUBMIT_DIRECTORY", "", "The folder that holds `SAGEMAKER_PROGRAM`."
    )
    training_module: str = _setting(
        "SAGEMAKER_TRAINING_MODULE",
        "",
        "A function that trains instead, `module:function`, as AWS's training toolkit calls it.",
        parse=_entry_point,
        parsed="a module and a function in it, such as my_package.training:main",
    )
    device: str = _setting(
        "TANDEM_DEVICE",
        "auto",
        "`auto`: a GPU where one is usable; `gpu`: an unusable GPU is an error; `cpu`: never a GPU.",
        choices=("auto", "gpu", "cpu"),
    )
    visible_devices: str | None = _setting(
        "CUDA_VISIBLE_DEVICES", None, "CUDA's own variable: GPUs outside it are left alone.", shown="all"
    )
    backend: str = _setting(
        "BACKEND",
        "auto",
        "Which engine computes when serving; `auto`: the GPU's TensorFlow, else OpenVINO, else TensorFlow.",
        choices=("auto", "tensorflow", "openvino"),
    )
    precision: str = _setting(
        "PRECISION",
        "float32",
        "What OpenVINO computes with: `bfloat16` where the processor has it, `int8` where training made that "
        "form, `auto` the faster of both; only if the reference answers stay within tolerance, else "
        "`float32`.",
        choices=("auto", "float32", "bfloat16", "int8"),
    )
    port: int = _setting(
        "SAGEMAKER_BIND_TO_PORT",
        8080,
        "The port that `serve` listens on, on all interfaces.",
        between=(1, 65535),
    )
    workers: int | None = _setting(
        "SAGEMAKER_MODEL_SERVER_WORKERS MODEL_SERVER_WORKERS",
        None,
        "Serving processes, each with its own copy of the model.",
        between=(1, 256),
        shown="planned from cores, GPUs, memory and the model's size",
    )
    threads: int = _setting(
        "SERVER_THREADS",
        128,
        "Requests in progress at once in a serving process; past them, 503 at once.",
        between=(2, 1024),
    )
    timeout: float = _setting(
        "SAGEMAKER_MODEL_SERVER_TIMEOUT MODEL_SERVER_TIMEOUT",
        60,
        "Seconds after which a request that still waits is answered with 503 and not computed.",
        between=(1, 3600),
    )
    max_batch_rows: int | None = _setting(
        "MAX_BATCH_ROWS",
        None,
        "Rows the model computes at once, at most.",
        between=(1, 65536),
        shown="the algorithm's own",
    )
    batch_wait_ms: float = _setting(
        "BATCH_WAIT_MS",
        5,
        "Milliseconds a batch waits for requests that are still being decoded; a lone request never waits.",
        between=(0, 1000),
    )
    queue_rows: int = _setting(
        "QUEUE_ROWS",
        1024,
        "Rows that may wait for the model; past it, 503 at once.",
        between=(1, 1_000_000),
    )
    batch: bool = _setting(
        "SAGEMAKER_BATCH", default=False, help_text="Set by the platform in batch transform."
    )
    payload_mb: int | None = _setting(
        "SAGEMAKER_MAX_PAYLOAD_IN_MB",
        None,
        "Largest request body in MB, up to 1024 for asynchronous inference; 0: no limit.",
        between=(0, 1024),
        shown="25, or 100 in batch transform",
    )
    default_accept: str = _setting(
        "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT",
        "application/json",
        "The answer's media type where the caller names none.",
    )
    nginx: bool = _setting(
        "NGINX",
        default=False,
        help_text="`true`: nginx in front of the server, if it is installed (docs/nginx.md).",
    )
    emf_seconds: float = _setting(
        "EMF_SECONDS",
        0,
        "Seconds between lines in CloudWatch's embedded metric format on standard output; 0: none.",
        between=(0, 3600),
    )
    log_level: int = _setting(
        "SAGEMAKER_CONTAINER_LOG_LEVEL",
        logging.INFO,
        "Python's logging level: 10 debug, 20 info, 30 warning.",
        parse=_log_level,
        parsed="a Python logging level, as a number (10 debug, 20 info, 30 warning) or a name",
    )

    @property
    def max_payload_mb(self) -> int:
        """Largest request body in MB, by the mode that the container serves in; 0: no limit."""
        if self.payload_mb is not None:
            return self.payload_mb
        return 100 if self.batch else 25

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> Settings:
        """Read the settings from `environ`; raise `UserError` naming every variable that is wrong."""
        values: dict[str, Any] = {}
        faults = []
        for setting in describe():
            for variable in setting.variables:
                text = environ.get(variable)
                # An empty variable counts as not set, except CUDA's own: there it hides every GPU.
                if text is None or (text == "" and setting.name != "visible_devices"):
                    continue
                try:
                    values[setting.name] = setting.convert(text)
                except ValueError:
                    faults.append(
                        f"the environment variable {variable} is {text!r}; expected {setting.expected}"
                    )
                break
        if faults:
            raise UserError("; ".join(faults) + ".")
        return cls(**values)


def find_base_dir(environ: Mapping[str, str]) -> Path:
    """Return the root of the platform's tree even if other settings are wrong: failures are written there."""
    return Path(environ.get("SAGEMAKER_BASE_DIR") or Settings.base_dir)


def describe() -> list[Setting]:
    """Return the settings in their order."""
    return fields.describe(Settings, Setting)


def render_settings() -> str:
    """Return the settings as text for `--help`: a variable with its default, then its meaning."""
    lines = []
    for setting in describe():
        lines.append(f"  {' or '.join(setting.variables)} (default: {setting.default_text or 'none'})")
        lines.append(textwrap.fill(setting.help, 100, initial_indent="      ", subsequent_indent="      "))
    return "\n".join(lines)
