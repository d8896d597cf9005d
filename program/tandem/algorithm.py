"""The interface to algorithms: modules with SageMaker's functions, loaded by name."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from tandem import formats
from tandem.errors import TandemError, UserError
from tandem.runtime.devices import Decision

#: Rows that the model computes at once unless the algorithm declares another number.
DEFAULT_BATCH_ROWS = 64


@dataclass
class Caller:
    """What a request carries besides its body.

    `custom_attributes` is SageMaker's header of that name, up to 1024 characters. The answer returns it, as
    `input_fn` or `output_fn` may have changed it.
    """

    custom_attributes: str = ""
    inference_id: str = ""


@dataclass(frozen=True)
class Context:
    """The optional last argument, `context`, of an algorithm's serving functions."""

    model_dir: Path
    decision: Decision
    backend: str
    cores: int
    #: what `model_fn` returned; None inside `model_fn`
    model: Any = None
    #: the caller, in `input_fn` and `output_fn`; `predict_fn` computes for several callers at once
    caller: Caller = field(default_factory=Caller)
    #: the setting PRECISION; an engine without a choice may ignore it
    precision: str = "float32"


@dataclass(frozen=True)
class Algorithm:
    """An algorithm's functions, each callable with all its arguments, and its declarations."""

    name: str
    train: Callable[[Any], None] | None
    model_fn: Callable[[Path, Context], Any] | None
    input_fn: Callable[[bytes, str, Context], Any]
    predict_fn: Callable[[Any, Any, Context], Any] | None
    output_fn: Callable[[Any, str, Context], Any]
    hyperparameters: type | None
    channels: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, str]
    #: a tuning job's objective: "Maximize" or "Minimize", and one of the metrics
    objective: tuple[str, str] | None
    content_types: tuple[str, ...]
    accepts: tuple[str, ...]
    max_batch_rows: int

    def require(self, *functions: str) -> Algorithm:
        """Return the algorithm; raise `UserError` if one of `functions` is missing."""
        missing = [name for name in functions if getattr(self, name) is None]
        if missing:
            names = " and ".join(f"{name}()" for name in missing)
            raise UserError(f"the algorithm {self.name} has no {names}; define it at the top of the module.")
        return self


def load_algorithm(name: str, program: Path | None = None) -> Algorithm:
    """Import the algorithm: the file `program` if given, else the module `name`.

    Raises `UserError` if the module does not exist, `TandemError` if one of its own imports fails.
    """
    module = _import_file(program) if program else _import_module(name)
    return Algorithm(
        name=str(program or name),
        train=getattr(module, "train", None),
        model_fn=_with_context(module, "model_fn", 1),
        input_fn=_with_context(module, "input_fn", 2) or _default_input_fn,
        predict_fn=_with_context(module, "predict_fn", 2),
        output_fn=_with_context(module, "output_fn", 2) or _default_output_fn,
        hyperparameters=getattr(module, "Hyperparameters", None),
        channels=getattr(module, "CHANNELS", {}),
        metrics=getattr(module, "METRICS", {}),
        objective=getattr(module, "OBJECTIVE", None),
        content_types=tuple(getattr(module, "CONTENT_TYPES", formats.DECODERS)),
        accepts=tuple(getattr(module, "ACCEPTS", formats.ENCODERS)),
        max_batch_rows=int(getattr(module, "MAX_BATCH_ROWS", DEFAULT_BATCH_ROWS)),
    )


def find_program(name: str, folders: Iterable[Path]) -> Path | None:
    """Return the path of the user's file `name` in the first folder that has it; None for an empty name.

    Raises `UserError` naming the folders that were searched.
    """
    if not name:
        return None
    searched = []
    for folder in folders:
        candidate = folder / name
        if candidate.is_file():
            return candidate
        searched.append(str(folder))
    raise UserError(
        f"the program {name!r} was not found in {', '.join(searched)}; put it there or correct its name."
    )


def _default_input_fn(body: bytes, content_type: str, _context: Context) -> Any:
    return formats.decode_rows(body, content_type)


def _default_output_fn(prediction: Any, accept: str, _context: Context) -> bytes:
    return formats.encode_rows(prediction, accept)


def _with_context(module: ModuleType, name: str, arguments: int) -> Callable[..., Any] | None:
    """Return the module's function `name`, wrapped to ignore the context if it does not take one."""
    function = getattr(module, name, None)
    if function is None:
        return None
    parameters = inspect.signature(function).parameters.values()
    takes_more = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
    if takes_more or len(parameters) > arguments:
        return function  # type: ignore[no-any-return]  # a module's attribute has no type
    return lambda *values: function(*values[:arguments])


def _import_module(name: str) -> ModuleType:
    if not name:
        raise UserError("no algorithm is named; set ALGORITHM to a module such as algorithms.my_algorithm.")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # `error.name` distinguishes "no such module" from "a module that it imports is missing".
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(f"there is no algorithm {name!r}: no module {error.name!r} was found.") from error
        raise TandemError(f"the algorithm {name} imports {error.name!r}, which is not installed.") from error


def _import_file(path: Path) -> ModuleType:
    """Import a file by its path, with its folder first on `sys.path` for its own imports."""
    name = f"program_{path.stem}"  # a name that no other module has
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file; expected a name that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise TandemError(f"{path} imports {error.name!r}, which is not installed.") from error
    return module
