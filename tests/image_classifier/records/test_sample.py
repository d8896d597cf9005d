"""The sample of a few records of each label."""

from algorithms.image_classifier.records.source import SAMPLE_SIZE, SAMPLE_SIZE_PER_LABEL, Sample


def test_a_sample_yields_one_record_of_each_label_in_turn():
    sample = Sample()
    for label, record in [(1, "a"), (1, "b"), (0, "c"), (1, "d"), (0, "e")]:
        sample.add(label, record)
    assert list(sample) == ["a", "c", "b", "e", "d"]


def test_the_size_of_a_sample_is_limited():
    one, all_labels = Sample(), Sample()
    for number in range(2 * SAMPLE_SIZE):
        one.add(0, number)
        all_labels.add(number, number)
    assert list(one) == list(range(SAMPLE_SIZE_PER_LABEL))
    assert list(all_labels) == list(range(SAMPLE_SIZE))
