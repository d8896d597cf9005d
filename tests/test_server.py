import dataclasses

import pytest

from conftest import CPU
from tandem.devices import Decision, Gpu
from tandem.server import Slots, make_plan

T4 = [Gpu(name="Tesla T4", uuid=f"GPU-{i}", memory_bytes=15 << 30, capability=(7, 5)) for i in range(4)]


@pytest.mark.parametrize(
    ("gpus", "workers", "cores", "planned"),
    [
        (0, None, 2, (1, 2)),
        (0, None, 96, (1, 96)),
        (1, None, 4, (1, 4)),
        (4, None, 48, (4, 12)),
        (0, 3, 8, (3, 2)),
        (0, 4, 2, (4, 1)),
    ],
)
def test_the_plan_is_one_process_or_one_a_gpu_unless_told(settings, gpus, workers, cores, planned):
    decision = Decision(device="gpu", reason="", gpus=tuple(T4[:gpus])) if gpus else CPU
    plan = make_plan(dataclasses.replace(settings, workers=workers), decision, cores)
    assert (plan.workers, plan.cores) == planned


def test_a_process_that_follows_a_dead_one_gets_its_slot():
    slots = Slots(3)
    assert [slots.take(age) for age in (1, 2, 3)] == [0, 1, 2]
    slots.free(2)
    assert slots.take(4) == 1
    slots.free(99)
