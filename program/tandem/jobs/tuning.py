"""What a tuning job must know of an algorithm, from its declarations, in the shapes of SageMaker's API."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tandem.algorithm import Algorithm
from tandem.errors import TandemError, UserError
from tandem.hyperparameters import Hyperparameter, convert, describe

#: SageMaker's limits.
MOST_RANGES, MOST_VALUES, MOST_METRICS = 30, 30, 40
LONGEST_NAME, LONGEST_VALUE, LONGEST_REGEX = 255, 256, 500
GOALS = ("Maximize", "Minimize")


def describe_tuning(algorithm: Algorithm) -> dict[str, Any]:
    """Give `HyperParameterTuningJobObjective` and `ParameterRanges` of CreateHyperParameterTuningJob, and the
    `MetricDefinitions` of its training jobs.

    Raises one `TandemError` that says everything the declarations lack.
    """  # noqa: D205  # three names of the API do not fit on a line
    parameters = describe(algorithm.hyperparameters) if algorithm.hyperparameters else []
    tunable = [parameter for parameter in parameters if parameter.tunable]
    faults = [fault for parameter in tunable for fault in _find_faults(parameter, algorithm.hyperparameters)]
    faults += [] if 0 < len(tunable) <= MOST_RANGES else [f"{len(tunable)} hyperparameters are tunable."]
    faults += [*_find_metric_faults(algorithm.metrics), *_find_objective_faults(algorithm)]
    if faults:
        raise TandemError(f"the algorithm {algorithm.name} cannot be tuned: {' '.join(faults)}")
    assert algorithm.objective is not None  # noqa: S101  # found above
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


#: A kind of range in the API, which parameters are of it, and what makes it.
KINDS = (
    ("IntegerParameterRanges", lambda p: p.type == "int" and not _is_categorical(p), _make_range),
    ("ContinuousParameterRanges", lambda p: p.type == "float" and not _is_categorical(p), _make_range),
    ("CategoricalParameterRanges", _is_categorical, _make_categorical),
)


def _values(parameter: Hyperparameter) -> list[str]:
    choices = parameter.choices or ((True, False) if parameter.type == "bool" else ())
    return [choice if isinstance(choice, str) else json.dumps(choice) for choice in choices]


def _bounds(parameter: Hyperparameter) -> tuple[Any, Any]:
    """Give the ends of the range to search, both in it; None for one that is not declared."""
    if isinstance(parameter.tunable, tuple):
        return parameter.tunable
    low, high = parameter.minimum, parameter.maximum
    if parameter.type == "int":  # the whole number beside an end that is not allowed
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
        if not 0 < len(values) <= MOST_VALUES or max(map(len, values)) > LONGEST_VALUE:
            yield f"{name} it has {len(values)} choices; declare 1 to {MOST_VALUES} of them."
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
            convert({parameter.name: json.dumps(end)}, declaration)  # as the tuning job would send it
        except UserError as error:
            yield f"The range to search holds what is not allowed: {error}"


def _find_metric_faults(metrics: Mapping[str, str]) -> Iterable[str]:
    if not 0 < len(metrics) <= MOST_METRICS:
        yield f"METRICS has {len(metrics)} entries; declare 1 to {MOST_METRICS}."
    for name, regex in metrics.items():
        if not 0 < len(name) <= LONGEST_NAME or not 0 < len(regex) <= LONGEST_REGEX:
            yield f"the metric {name!r:.40} has a name over {LONGEST_NAME} or a regex over {LONGEST_REGEX}."
        elif (groups := re.compile(regex).groups) != 1:
            yield f"the regex of the metric {name!r} has {groups} groups; one captures the number."


def _find_objective_faults(algorithm: Algorithm) -> Iterable[str]:
    known = ", ".join(algorithm.metrics) or "none"
    if algorithm.objective is None:
        yield f'it declares no OBJECTIVE; add such as OBJECTIVE = ("Maximize", NAME), NAME one of: {known}.'
        return
    goal, metric = algorithm.objective
    if goal not in GOALS:
        yield f"OBJECTIVE begins with {goal!r}; expected {' or '.join(GOALS)}."
    if metric not in algorithm.metrics:
        yield f"OBJECTIVE names the metric {metric!r}; METRICS has: {known}."
