"""Typed dataclass fields that are read from text; settings and hyperparameters are declared with them."""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import types
import typing
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

BOUNDS: tuple[tuple[str, str, Callable[[Any, Any], bool]], ...] = (
    ("minimum", "at least", operator.ge),
    ("exclusive_minimum", "above", operator.gt),
    ("maximum", "at most", operator.le),
    ("exclusive_maximum", "below", operator.lt),
)
BOOLEANS = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)


@dataclass(frozen=True)
class Parameter:
    """One declared field as plain data, for conversion, a help page or a table."""

    name: str = ""
    type: str = "str"  # "bool", "int", "float" or "str"; for a list, the type of its items
    default: Any = None
    help: str = ""
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: float | None = None
    exclusive_maximum: float | None = None
    choices: tuple[Any, ...] = ()
    many: bool = False  # a list
    optional: bool = False  # None is allowed
    #: Converts a text instead of the type's own converter; raises ValueError.
    parse: Callable[[str], Any] | None = None
    #: What `parse` accepts, in words.
    parsed: str = ""

    @property
    def expected(self) -> str:
        """What a value must be, in words: "a whole number, at least 1"."""
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        limits = [f"{word} {getattr(self, b)}" for b, word, _ in BOUNDS if getattr(self, b) is not None]
        return ", ".join(filter(None, (self.parsed or TYPES[self.type][0], " and ".join(limits))))

    @property
    def default_text(self) -> str:
        """The default as text: `true`, `0.001`, `[64, 32]`, strings unquoted, `None` if there is none."""
        is_json = isinstance(self.default, bool | int | float | list)
        return json.dumps(self.default) if is_json else str(self.default)

    def convert(self, value: Any) -> Any:
        """Convert one value (one item, for a list); raise ValueError unless it is within the limits."""
        try:
            converted = (self.parse or TYPES[self.type][1])(value)
        except (TypeError, KeyError, OverflowError) as error:
            raise ValueError(str(error)) from error
        limits = [(getattr(self, name), allows) for name, _, allows in BOUNDS]
        inside = all(limit is None or allows(converted, limit) for limit, allows in limits)
        if not inside or (self.choices and converted not in self.choices):
            raise ValueError(f"{converted} is not allowed")
        return converted


P = TypeVar("P", bound=Parameter)


def declare(parameter: Parameter) -> Any:
    """Return the dataclass field that a parameter describes."""
    metadata = {"parameter": parameter}
    if isinstance(parameter.default, list):
        return dataclasses.field(default_factory=parameter.default.copy, metadata=metadata)
    return dataclasses.field(default=parameter.default, metadata=metadata)


def describe(declaration: type, kind: type[P]) -> list[P]:
    """Return the parameters of a dataclass in its order; a field declared without one gets a bare `kind`.

    Raises TypeError for a type that cannot be read or a missing default, ValueError for a wrong default.
    """
    hints, defaults = typing.get_type_hints(declaration), declaration()
    return [
        _describe(field.metadata.get("parameter", kind()), field.name, hints[field.name], defaults)
        for field in dataclasses.fields(declaration)
    ]


def _describe(declared: P, name: str, hint: Any, defaults: Any) -> P:
    default = getattr(defaults, name)
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds = [option for option in options if option is not type(None)]
    many = typing.get_origin(kinds[0]) is list
    kind = getattr(typing.get_args(kinds[0])[0] if many else kinds[0], "__name__", "")
    if len(kinds) != 1 or (kind not in TYPES and declared.parse is None):
        raise TypeError(f"the field '{name}' is declared as {hint}; use one of {', '.join(TYPES)}")
    optional = len(kinds) < len(options) or default is None
    parameter = replace(declared, name=name, type=kind, default=default, many=many, optional=optional)
    if default is None or parameter.parse:
        return parameter
    try:
        for item in default if many and isinstance(default, list | tuple) else [default]:
            parameter.convert(item)
    except ValueError as error:
        raise ValueError(f"the default of '{name}' is not {parameter.expected}") from error
    return parameter


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


#: The types a field may have: what a value must be, in words, and its converter.
TYPES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "bool": ("true or false", lambda value: BOOLEANS[str(value).strip().lower()]),
    "int": ("a whole number", _integer),
    "float": ("a number", _float),
    "str": ("text", _text),
}
