"""The names of unreadable records: one for each record, in however many passes it fails."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.image_classifier.records.source import RecordNames


def test_a_steady_number_names_the_record():
    names = RecordNames("training", steady=True)
    assert {names.find(5, b"", pass_number) for pass_number in (0, 1, None)} == {Path("training/record 5")}
    assert names.find(6, b"", 0) == Path("training/record 6")


def test_a_record_keeps_its_name_at_another_position_in_a_later_pass():
    names = RecordNames("training", steady=False)
    assert names.find(5, b"broken", 0) == names.find(2, b"broken", 1) == names.find(9, b"broken", None)
    assert names.find(5, b"other", 1) == Path("training/record 5 of pass 2")


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.sampled_from([b"", b"page", b"cut"]), max_size=8).flatmap(
        lambda contents: st.lists(st.permutations(contents), min_size=1, max_size=4)
    )
)
def test_there_are_as_many_names_as_records(passes):
    """In any order of the passes, and even if each record fails twice in a pass."""
    names = RecordNames("training", steady=False)
    found = {
        names.find(number, content, pass_number)
        for pass_number, contents in enumerate(passes)
        for number, content in [*enumerate(contents)] * 2
    }
    assert len(found) == len(passes[0])
