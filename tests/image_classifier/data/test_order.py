"""The order of images and the shares of hosts: every image counts exactly once."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.image_classifier.data import order


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 8))
def test_the_hosts_shares_are_the_global_batch_in_order(count, batch_size, hosts):
    """The sizes of the shares differ by at most one, and no share is empty."""
    indices = order.shuffle(count, 3, 1)
    for step in range(-(-count // batch_size)):
        batch = indices[step * batch_size : (step + 1) * batch_size]
        shares = [order.share(indices, step, batch_size, rank, hosts) for rank in range(hosts)]
        assert [index for part, counts in shares if counts for index in part] == batch.tolist()
        sizes = [len(part) * counts for part, counts in shares]
        assert max(sizes) - min(sizes) <= 1
        assert all(len(part) for part, _ in shares)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 200), st.integers(1, 60))
def test_the_images_of_a_shard_are_spread_over_all_steps(count, steps):
    """Each image counts once; steps without an image get one that does not count."""
    indices = order.shuffle(count, 3, 1)
    parts = [order.spread(indices, step, steps) for step in range(steps)]
    assert [index for part, counts in parts if counts for index in part] == indices.tolist()
    assert all(len(part) for part, _ in parts)
    sizes = [len(part) * counts for part, counts in parts]
    assert max(sizes) - min(sizes) <= 1


def test_the_order_depends_only_on_the_seed_and_the_epoch():
    """Each epoch has another order; without a seed it is that of the list."""
    first = order.shuffle(50, 7, 2)
    assert np.array_equal(first, order.shuffle(50, 7, 2))
    assert sorted(first) == list(range(50))
    assert not np.array_equal(first, order.shuffle(50, 7, 3))
    assert not np.array_equal(first, order.shuffle(50, 8, 2))
    assert order.shuffle(4, None, 2).tolist() == [0, 1, 2, 3]
