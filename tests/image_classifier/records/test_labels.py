"""The names of records' labels, and numbers that can be no classes."""

import logging
from collections import Counter

import pytest

from algorithms.image_classifier import Hyperparameters
from algorithms.image_classifier.records.labels import MOST, name_labels
from tandem import hyperparameters
from tandem.errors import UserError


def name(numbers, texts=None, **others):
    channels = {"training": numbers, **others}
    return name_labels({channel: Counter(some) for channel, some in channels.items()}, texts or {})


def test_labels_have_their_texts_where_each_has_one_of_its_own(caplog):
    caplog.set_level(logging.INFO, "algorithms")
    assert name([0, 1, 1], {0: {"cat"}, 1: {"dog"}}, validation=[1]) == ("cat", "dog")
    assert name([0, 1], {0: {"cat"}, 1: {"cat"}}) == ("0", "1")
    assert name([0, 1], {0: {"cat", "tom"}, 1: {"dog"}}) == ("0", "1")
    assert name([-1, -1], {-1: {"dog", "cat"}}) == ("cat", "dog")
    assert caplog.text == ""


@pytest.mark.parametrize("label", [MOST, 10_000_000])
def test_a_number_too_high_is_one_sentence(label):
    """Before anything as large as it is made."""
    with pytest.raises(UserError, match=f"has the label {label}, expected .* 99999 .*; if .* ids or times"):
        name([0, label])


def test_too_many_texts_are_one_sentence():
    with pytest.raises(UserError, match="has 100001 texts as labels, expected 100000 at most"):
        name([-1], {-1: {str(number) for number in range(MOST + 1)}})


def test_as_many_labels_as_num_classes_may_say():
    (declared,) = (one for one in hyperparameters.describe(Hyperparameters) if one.name == "num_classes")
    assert declared.maximum == MOST == len(name(range(MOST)))


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([0, 7], "no picture of 6 of its 8 labels: 1, 2, 3, 4, 5, 6;"),
        ([1, 2], "no picture of 1 of its 3 labels: 0;"),
        ([0, 99_999], "no picture of 99998 of its 100000 labels: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …;"),
    ],
)
def test_a_gap_is_one_warning(caplog, numbers, said):
    assert len(name(numbers)) == numbers[-1] + 1
    (record,) = caplog.records
    assert said in record.getMessage()


@pytest.mark.parametrize(
    ("numbers", "others", "sentence"),
    [
        ([5], {}, "the label 5 only; expected two labels or more"),
        ([-1, 0], {}, "some records have a number as label and some only a text"),
        ([0, 1], {"test": [9]}, "channel test has the label 9, but the highest of channel training is 1"),
    ],
)
def test_labels_that_do_not_agree_are_one_sentence(caplog, numbers, others, sentence):
    with pytest.raises(UserError, match=sentence):
        name(numbers, **others)
    assert not caplog.records
