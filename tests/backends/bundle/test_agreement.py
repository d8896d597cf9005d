"""Answers are compared with the golden ones by their size and by their labels."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.bundle.agreement import compare, largest_difference, time_row

GOLDEN = np.array([[0.7, 0.2, 0.1], [0.34, 0.33, 0.33], [0.1, 0.4, 0.5]], np.float32)


def change(row, *probabilities):
    answers = GOLDEN.copy()
    answers[row] = probabilities
    return answers


def test_the_same_answers_agree_wholly():
    found = compare(GOLDEN.copy(), GOLDEN, clear=0.01)
    assert (found.rows, found.largest_difference, found.same_labels, found.overturned) == (3, 0, 3, 0)
    assert found.find_fault(1e-9) == ""
    assert str(found) == "largest difference 0 over 3 golden rows"


def test_a_difference_above_the_tolerance_is_a_fault_and_one_within_is_none():
    found = compare(change(0, 0.6, 0.3, 0.1), GOLDEN, clear=0.01)
    assert found.find_fault(0.11) == ""
    assert found.find_fault(0.09) == "largest difference 0.1 over 3 golden rows, above 0.09"


def test_a_clear_label_must_stay_whatever_the_tolerance():
    """A tenth is little for int8, and still another answer where the label changes."""
    found = compare(change(2, 0.1, 0.46, 0.44), GOLDEN, clear=0.05)
    assert (found.same_labels, found.overturned) == (2, 1)
    assert found.find_fault(0.5) == f"{found}, 1 of them clear in the golden answers"
    assert str(found) == "largest difference 0.06 over 3 golden rows, 1 with another label"


def test_labels_that_were_not_clear_may_change_places():
    found = compare(change(1, 0.33, 0.34, 0.33), GOLDEN, clear=0.02)
    assert (found.same_labels, found.overturned) == (2, 0)
    assert found.find_fault(0.05) == ""
    assert "1 with another label" in str(found)


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param(change(0, math.nan, 0.2, 0.1), id="no number"),
        pytest.param(change(0, math.inf, 0.2, 0.1), id="infinite"),
        pytest.param(GOLDEN[:2], id="a row too few"),
        pytest.param(GOLDEN[:, :2], id="a label too few"),
    ],
)
def test_answers_that_are_none_agree_with_nothing(answers):
    found = compare(answers, GOLDEN, clear=0.01)
    assert found.largest_difference == math.inf
    assert found.overturned == 3
    assert "above 0.9" in found.find_fault(0.9)


@given(st.integers(1, 8), st.integers(2, 6), st.integers(0, 2**31), st.floats(0.001, 0.2))
@settings(deadline=None, max_examples=100)
def test_within_half_of_what_is_clear_no_clear_label_changes(rows, labels, seed, clear):
    """So at float32, whose tolerance is that half, the difference alone decides."""
    random = np.random.default_rng(seed)
    golden = random.dirichlet(np.ones(labels), rows)
    answers = golden + random.uniform(-clear / 2, clear / 2, golden.shape)
    found = compare(answers, golden, clear=clear)
    assert found.overturned == 0
    assert found.largest_difference == largest_difference(answers, golden) <= clear / 2


def test_a_row_is_timed_alone_and_not_without_end():
    seen = []
    milliseconds = time_row(lambda rows: seen.append(rows.tolist()), np.array([[1], [2]]))
    assert milliseconds >= 0
    assert 0 < len(seen) <= 20
    assert seen[0] == [[1]]
