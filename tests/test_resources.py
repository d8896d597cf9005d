import os

import pytest

from tandem.resources import count_cores, count_memory

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


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("memory.max", "1048576\n", 1048576),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "2097152\n", 2097152),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
        ("nothing", "", None),
    ],
)
def test_memory_is_the_machines_cut_by_the_cgroups_limit(tmp_path, name, text, expected):
    (tmp_path / "memory").mkdir()
    (tmp_path / name).write_text(text)
    assert count_memory(tmp_path) == (expected or count_memory(tmp_path / "elsewhere"))
    assert count_memory(tmp_path / "elsewhere") > 1 << 28
