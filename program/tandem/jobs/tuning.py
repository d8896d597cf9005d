"""The parts of a tuning job's request that an algorithm's declarations define, as in SageMaker's API."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tandem.algorithm import Algorithm
from tandem.errors import TandemError, UserError
from tandem.hyperparameters import Hyperparameter, convert, describe

#: SageMaker's limits.
MAX_RANGES, MAX_VALUES, MAX_METRICS = 30, 30, 40
MAX_NAME_LENGTH, MAX_VALUE_LENGTH, MAX_REGEX_LENGTH = 255, 256, 500
GOALS = ("Maximize", "Minimize")


def describe_tuning(algorithm: Algorithm) -> dict[str, Any]:
    """Return the objective, the parameter ranges and the metric definitions of a tuning job.

    Their keys are those of CreateHyperParameterTuningJob. Raises one `TandemError` that names every fault of
    the declarations.
    """
    parameters = describe(algorithm.hyperparameters) if algorithm.hyperparameters else []
    tunable = [parameter for parameter in parameters if parameter.tunable]
    faults = [fault for parameter in tunable for fault in _find_faults(parameter, algorithm.hyperparameters)]
    faults += [] if 0 < len(tunable) <= MAX_RANGES else [f"{len(tunable)} hyperparameters are tunable."]
    faults += [*_find_metric_faults(algorithm.metrics), *_find_objective_faults(algorithm)]
    if faults:
        raise TandemError(f"the algorithm {algorithm.name} cannot be tuned: {' '.join(faults)}")
    assert algorithm.objective is not None  # noqa: S101  # checked above
    goal, metric = algorithm.objective
    return {
        "HyperParameterTuningJobObjective": {"Type": goal, "MetricName": metric},
        "ParameterRanges": {
            kind: [make(parameter) for parameter in tunable if belongs(parameter)]
            for kind, belongs, make in KINDS
        },
        "MetricDefinitions": [{"Name": name, "Regex": regex} for name, regex in algorithm.metrics.items()],
    }


def _is_categorical(parameter: Hyperparameter) -> bool:
    return bool(parameter.choices) or parameter.type in {"bool", "str"}


def _make_categorical(parameter: Hyperparameter) -> dict[str, Any]:
    return {"Name": parameter.name, "Values": _values(parameter)}


def _make_range(parameter: Hyperparameter) -> dict[str, Any]:
    low, high = _bounds(parameter)
    return {
        "Name": parameter.name,
        "MinValue": json.dumps(low),
        "MaxValue": json.dumps(high),
        "ScalingType": parameter.scale,
    }


#: The kinds of ranges in the API: which parameters belong to them, and what makes one.
KINDS = (
    ("IntegerParameterRanges", lambda p: p.type == "int" and not _is_categorical(p), _make_range),
    ("ContinuousParameterRanges", lambda p: p.type == "float" and not _is_categorical(p), _make_range),
    ("CategoricalParameterRanges", _is_categorical, _make_categorical),
)


def _values(parameter: Hyperparameter) -> list[str]:
    choices = parameter.choices or ((True, False) if parameter.type == "bool" else ())
    return [choice if isinstance(choice, str) else json.dumps(choice) for choice in choices]


def _bounds(parameter: Hyperparameter) -> tuple[Any, Any]:
    """Return the inclusive ends of the range to search; None for an end that is not declared."""
    if isinstance(parameter.tunable, tuple):
        return parameter.tunable
    low, high = parameter.minimum, parameter.maximum
    if parameter.type == "int":  # the next whole number inside an exclusive bound
        above, below = parameter.exclusive_minimum, parameter.exclusive_maximum
        low = above + 1 if low is None and above is not None else low
        high = below - 1 if high is None and below is not None else high
    return low, high


def _find_faults(parameter: Hyperparameter, declaration: Any) -> Iterable[str]:
    name = f"hyperparameter '{parameter.name}' is tunable, but"
    if parameter.many:
        yield f"{name} it is a list, for which there is no range."
    elif _is_categorical(parameter):
        values = _values(parameter)
        if not 0 < len(values) <= MAX_VALUES or max(map(len, values)) > MAX_VALUE_LENGTH:
            yield f"{name} it has {len(values)} choices; declare 1 to {MAX_VALUES} of them."
    else:
        low, high = _bounds(parameter)
        if low is None or high is None:
            yield f"{name} one end of its range is open; declare tunable=(lowest, highest)."
        elif not low < high:
            yield f"{name} its range goes from {low} to {high}; declare tunable=(lowest, highest)."
        elif parameter.scale == "Logarithmic" and low <= 0:
            yield f"{name} a logarithmic scale starts above 0, not at {low}."
        elif parameter.scale == "ReverseLogarithmic" and not 0 <= low < high < 1:
            yield f"{name} a reverse logarithmic scale lies from 0 to below 1, not from {low} to {high}."
        else:
            yield from _find_forbidden_ends((low, high), parameter, declaration)


def _find_forbidden_ends(ends: tuple[Any, Any], parameter: Hyperparameter, declaration: Any) -> Iterable[str]:
    for end in ends:
        try:
            convert({parameter.name: json.dumps(end)}, declaration)  # as a tuning job sends it
        except UserError as error:
            yield f"The range to search has a value that is not allowed: {error}"


def _find_metric_faults(metrics: Mapping[str, str]) -> Iterable[str]:
    if not 0 < len(metrics) <= MAX_METRICS:
        yield f"METRICS has {len(metrics)} entries; declare 1 to {MAX_METRICS}."
    for name, regex in metrics.items():
        if not 0 < len(name) <= MAX_NAME_LENGTH or not 0 < len(regex) <= MAX_REGEX_LENGTH:
            yield (
                f"the metric {name!r:.40} has a name over {MAX_NAME_LENGTH} characters or a regex over "
                f"{MAX_REGEX_LENGTH}."
            )
        elif (groups := re.compile(regex).groups) != 1:
            yield f"the regex of the metric {name!r} has {groups} groups; one captures the number."


def _find_objective_faults(algorithm: Algorithm) -> Iterable[str]:
    known = ", ".join(algorithm.metrics) or "none"
    if algorithm.objective is None:
        yield f'it declares no OBJECTIVE; add OBJECTIVE = ("Maximize", NAME) with NAME one of: {known}.'
        return
    goal, metric = algorithm.objective
    if goal not in GOALS:
        yield f"OBJECTIVE begins with {goal!r}; expected {' or '.join(GOALS)}."
    if metric not in algorithm.metrics:
        yield f"OBJECTIVE names the metric {metric!r}; METRICS has: {known}."
