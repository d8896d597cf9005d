"""Metric lines and the regexes that read them back."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.metrics import format_metrics, regex

NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,40}", fullmatch=True)
VALUES = st.floats(width=64) | st.integers() | st.floats(width=32).map(np.float32)


def captured(name: str, line: str) -> list[str]:
    return re.findall(regex(name), line)


def test_whole_numbers_stay_whole_and_others_get_six_digits():
    line = format_metrics({"epoch": 3, "steps": np.int64(1234567890), "loss": 0.12345678, "rate": 1e-5})
    assert line == "epoch=3 steps=1234567890 loss=0.123457 rate=1e-05"


def test_nan_and_infinity_are_written_as_text():
    assert format_metrics({"a": float("nan"), "b": float("-inf")}) == "a=nan b=-inf"


@pytest.mark.parametrize("text", ["1e-05", "-0.5", "nan", "inf", "-inf", "12", "0.25", "1.5e+20", "5."])
def test_the_regex_captures_the_whole_number(text):
    assert captured("loss", f"epoch=1 loss={text} accuracy=0.5\r") == [text]


@pytest.mark.parametrize(("name", "other"), [("loss", "val_loss"), ("loss", "loss_2"), ("a.c", "abc")])
def test_the_regex_does_not_match_a_similar_name(name, other):
    assert captured(name, format_metrics({other: 0.5})) == []


def test_the_regex_matches_behind_the_prefix_of_a_log_line():
    assert captured("loss", "2026-01-31 12:00:00 INFO tandem: epoch=1 loss=0.5") == ["0.5"]


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=6))
def test_every_number_is_read_back_by_its_own_regex(values):
    line = format_metrics(values)
    assert "\n" not in line
    for name, value in values.items():
        (text,) = captured(name, line)
        expected = float(value if isinstance(value, int) else f"{float(value):.6g}")
        assert float(text) == expected or math.isnan(expected)


@pytest.mark.parametrize("name", ["", "two words", "a=b", "naïve", "-a", "a\n"])
def test_an_invalid_name_is_rejected(name):
    with pytest.raises(ValueError, match="cannot name a metric"):
        format_metrics({name: 1})
    with pytest.raises(ValueError, match="cannot name a metric"):
        regex(name)


def test_a_regex_over_sagemakers_limit_is_rejected():
    assert len(regex("v" * 255)) <= 500
    with pytest.raises(ValueError, match="shorten it"):
        regex("-".join("a" * 200))


def test_a_regex_has_one_group_and_no_look_around():
    pattern = regex("validation:loss")
    assert re.compile(pattern).groups == 1
    assert not re.search(r"\(\?[=!<]", pattern)
