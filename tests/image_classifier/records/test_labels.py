"""The names of records' labels, and invalid label numbers."""

import logging
from collections import Counter

import pytest

from algorithms.image_classifier import Hyperparameters
from algorithms.image_classifier.records.labels import MAX_LABELS, name_labels
from tandem import hyperparameters
from tandem.errors import UserError


def name(numbers, texts=None, **others):
    channels = {"training": numbers, **others}
    return name_labels({channel: Counter(some) for channel, some in channels.items()}, texts or {})


def test_labels_are_named_by_texts_if_each_has_one_of_its_own(caplog):
    caplog.set_level(logging.INFO, "algorithms")
    assert name([0, 1, 1], {0: {"cat"}, 1: {"dog"}}, validation=[1]) == ("cat", "dog")
    assert name([0, 1], {0: {"cat"}, 1: {"cat"}}) == ("0", "1")
    assert name([0, 1], {0: {"cat", "tom"}, 1: {"dog"}}) == ("0", "1")
    assert name([-1, -1], {-1: {"dog", "cat"}}) == ("cat", "dog")
    assert caplog.text == ""


@pytest.mark.parametrize("label", [MAX_LABELS, 10_000_000])
def test_a_label_above_the_limit_is_rejected(label):
    """Before anything of that size is allocated."""
    with pytest.raises(
        UserError, match=f"has the label {label}, expected .* 99999 .*; if .* ids or timestamps"
    ):
        name([0, label])


def test_too_many_texts_are_rejected():
    with pytest.raises(UserError, match="has 100001 texts as labels, expected 100000 at most"):
        name([-1], {-1: {str(number) for number in range(MAX_LABELS + 1)}})


def test_the_maximum_number_of_labels_is_that_of_num_classes():
    (declared,) = (one for one in hyperparameters.describe(Hyperparameters) if one.name == "num_classes")
    assert declared.maximum == MAX_LABELS == len(name(range(MAX_LABELS)))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([0, 7], "no image of 6 of its 8 labels: 1, 2, 3, 4, 5, 6;"),
        ([1, 2], "no image of 1 of its 3 labels: 0;"),
        ([0, 99_999], "no image of 99998 of its 100000 labels: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …;"),
    ],
)
def test_gaps_are_logged_in_one_warning(caplog, numbers, message):
    assert len(name(numbers)) == numbers[-1] + 1
    (record,) = caplog.records
    assert message in record.getMessage()


@pytest.mark.parametrize(
    ("numbers", "others", "message"),
    [
        ([5], {}, "only images of the label 5; expected two or more labels"),
        ([-1, 0], {}, "some records have a number as label and some only a text"),
        ([0, 1], {"test": [9]}, "channel test has the label 9, but the highest of channel training is 1"),
    ],
)
def test_inconsistent_labels_are_rejected(caplog, numbers, others, message):
    with pytest.raises(UserError, match=message):
        name(numbers, **others)
    assert not caplog.records
