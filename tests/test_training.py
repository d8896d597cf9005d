import pytest

from tandem.algorithm import load_algorithm
from tandem.errors import UserError
from tandem.job import TrainingJob
from tandem.training import FAILURE_CHARACTERS, check_channels, describe_failure, write_failure


def test_a_users_mistake_is_its_sentence_alone():
    assert describe_failure(UserError("turn the pictures")) == "turn the pictures"


def test_anything_else_is_its_cause_and_the_end_of_the_trace():
    try:
        raise ZeroDivisionError("by zero " * 1000)
    except ZeroDivisionError as error:
        text = describe_failure(error)
    assert text.startswith("ZeroDivisionError: by zero")
    assert len(text) <= FAILURE_CHARACTERS
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError as error:
        text = describe_failure(error)
    assert text.splitlines()[0] == "ZeroDivisionError: by zero"
    assert "test_training.py" in text


def test_the_first_failure_is_kept(tmp_path):
    write_failure(tmp_path / "output", "the cause")
    write_failure(tmp_path / "output", "what followed")
    assert (tmp_path / "output/failure").read_text() == "the cause"


def test_a_failure_that_cannot_be_written_is_logged(tmp_path, caplog):
    (tmp_path / "output").write_text("a file where the folder should be")
    write_failure(tmp_path / "output", "the cause")
    assert "could not be written" in caplog.text


def test_a_missing_channel_is_told_with_those_that_are_there(opt_ml):
    job = TrainingJob.load(opt_ml(channels=["train", "valid"]))
    with pytest.raises(UserError, match=r"'training' is missing.*channels of this job: train, valid"):
        check_channels(load_algorithm("fixtures.fails_to_train"), job)


def test_a_failure_that_names_a_file_which_is_no_text_is_written(tmp_path):
    write_failure(tmp_path / "output", "unreadable: \udcff.png")
    assert (tmp_path / "output/failure").read_text() == "unreadable: \\udcff.png"
