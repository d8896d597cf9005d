"""Fuzzing of the decoders: a few thousand inputs here, and a quarter of a million in `make fuzz`."""

import pytest

from fuzz import __main__ as fuzz
from fuzz.inputs import Source, list_images
from tandem.images.codec import decode


def test_every_input_is_decoded_or_rejected_with_a_message(tmp_path):
    run = fuzz.Run(20, 300, tmp_path)
    run.start(8, 1)
    assert run.faults == []
    assert run.inputs == 8 * fuzz.BATCH
    assert run.max_noise <= 3, run.noise  # log lines for one image
    for outcome in ("image accepted", "image image_damaged", "rows bad_request", "request accepted"):
        assert run.outcomes[outcome], run.summary()


def test_the_images_to_mutate_are_valid():
    for body in list_images():
        assert decode(body).ndim == 3


def test_the_same_seed_gives_the_same_inputs():
    assert list(Source(7).batch(3, 100)) == list(Source(7).batch(3, 100))
    assert list(Source(7).batch(3, 100)) != list(Source(8).batch(3, 100))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("crash", "the process ended with -6"),
        pytest.param("exception", "KeyError", marks=pytest.mark.slow),
        pytest.param("hang", "it hung", marks=pytest.mark.slow),
        pytest.param("slow", "took 0.", marks=pytest.mark.slow),
        ("leak", "memory grew from"),
        pytest.param("memory", "contains uninitialized memory", marks=pytest.mark.slow),
    ],
)
def test_faults_are_detected_and_their_inputs_saved(fault, message, tmp_path, monkeypatch):
    """The following batches are run nevertheless."""
    monkeypatch.setenv("FUZZ_FAULT", fault)
    monkeypatch.setattr(fuzz, "WARM_UP_BATCHES", 0)
    run = fuzz.Run(20, 300, tmp_path, "fixtures.fuzz_child")
    run.hang_seconds = 3 if fault == "hang" else fuzz.HANG_SECONDS
    run.start(5, 1)
    assert run.faults
    assert message in (tmp_path / "20-000.txt").read_text()
    assert (tmp_path / "20-000").stat().st_size or fault == "leak"
    assert run.inputs >= 3 * fuzz.BATCH
