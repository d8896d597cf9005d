"""The seam: an algorithm is a module with SageMaker's functions, reached by name."""

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

#: Rows that the model computes at once where an algorithm does not say.
DEFAULT_BATCH_ROWS = 64


@dataclass
class Caller:
    """What a request says beside its body.

    `custom_attributes` is SageMaker's header of that name, up to 1024 characters; it goes back to the
    caller as `input_fn` or `output_fn` leave it.
    """

    custom_attributes: str = ""
    inference_id: str = ""


@dataclass(frozen=True)
class Context:
    """What a function of the seam may ask for as its last argument, `context`."""

    model_dir: Path
    decision: Decision
    backend: str
    cores: int
    #: what `model_fn` returned; None inside `model_fn`
    model: Any = None
    #: who asks, in `input_fn` and `output_fn`; `predict_fn` computes for several callers at once
    caller: Caller = field(default_factory=Caller)
    #: what the setting PRECISION asks for; an engine that has no choice may leave it alone
    precision: str = "float32"


@dataclass(frozen=True)
class Algorithm:
    """An algorithm's functions, each callable with its full list of arguments, and its declarations."""

    name: str
    train: Callable[[Any], None] | None
    model_fn: Callable[[Path, Context], Any] | None
    input_fn: Callable[[bytes, str, Context], Any]
    predict_fn: Callable[[Any, Any, Context], Any] | None
    output_fn: Callable[[Any, str, Context], Any]
    hyperparameters: type | None
    channels: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, str]
    #: what a tuning job goes by: "Maximize" or "Minimize", and one of the metrics
    objective: tuple[str, str] | None
    content_types: tuple[str, ...]
    accepts: tuple[str, ...]
    max_batch_rows: int

    def require(self, *functions: str) -> Algorithm:
        """Give the algorithm back if it has `functions`; else raise `UserError` naming what is missing."""
        missing = [name for name in functions if getattr(self, name) is None]
        if missing:
            names = " and ".join(f"{name}()" for name in missing)
            raise UserError(f"the algorithm {self.name} has no {names}; define it at the top of the module.")
        return self


def load_algorithm(name: str, program: Path | None = None) -> Algorithm:
    """Import the algorithm: the file `program` if given, else the module `name`.

    Raises `UserError` where the module is not there, and `TandemError` where its own import fails.
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
    """Find the user's own file `name` in the first of `folders` that has it; None for an empty name.

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
    """Give the module's function `name`, made to take a context even where it does not ask for one."""
    function = getattr(module, name, None)
    if function is None:
        return None
    parameters = inspect.signature(function).parameters.values()
    takes_more = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
    if takes_more or len(parameters) > arguments:
        return function  # type: ignore[no-any-return]  # a module's attribute has no type
    return lambda *given: function(*given[:arguments])


def _import_module(name: str) -> ModuleType:
    if not name:
        raise UserError("no algorithm is named; set ALGORITHM to a module such as algorithms.my_algorithm.")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # `error.name` tells "there is no such module" from "a module that it imports is missing".
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(f"there is no algorithm {name!r}: no module {error.name!r} was found.") from error
        raise TandemError(f"the algorithm {name} imports {error.name!r}, which is not installed.") from error


def _import_file(path: Path) -> ModuleType:
    """Import a file by its path, with its own folder first on `sys.path` so that it finds its neighbours."""
    name = f"program_{path.stem}"  # never a name that something else is imported by
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
