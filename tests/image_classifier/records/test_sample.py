"""A few records of each label."""

from algorithms.image_classifier.records.sample import KEPT, KEPT_A_LABEL, Sample


def test_labels_take_turns():
    sample = Sample()
    for label, record in [(1, "a"), (1, "b"), (0, "c"), (1, "d"), (0, "e")]:
        sample.add(label, record)
    assert list(sample) == ["a", "c", "b", "e", "d"]


def test_it_keeps_so_many():
    one, all_labels = Sample(), Sample()
    for number in range(2 * KEPT):
        one.add(0, number)
        all_labels.add(number, number)
    assert list(one) == list(range(KEPT_A_LABEL))
    assert list(all_labels) == list(range(KEPT))
