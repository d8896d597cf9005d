"""The real `train`, interrupted and started again: its result is that of an uninterrupted job."""

import contextlib
import json
import random
import re
import signal

import pytest

from interruptions import (
    Interrupt,
    Job,
    Reference,
    choose_interrupts,
    compare,
    cut_newest,
    run_interrupted,
    small_disk,
)
from sample_images import write_images

pytestmark = pytest.mark.slow

TERM, KILL = signal.SIGTERM, signal.SIGKILL
#: With these, the first epoch has the lowest val_loss: its weights are restored at the end.
SMALL = {
    "epochs": "4",
    "early_stopping": "3",
    "learning_rate": "0.01",
    "seed": "8",
    "batch_size": "8",
    "image_size": "8",
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """120 images: 12 steps per epoch."""
    return write_images(tmp_path_factory.mktemp("pictures"), count=40)


@pytest.fixture
def make_job(tmp_path, pictures):
    return lambda name="ml", **changes: Job.make(tmp_path / name, pictures, **{**SMALL, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory, pictures):
    """A job without interruptions, and its result."""
    job = Job.make(tmp_path_factory.mktemp("finished") / "ml", pictures, **SMALL)
    return job, Reference(job)


@pytest.mark.parametrize(
    ("numbers", "between"),
    [
        pytest.param([TERM], lambda job: None, id="TERM"),
        pytest.param([KILL], cut_newest, id="KILL, and the newest checkpoint cut in half"),
    ],
)
def test_an_interrupted_training_has_the_result_of_an_uninterrupted_one(make_job, finished, numbers, between):
    """Identical weights, metrics and epoch lines after interrupts at random steps."""
    _, reference = finished
    interrupts = choose_interrupts(random.Random(1), 2, reference.steps, numbers)
    found = run_interrupted(make_job(), reference, interrupts, between)
    assert found.same_weights
    assert found.same_curve
    assert found.kills
    assert found.repeated == 0 or numbers != [TERM]


def test_a_kill_while_a_checkpoint_is_written_loses_only_that_one(make_job, finished):
    job = make_job()
    found = run_interrupted(job, finished[1], [Interrupt(KILL, saves=2)])
    assert found.same_weights
    assert found.same_curve
    assert found.kills == 1
    assert job.leftovers == []


def test_a_stop_saves_the_model_so_far_and_a_checkpoint_of_that_step(make_job):
    job = make_job()
    attempt = job.start(Interrupt(TERM, steps=17))
    assert attempt.status == 0, attempt.log
    assert (job.root / "model" / "model.h5").is_file()
    assert not list((job.root / "model").rglob("*checkpoint*"))
    epoch, step = attempt.steps[-1]
    assert job.checkpoints[-1].name == f"checkpoint-algo-1-{epoch:06}-{step:06}.npz"
    assert not (job.root / "output" / "failure").exists()


def test_a_finished_job_that_is_started_again_only_saves_its_model(finished):
    job, reference = finished
    attempt = job.start()
    assert attempt.status == 0, attempt.log
    assert attempt.steps == []
    assert reference.has_weights_of(job)


def test_a_full_disk_fails_the_job_and_loses_no_checkpoint(make_job, finished):
    reference_job, reference = finished
    size = reference_job.checkpoints[-1].stat().st_size
    job = make_job()
    with contextlib.ExitStack() as stack:
        try:
            # One checkpoint fits and two do not. The first is smaller: it has no weights of a best epoch.
            resize = stack.enter_context(small_disk(job.root / "checkpoints", size * 5 // 4))
        except PermissionError as error:
            pytest.skip(str(error))
        failed = job.start()
        assert failed.status == 1, failed.log
        assert re.match(
            r"the disk is full: a checkpoint needs \d+ bytes in \S+/checkpoints, which has \d+", job.failure
        )
        assert len(job.checkpoints) == 1
        assert job.leftovers == []
        resize(size * 8)
        resumed = job.start()
        assert resumed.status == 0, resumed.log
        found = compare(job, reference, [failed, resumed], kills=1)
    assert found.same_weights
    assert found.same_curve


def set_hyperparameters(job, **changes):
    path = job.root / "input" / "config" / "hyperparameters.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_checkpoint_of_another_training_is_rejected_but_more_epochs_are_allowed(make_job):
    job = make_job(epochs="1")
    assert job.start().status == 0
    set_hyperparameters(job, batch_size="4")
    refused = job.start()
    assert refused.status == 1, refused.log
    assert "batch_size was 8 and is now 4" in job.failure
    assert "empty the checkpoint location" in job.failure
    set_hyperparameters(job, batch_size="8", epochs="2")
    resumed = job.start()
    assert resumed.status == 0, resumed.log
    assert {epoch for epoch, _ in resumed.steps} == {2}
    assert "epochs was 1 and is now 2" in resumed.log


def test_a_job_without_a_checkpoint_config_keeps_none(make_job):
    job = make_job(epochs="1")
    (job.root / "input" / "config" / "checkpointconfig.json").unlink()
    assert job.start().status == 0
    assert not (job.root / "checkpoints").exists()
