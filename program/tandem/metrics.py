"""Numbers a job reports, as log lines that SageMaker's metric definitions can read back."""

import re
from collections.abc import Mapping
from numbers import Integral

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]*")
NUMBER = r"([-+]?(?:[0-9]+\.?[0-9]*(?:e[-+]?[0-9]+)?|nan|inf))"
LONGEST_REGEX = 500  # SageMaker's limit


def format_metrics(values: Mapping[str, float]) -> str:
    """Return one plain line, `epoch=3 loss=0.123457`: whole numbers in full, others to six digits.

    Raises ValueError for a name that could not be told apart in such a line (spaces, `=`).
    """
    return " ".join(f"{_checked(name)}={_text(value)}" for name, value in values.items())


def regex(name: str) -> str:
    """Return the `Regex` of a metric definition that captures this name's number and no other's.

    It keeps to what every regular expression engine knows: no look-around, one group.
    Raises ValueError for a name that does not fit into SageMaker's 500 characters.
    """
    pattern = rf"(?:^|\s){re.escape(_checked(name))}={NUMBER}"
    if len(pattern) > LONGEST_REGEX:
        message = f"the metric name of {len(name)} characters makes a regex over {LONGEST_REGEX}; shorten it"
        raise ValueError(message)
    return pattern


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot name a metric; use letters, digits and _ . : / - (such as 'val_loss')"
        )
    return name


def _text(value: float) -> str:
    return str(int(value)) if isinstance(value, Integral) else f"{float(value):.6g}"
