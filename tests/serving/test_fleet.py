import pytest

from tandem.runtime.resources import Resources
from tandem.serving.fleet import MAX_LOST_STARTS, Fleet, make_plan

GIB = 1 << 30
SMALL, MOBILE_NET, LARGE = 1 << 20, 24 << 20, 1 << 30


@pytest.mark.parametrize(
    ("cores", "gpus", "model_bytes", "wanted", "planned"),
    [
        (2, 0, MOBILE_NET, None, (1, 2)),
        (8, 0, MOBILE_NET, None, (1, 8)),
        (36, 0, MOBILE_NET, None, (5, 7)),
        (96, 0, MOBILE_NET, None, (12, 8)),
        (2, 0, SMALL, None, (2, 1)),
        (8, 0, SMALL, None, (8, 1)),
        (4, 1, MOBILE_NET, None, (1, 4)),
        (48, 4, MOBILE_NET, None, (4, 12)),
        (192, 8, MOBILE_NET, None, (8, 24)),
        (8, 0, MOBILE_NET, 3, (3, 2)),
        (2, 0, MOBILE_NET, 4, (4, 1)),
    ],
)
def test_the_plan_follows_gpus_then_cores_and_the_models_size(cores, gpus, model_bytes, wanted, planned):
    plan = make_plan(Resources(cores, 192 * GIB), gpus, model_bytes, wanted)
    assert (plan.workers, plan.cores) == planned


@pytest.mark.parametrize(("memory", "workers"), [(GIB, 1), (4 * GIB, 5), (192 * GIB, 12)])
def test_no_more_copies_of_the_model_than_fit_the_memory(memory, workers):
    assert make_plan(Resources(96, memory), 0, MOBILE_NET).workers == workers
    assert make_plan(Resources(96, memory), 0, LARGE, wanted=96).workers <= max(1, memory // LARGE)


def test_a_process_that_follows_a_dead_one_gets_its_slot():
    fleet = Fleet(3)
    assert [fleet.take(age) for age in (1, 2, 3)] == [0, 1, 2]
    fleet.free(2)
    assert fleet.take(4) == 1
    fleet.free(99)


def test_a_fleet_is_complete_once_all_have_been_ready_and_stays_so():
    """A process that dies later is replaced while the others answer."""
    fleet = Fleet(2)
    for age in (1, 2):
        fleet.take(age)
    fleet.mark_ready(0)
    assert not fleet.is_complete
    fleet.mark_ready(1)
    assert fleet.is_complete
    fleet.free(1)
    fleet.take(3)
    assert fleet.is_complete


def test_it_ends_when_process_after_process_ended_before_it_was_ready():
    fleet = Fleet(1)
    ages = iter(range(1, 20))

    def live(*, ready):
        age = next(ages)
        slot = fleet.take(age)
        if ready:
            fleet.mark_ready(slot)
        fleet.free(age)

    for _ in range(MAX_LOST_STARTS - 1):
        live(ready=False)
    live(ready=True)  # what served for a while counts anew
    for _ in range(MAX_LOST_STARTS - 1):
        live(ready=False)
    assert not fleet.end_reason
    live(ready=False)
    assert "does it have enough memory" in fleet.end_reason


def test_it_ends_when_a_model_cannot_be_loaded():
    fleet = Fleet(2)
    slots = [fleet.take(age) for age in (1, 2)]
    fleet.mark_failed(slots[1])
    assert not fleet.is_complete
    fleet.free(1)
    assert not fleet.end_reason
    fleet.free(2)
    assert fleet.end_reason == "the model cannot be loaded"
