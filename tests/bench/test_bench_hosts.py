"""The experiment with several hosts: what it reads from a log, and when it calls curves equal."""

import subprocess
from types import SimpleNamespace

import pytest

from bench import cluster, hosts

LOG = """All 2 hosts answer.
epoch=1 loss=2 accuracy=0.5 val_loss=4 val_accuracy=0.5 images_per_second=10
epoch=2 loss=1 accuracy=0.6 val_loss=2 val_accuracy=0.5 images_per_second=30
epoch=3 loss=0.5 accuracy=0.7 val_loss=1 val_accuracy=0.5 images_per_second=50
training is done
"""


def test_a_curve_is_what_the_first_host_logged():
    """The first epoch traces graphs, so its speed does not count."""
    curve = hosts.Curve.read("2 hosts", [SimpleNamespace(log=LOG), SimpleNamespace(log="")])
    assert curve == hosts.Curve("2 hosts", [2, 1, 0.5], [4, 2, 1], 40)


def test_curves_are_as_far_apart_as_their_worst_point():
    one = hosts.Curve("1 host", [2, 1], [4, 2], 20)
    other = hosts.Curve("2 hosts", [2.02, 1], [4, 1.9], 30)
    assert other.compare(one) == pytest.approx(0.05)
    assert "| 2 hosts | 30 | 1.50 | 1.00000 | 1.90000 | 5.000% |" in hosts.render([one, other], [], 0.5)


def test_each_host_that_was_left_is_quoted():
    loss = hosts.Loss(
        "algo-2 is killed", [1.0, 2.5], [1, 1], ["algo-1: host algo-2 was lost.", "algo-3: so."]
    )
    row = "| algo-2 is killed | 1.0 s and 2.5 s | 1 and 1 | algo-1: host algo-2 was lost.<br>algo-3: so. |"
    assert row in hosts.render([], [loss], 0)


def test_the_pictures_are_drawn(tmp_path):
    curves = [hosts.Curve(f"{count} hosts", [2, 1], [4, 2], 20) for count in (1, 2)]
    hosts.draw(curves, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_host_has_no_more_than_its_share_of_the_cpu():
    """The kernel counts the periods in which it held the process back."""
    burn = (
        "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\nprint('done')"
    )
    try:
        with cluster.limit_cpu("tandem-test-share", 0.1) as share:
            group = next(
                path for path in cluster.CGROUPS.rglob("tandem-test-share") if (path / "cpu.stat").exists()
            )
            done = subprocess.run(
                [*share, "python3", "-c", burn], capture_output=True, text=True, timeout=60, check=True
            )
            counted = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
    except OSError as error:
        pytest.skip(f"no control group of the CPU can be made here: {error}")
    assert done.stdout == "done\n"
    assert int(counted["nr_throttled"]) > 0
