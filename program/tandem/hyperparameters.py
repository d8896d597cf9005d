"""Hyperparameters: declared once as a dataclass, read from any dialect in which a job may send them."""

import ast
import difflib
import json
import math
import operator
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import Field, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from itertools import zip_longest
from typing import Any, Literal, TypeVar

from tandem.errors import UserError

T = TypeVar("T")
Scale = Literal["Auto", "Linear", "Logarithmic", "ReverseLogarithmic"]

# What the platform adds to a job's hyperparameters; dropped unless a declaration has it.
RESERVED = ("sagemaker_*", "_tuning_objective_metric", "default_user_module_name", "model_dir")
KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}
BOUNDS: tuple[tuple[str, str, Callable[[Any, Any], bool]], ...] = (
    ("minimum", "at least", operator.ge),
    ("exclusive_minimum", "above", operator.gt),
    ("maximum", "at most", operator.le),
    ("exclusive_maximum", "below", operator.lt),
)
BOOLEANS = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)
NOTHING = ("", "none", "null")


@dataclass(frozen=True)
class Parameter:
    """One declared hyperparameter, as plain data for a help page, a table or a tuning range."""

    name: str = ""
    type: str = "str"  # "bool", "int", "float" or "str": that of an item where there may be many
    default: Any = None
    help: str = ""
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: float | None = None
    exclusive_maximum: float | None = None
    choices: tuple[Any, ...] = ()
    tunable: bool | tuple[float, float] = False
    scale: Scale = "Auto"
    many: bool = False  # a list of them
    optional: bool = False  # None is allowed

    @property
    def allowed(self) -> str:
        """What a value must be, in words: "a whole number, at least 1"."""
        limits = [f"{word} {getattr(self, b)}" for b, word, _ in BOUNDS if getattr(self, b) is not None]
        words = ", ".join(filter(None, (KINDS[self.type], " and ".join(limits))))
        words = f"one of {', '.join(map(str, self.choices))}" if self.choices else words
        words = f"a list, each item {words}" if self.many else words
        return f"{words}; or None" if self.optional else words

    @property
    def default_text(self) -> str:
        """The default as a job would send it: `true`, `0.001`, `[64, 32]`, text bare, `None` for none."""
        bare = self.default is None or isinstance(self.default, str)
        return str(self.default) if bare else json.dumps(self.default)


def hyperparameter(
    default: Any,
    *,
    help: str,  # noqa: A002 - the word for it
    minimum: float | None = None,
    maximum: float | None = None,
    exclusive_minimum: float | None = None,
    exclusive_maximum: float | None = None,
    choices: Sequence[Any] = (),
    tunable: bool | tuple[float, float] = False,
    scale: Scale = "Auto",
) -> Any:
    """Return a dataclass field with this default and these limits; a list's limits are those of its items.

    A default of None means that the algorithm chooses. `tunable` may be the range that is worth searching,
    (lowest, highest), within the limits; `scale` is a tuning job's `ScalingType`.
    """
    bounds = (minimum, maximum, exclusive_minimum, exclusive_maximum)
    metadata = {"parameter": Parameter("", "str", None, help, *bounds, tuple(choices), tunable, scale)}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def describe(declaration: type) -> list[Parameter]:
    """Return the parameters of a declaration in its order.

    Raises TypeError for a type that cannot be used or a default that is missing, ValueError for a wrong one.
    """
    hints, defaults = typing.get_type_hints(declaration), declaration()
    return [_described(f, hints[f.name], getattr(defaults, f.name)) for f in fields(declaration)]


def render_help(declaration: type, width: int = 100) -> str:
    """Return a table of the declaration's parameters whose lines are at most `width` characters long."""
    rows = [("hyperparameter", "default", "allowed", "meaning")]
    rows += [(p.name, p.default_text, p.allowed, p.help) for p in describe(declaration)]
    widths = [min(width // 4, max(map(len, column))) for column in list(zip(*rows, strict=True))[:3]]
    widths.append(width - sum(widths) - 2 * len(widths))
    lines = [line for row in rows for line in zip_longest(*map(textwrap.wrap, row, widths), fillvalue="")]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def decode(text: Any) -> Any:
    """Return what a text stands for: JSON, JSON in quotes, Python's `str()` of a value, else the text."""
    text = _unquoted(text)
    if not isinstance(text, str):
        return text
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    if text in {"True", "False", "None"} or text.startswith(("[", "(", "{", "'")):
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return ast.literal_eval(text)
    return text


def convert(raw: Mapping[str, Any], declaration: type[T]) -> T:
    """Return an instance of the declaration; what `raw` leaves out has its default.

    A name may be written with hyphens. Raises one UserError that names everything wrong at once.
    """
    parameters = {parameter.name: parameter for parameter in describe(declaration)}
    values: dict[str, Any] = {}
    faults: list[str] = []
    unknown: list[str] = []
    for given, text in raw.items():
        name = given if given in parameters else given.replace("-", "_")
        if name not in parameters:
            if not any(fnmatchcase(given, pattern) for pattern in RESERVED):
                unknown.append(given)
            continue
        if name in values:
            faults.append(f"hyperparameter '{name}' is given twice, as '{given}' too.")
        try:
            values[name] = _value(text, parameters[name])
        except ValueError:
            values[name] = None
            faults.append(f"hyperparameter '{name}' is {text!r:.60}; it must be {parameters[name].allowed}.")
    if unknown:
        faults += [_unknown(name, parameters) for name in unknown]
        faults.append(f"Known are: {', '.join(sorted(parameters)) or 'none'}.")
    if faults:
        raise UserError(" ".join(faults))
    return declaration(**values)


def _unknown(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name.lower().replace("-", "_"), known, 1)
    meant = f"; did you mean '{close[0]}'?" if close else "."
    return f"hyperparameter {name!r:.60} is unknown{meant}"


def _described(declared: Field[Any], hint: Any, default: Any) -> Parameter:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds = [option for option in options if option is not type(None)]
    many = typing.get_origin(kinds[0]) is list
    kind = getattr(typing.get_args(kinds[0])[0] if many else kinds[0], "__name__", "")
    if len(kinds) != 1 or kind not in CONVERTERS:
        raise TypeError(
            f"hyperparameter '{declared.name}' is declared as {hint}; use {', '.join(CONVERTERS)}"
        )
    optional = len(kinds) < len(options) or default is None
    given: Parameter = declared.metadata.get("parameter", Parameter())
    parameter = replace(given, name=declared.name, type=kind, default=default, many=many, optional=optional)
    try:
        _value(default, parameter)
    except ValueError as error:
        raise ValueError(f"the default of '{declared.name}' is not {parameter.allowed}") from error
    return parameter


def _value(raw: Any, parameter: Parameter) -> Any:
    """Return the typed value, or raise ValueError for any that is not allowed."""
    text = _unquoted(raw)
    empty = text is None or (isinstance(text, str) and text.lower() in NOTHING)
    if parameter.optional and empty and text not in parameter.choices:
        return None
    return [_item(v, parameter) for v in _items(text)] if parameter.many else _item(text, parameter)


def _item(raw: Any, parameter: Parameter) -> Any:
    try:
        value = CONVERTERS[parameter.type](_unquoted(raw))
    except (TypeError, KeyError, OverflowError) as error:
        raise ValueError(str(error)) from error
    limits = [(getattr(parameter, name), allows) for name, _, allows in BOUNDS]
    inside = all(limit is None or allows(value, limit) for limit, allows in limits)
    if not inside or (parameter.choices and value not in parameter.choices):
        raise ValueError(f"{value} is not allowed")
    return value


def _items(text: Any) -> list[Any]:
    """Return the items of a JSON list, a Python list or tuple, or a text with commas."""
    value = decode(text)
    if isinstance(value, list | tuple):
        return list(value)
    if not isinstance(text, str):
        return [value]
    if text.startswith(("[", "(")):
        raise ValueError("a list that does not end")
    return [item.strip() for item in text.split(",")] if text else []


def _unquoted(raw: Any) -> Any:
    """Return a text without the layers of JSON quotes around it; anything else as it is."""
    if not isinstance(raw, str) or not raw.strip().startswith('"'):
        return raw
    with suppress(ValueError):
        return _unquoted(json.loads(raw))
    return raw


def _integer(value: Any) -> int:
    if isinstance(value, str):
        with suppress(ValueError):
            return int(value)
        value = float(value)  # "1e2", "3.0"
    if isinstance(value, bool) or int(value) != value:
        raise ValueError("not a whole number")
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError("not a number")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str | bool | int | float):
        raise TypeError("not a text")
    return value if isinstance(value, str) else json.dumps(value)


CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "bool": lambda value: BOOLEANS[str(value).strip().lower()],
    "int": _integer,
    "float": _float,
    "str": _text,
}
