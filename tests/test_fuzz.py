"""The decoders under fire, a few thousand inputs here and a quarter of a million by `make fuzz`."""

import pytest

from fuzz import __main__ as fuzz
from fuzz.inputs import Source, list_pictures
from tandem.images.codec import decode


def test_whatever_comes_is_read_or_refused_in_a_sentence(tmp_path):
    run = fuzz.Run(20, 300, tmp_path)
    run.go(8, 1)
    assert run.faults == []
    assert run.inputs == 8 * fuzz.BATCH
    assert run.most_noise <= 3, run.noise  # lines that one picture may bring into the log
    for outcome in ("picture accepted", "picture image_damaged", "rows bad_request", "request accepted"):
        assert run.outcomes[outcome], run.summary()


def test_all_that_is_broken_was_whole():
    for body in list_pictures():
        assert decode(body).ndim == 3


def test_the_same_seed_gives_the_same_inputs():
    assert list(Source(7).batch(3, 100)) == list(Source(7).batch(3, 100))
    assert list(Source(7).batch(3, 100)) != list(Source(8).batch(3, 100))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("crash", "the process ended with -6"),
        pytest.param("exception", "KeyError", marks=pytest.mark.slow),
        pytest.param("hang", "it hung", marks=pytest.mark.slow),
        pytest.param("slow", "took 0.", marks=pytest.mark.slow),
        ("leak", "memory grew from"),
        pytest.param("memory", "memory of others shows", marks=pytest.mark.slow),
    ],
)
def test_what_goes_wrong_is_found_and_its_input_kept(fault, said, tmp_path, monkeypatch):
    """And the batches after it are run nevertheless."""
    monkeypatch.setenv("FUZZ_FAULT", fault)
    monkeypatch.setattr(fuzz, "WARM_UP_BATCHES", 0)
    run = fuzz.Run(20, 300, tmp_path, "fixtures.fuzz_child")
    # Not less: a child that starts slowly beside other tests must not count as hung.
    run.hang_seconds = 10 if fault == "hang" else fuzz.HANG_SECONDS
    run.go(5, 1)
    assert run.faults
    assert said in (tmp_path / "20-000.txt").read_text()
    assert (tmp_path / "20-000").stat().st_size or fault == "leak"
    assert run.inputs >= 3 * fuzz.BATCH
