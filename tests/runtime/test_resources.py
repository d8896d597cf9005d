import os

import pytest

from tandem.runtime.resources import count_cores, count_memory, count_memory_kills

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
def test_memory_is_that_of_the_host_limited_by_the_cgroup(tmp_path, name, text, expected):
    (tmp_path / "memory").mkdir()
    (tmp_path / name).write_text(text)
    assert count_memory(tmp_path) == (expected or count_memory(tmp_path / "elsewhere"))
    assert count_memory(tmp_path / "elsewhere") > 1 << 28


def write_cgroups(tmp_path, files, own):
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "own").write_text(own)
    return tmp_path / "cgroup", tmp_path / "own"


def test_the_smallest_limit_of_the_parent_cgroups_counts(tmp_path):
    files = {"a/memory.max": "3000\n", "a/b/memory.max": "max\n", "other/memory.max": "1\n"}
    assert count_memory(*write_cgroups(tmp_path, files, "0::/a/b\n")) == 3000


@pytest.mark.parametrize(
    ("files", "own", "kills"),
    [
        ({"a/memory.events": "oom 5\noom_kill 2\n", "memory.events": "oom_kill 9\n"}, "0::/a\n", 2),
        ({"memory.events": "low 0\noom_kill 1\n"}, "0::/of/the/host\n", 1),
        ({"memory/a/memory.oom_control": "under_oom 0\noom_kill 3\n"}, "4:memory:/a\n0::/\n", 3),
        ({"memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"}, "4:memory:/\n", None),
        ({}, "", None),
    ],
)
def test_kills_are_those_of_the_nearest_cgroup_that_counts_them(tmp_path, files, own, kills):
    assert count_memory_kills(*write_cgroups(tmp_path, files, own)) == kills
