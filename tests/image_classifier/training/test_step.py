"""The learning rate of a step, and the weights of labels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.image_classifier.training.step import Optimization, _schedule, balance_labels


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=20).filter(any))
def test_balanced_labels_have_equal_total_weights_and_a_mean_weight_of_one(counts):
    """A label without images has a weight of 0."""
    weights = balance_labels(counts)
    shares = [weight * count for weight, count in zip(weights, counts, strict=True) if count]
    assert shares == pytest.approx([shares[0]] * len(shares))
    assert sum(shares) / sum(counts) == pytest.approx(1)


def test_the_learning_rate_falls_to_zero_at_the_last_step():
    rate = _schedule(Optimization([1], learning_rate=0.1, steps=100))
    values = [float(rate(step)) for step in range(101)]
    assert values[0] == pytest.approx(0.1)
    assert values[100] == pytest.approx(0, abs=1e-8)
    assert values == sorted(values, reverse=True)


def test_fine_tuning_starts_at_its_own_learning_rate():
    """The rate falls to zero in both phases."""
    rate = _schedule(Optimization([1], learning_rate=0.1, steps=50, frozen_steps=20, fine_tuning_rate=0.01))
    assert float(rate(0)) == pytest.approx(0.1)
    assert float(rate(19)) < 0.001
    assert float(rate(20)) == pytest.approx(0.01)
    assert float(rate(50)) == pytest.approx(0, abs=1e-8)
    assert np.all(np.diff([float(rate(step)) for step in range(20, 51)]) < 0)
