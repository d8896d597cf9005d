import os

import pytest

from tandem.resources import count_cores

AFFINITY = len(os.sched_getaffinity(0))


def test_without_a_quota_the_affinity_counts(tmp_path):
    assert count_cores(tmp_path) == AFFINITY


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000", AFFINITY),
        ("50000 100000", 1),
        ("150000 100000", min(2, AFFINITY)),
        ("6400000 100000", AFFINITY),
    ],
)
def test_cgroup_v2_quota(tmp_path, text, cores):
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert count_cores(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", AFFINITY), ("100000", 1)])
def test_cgroup_v1_quota(tmp_path, quota, cores):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert count_cores(tmp_path) == cores
