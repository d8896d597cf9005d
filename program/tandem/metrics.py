"""Metrics as log lines, and the regexes with which SageMaker reads them."""

import re
from collections.abc import Mapping
from numbers import Integral

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]*")
NUMBER = r"([-+]?(?:[0-9]+\.?[0-9]*(?:e[-+]?[0-9]+)?|nan|inf))"
MAX_REGEX_LENGTH = 500  # SageMaker's limit


def format_metrics(values: Mapping[str, float]) -> str:
    """Return one line, `epoch=3 loss=0.123457`: whole numbers in full, others with six digits.

    Raises ValueError for a name that such a line cannot contain (spaces, `=`).
    """
    return " ".join(f"{_checked(name)}={_text(value)}" for name, value in values.items())


def regex(name: str) -> str:
    """Return the `Regex` of a metric definition that captures the number of exactly this name.

    Every regular expression engine knows its syntax: no look-around, one group.
    Raises ValueError if it exceeds SageMaker's 500 characters.
    """
    pattern = rf"(?:^|\s){re.escape(_checked(name))}={NUMBER}"
    if len(pattern) > MAX_REGEX_LENGTH:
        raise ValueError(
            f"the metric name of {len(name)} characters makes a regex over {MAX_REGEX_LENGTH}; shorten it"
        )
    return pattern


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot name a metric; use letters, digits and _ . : / - (such as 'val_loss')"
        )
    return name


def _text(value: float) -> str:
    return str(int(value)) if isinstance(value, Integral) else f"{float(value):.6g}"
