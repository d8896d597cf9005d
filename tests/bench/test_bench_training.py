"""The training benchmark's parts: its pictures, and from rates to ratios."""

import json
import subprocess
import sys

import pytest
from bench.training import report
from bench.training.photographs import find_photographs

from conftest import ROOT
from tandem.images import codec


def test_pictures_are_the_same_each_time_and_written_once(tmp_path):
    """Whole JPEGs of the size asked for, of both labels alike."""
    first, second = (find_photographs(tmp_path / name, 48, 6) for name in "ab")
    names = [path.relative_to(first).as_posix() for path in sorted(first.rglob("*.jpg"))]
    assert [name.split("/")[0] for name in names] == ["china"] * 3 + ["flower"] * 3
    assert {codec.read(first / name).shape for name in names} == {(48, 48, 3)}
    bodies = [(first / name).read_bytes() for name in names]
    assert bodies == [(second / name).read_bytes() for name in names]
    assert len(set(bodies)) == 6
    (first / names[0]).write_bytes(b"still there")
    assert (find_photographs(tmp_path / "a", 48, 6) / names[0]).read_bytes() == b"still there"


def make_records(**rates):
    return [
        {"workload": "32", "round": number, "way": way, "rate": rate, "cpu": 100 / rate}
        for way, found in rates.items()
        for number, rate in enumerate(found)
    ]


def test_rates_are_divided_round_by_round():
    """A machine that is slow in one round is slow for both."""
    records = make_records(limit=[100, 10], keras=[50, 5], ours=[90, 9])
    assert report.compare(records, "ours", "limit").median == 0.9
    assert report.compare(records, "ours", "keras").least == 1.8


def test_the_report_has_a_row_a_way_and_a_column_a_count():
    """In Markdown."""
    results = {
        "machine": "a machine",
        "rounds": 2,
        "titles": {"32": "a network"},
        "speed": make_records(limit=[100, 100], keras=[50, 50], ours=[90, 98]),
        "memory": [
            {"size": 32, "way": "ours", "pictures": 10, "before": 400, "peak": 500.0},
            {"size": 32, "way": "ours", "pictures": 100, "before": 400, "peak": 512.4},
        ],
    }
    text = report.render(results)
    assert "| ours | 94 (90 to 98) | 0.940 | 1.880 | 1.07 | 0.940 |" in text
    assert "| | 10 pictures, MB | 100 pictures, MB | decoded, MB |" in text
    assert "| 32 x 32, ours | 500 | 512 | 0 to 0 |" in text


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(tmp_path):
    """The peak includes what was there before."""
    folder = find_photographs(tmp_path, 32, 8)
    done = subprocess.run(
        [sys.executable, "-m", "bench.training.memory", "ours, not kept", folder, "32", "4"],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT / 'program'}", "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    record = json.loads(done.stdout)
    assert record["peak"] >= record["before"] > 10
