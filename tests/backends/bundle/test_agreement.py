"""Comparing answers with reference answers by value and by label."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.bundle.agreement import compare, largest_difference, time_row

REFERENCE = np.array([[0.7, 0.2, 0.1], [0.34, 0.33, 0.33], [0.1, 0.4, 0.5]], np.float32)


def change(row, *probabilities):
    answers = REFERENCE.copy()
    answers[row] = probabilities
    return answers


def test_equal_answers_agree():
    found = compare(REFERENCE.copy(), REFERENCE, clear_margin=0.01)
    assert (found.rows, found.largest_difference, found.same_labels, found.changed_clear_labels) == (
        3,
        0,
        3,
        0,
    )
    assert found.find_fault(1e-9) == ""
    assert str(found) == "largest difference 0 over 3 reference answers"


def test_only_a_difference_above_the_tolerance_is_a_fault():
    found = compare(change(0, 0.6, 0.3, 0.1), REFERENCE, clear_margin=0.01)
    assert found.find_fault(0.11) == ""
    assert found.find_fault(0.09) == "largest difference 0.1 over 3 reference answers, above 0.09"


def test_a_clear_label_must_not_change_whatever_the_tolerance():
    """At int8 a tenth is a small difference, but another label is another answer."""
    found = compare(change(2, 0.1, 0.46, 0.44), REFERENCE, clear_margin=0.05)
    assert (found.same_labels, found.changed_clear_labels) == (2, 1)
    assert found.find_fault(0.5) == f"{found}, 1 of them clear in the reference answers"
    assert str(found) == "largest difference 0.06 over 3 reference answers, 1 with another label"


def test_labels_that_are_not_clear_may_change():
    found = compare(change(1, 0.33, 0.34, 0.33), REFERENCE, clear_margin=0.02)
    assert (found.same_labels, found.changed_clear_labels) == (2, 0)
    assert found.find_fault(0.05) == ""
    assert "1 with another label" in str(found)


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param(change(0, math.nan, 0.2, 0.1), id="not a number"),
        pytest.param(change(0, math.inf, 0.2, 0.1), id="infinite"),
        pytest.param(REFERENCE[:2], id="one row missing"),
        pytest.param(REFERENCE[:, :2], id="one label missing"),
    ],
)
def test_invalid_answers_never_agree(answers):
    found = compare(answers, REFERENCE, clear_margin=0.01)
    assert found.largest_difference == math.inf
    assert found.changed_clear_labels == 3
    assert "above 0.9" in found.find_fault(0.9)


@given(st.integers(1, 8), st.integers(2, 6), st.integers(0, 2**31), st.floats(0.001, 0.2))
@settings(deadline=None, max_examples=100)
def test_differences_within_half_the_margin_change_no_clear_label(rows, labels, seed, margin):
    """At float32 the tolerance is half the margin, so only the difference matters."""
    random = np.random.default_rng(seed)
    reference = random.dirichlet(np.ones(labels), rows)
    answers = reference + random.uniform(-margin / 2, margin / 2, reference.shape)
    found = compare(answers, reference, clear_margin=margin)
    assert found.changed_clear_labels == 0
    assert found.largest_difference == largest_difference(answers, reference) <= margin / 2


def test_a_single_row_is_timed_a_limited_number_of_times():
    seen = []
    milliseconds = time_row(lambda rows: seen.append(rows.tolist()), np.array([[1], [2]]))
    assert milliseconds >= 0
    assert 0 < len(seen) <= 20
    assert seen[0] == [[1]]
