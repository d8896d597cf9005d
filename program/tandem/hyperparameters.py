"""Hyperparameters: declared as a dataclass, read from any form in which a job may send them."""

import ast
import difflib
import json
import textwrap
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal, TypeVar

from tandem import fields
from tandem.errors import UserError
from tandem.reserved import is_dropped

T = TypeVar("T")
Scale = Literal["Auto", "Linear", "Logarithmic", "ReverseLogarithmic"]

NOTHING = ("", "none", "null")


@dataclass(frozen=True)
class Hyperparameter(fields.Parameter):
    """One declared hyperparameter as plain data, for a help page, a table or a tuning range."""

    tunable: bool | tuple[float, float] = False
    scale: Scale = "Auto"

    @property
    def allowed(self) -> str:
        """What a value must be, in words, of a list each item: "a whole number, at least 1; or None"."""
        words = f"a list, each item {self.expected}" if self.many else self.expected
        return f"{words}; or None" if self.optional else words


def hyperparameter(
    default: Any,
    *,
    help: str,  # noqa: A002 - the usual name
    minimum: float | None = None,
    maximum: float | None = None,
    exclusive_minimum: float | None = None,
    exclusive_maximum: float | None = None,
    choices: Sequence[Any] = (),
    tunable: bool | tuple[float, float] = False,
    scale: Scale = "Auto",
) -> Any:
    """Return a dataclass field with this default and these limits; a list's limits are those of its items.

    A default of None means that the algorithm chooses. `tunable` may be a range to search, (lowest, highest),
    within the limits; `scale` is a tuning job's `ScalingType`.
    """
    return fields.declare(
        Hyperparameter(
            default=default,
            help=help,
            minimum=minimum,
            maximum=maximum,
            exclusive_minimum=exclusive_minimum,
            exclusive_maximum=exclusive_maximum,
            choices=tuple(choices),
            tunable=tunable,
            scale=scale,
        )
    )


def describe(declaration: type) -> list[Hyperparameter]:
    """Return the hyperparameters of a declaration in its order.

    Raises TypeError for a type that cannot be used or a missing default, ValueError for a wrong default.
    """
    return fields.describe(declaration, Hyperparameter)


def render_help(declaration: type, width: int = 100) -> str:
    """Return a table of the declaration's parameters, at most `width` characters wide."""
    rows = [("hyperparameter", "default", "allowed", "meaning")]
    rows += [(p.name, p.default_text, p.allowed, p.help) for p in describe(declaration)]
    widths = [min(width // 4, max(map(len, column))) for column in list(zip(*rows, strict=True))[:3]]
    widths.append(width - sum(widths) - 2 * len(widths))
    lines = [line for row in rows for line in zip_longest(*map(textwrap.wrap, row, widths), fillvalue="")]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def decode(text: Any) -> Any:
    """Return the value of a text: of JSON, of quoted JSON, of Python's `str()` of a value, else the text."""
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
    """Return an instance of the declaration; parameters that `raw` lacks have their defaults.

    Names may be written with hyphens. Raises one UserError that names every fault.
    """
    parameters = {parameter.name: parameter for parameter in describe(declaration)}
    values: dict[str, Any] = {}
    faults: list[str] = []
    unknown: list[str] = []
    for key, text in raw.items():
        name = key if key in parameters else key.replace("-", "_")
        if name not in parameters:
            if not is_dropped(key):
                unknown.append(key)
            continue
        if name in values:
            faults.append(f"hyperparameter '{name}' is given twice, also as '{key}'.")
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


def _value(raw: Any, parameter: Hyperparameter) -> Any:
    """Return the typed value; raise ValueError if it is not allowed."""
    text = _unquoted(raw)
    empty = text is None or (isinstance(text, str) and text.lower() in NOTHING)
    if parameter.optional and empty and text not in parameter.choices:
        return None
    if parameter.many:
        return [parameter.convert(_unquoted(item)) for item in _items(text)]
    return parameter.convert(text)


def _items(text: Any) -> list[Any]:
    """Return the items of a JSON list, a Python list or tuple, or a comma-separated text."""
    value = decode(text)
    if isinstance(value, list | tuple):
        return list(value)
    if not isinstance(text, str):
        return [value]
    if text.startswith(("[", "(")):
        raise ValueError("the list is not closed")
    return [item.strip() for item in text.split(",")] if text else []


def _unquoted(raw: Any) -> Any:
    """Return a text without its layers of JSON quotes; anything else unchanged."""
    if not isinstance(raw, str) or not raw.strip().startswith('"'):
        return raw
    with suppress(ValueError):
        return _unquoted(json.loads(raw))
    return raw
