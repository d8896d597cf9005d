"""Several replicas of a network train as one: on one host, and on real hosts, each with its own network."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from backends.training.distribution import Team, form_team, make_tf_config
from conftest import CPU, ROOT
from hosts import run_hosts
from sample_images import write_images

TOY = "fixtures.toy_team"
#: Float32 sums in another order: after 15 steps of Adam the losses differ by no more than this.
TOLERANCE = 2e-4

ALONE = """
import json, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from backends.training.distribution import Team
from fixtures import toy_team
strategies = [tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])]
teams = [Team(strategy, ("algo-1",), 0) for strategy in strategies]
assert [part.numpy().tolist() for part in teams[1]._join([1.0, 2.0])] == [[2], [1.0, 2.0]]
print(json.dumps([[team.replicas, team.local_replicas, toy_team.fit(team)[0]] for team in teams]))
"""


@pytest.fixture(scope="module")
def alone():
    """What the toy does on one replica, and on two of one host: (replicas, local replicas, losses) each."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'program'}:{ROOT / 'tests'}",
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_CPP_MIN_LOG_LEVEL": "2",
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_one_host_needs_no_tf_config():
    assert make_tf_config(["algo-1"], "algo-1") is None


def test_every_host_is_a_worker_in_the_platforms_order():
    """It sorts as text, so algo-10 comes before algo-2."""
    assert make_tf_config(["algo-1", "algo-10", "algo-2"], "algo-2") == {
        "cluster": {"worker": ["algo-1:8890", "algo-10:8890", "algo-2:8890"]},
        "task": {"type": "worker", "index": 2},
    }


def test_one_host_without_gpus_is_a_team_of_one():
    team = form_team(CPU, ["algo-1"], "algo-1")
    assert (team.replicas, team.local_replicas, team.rank, team.hosts) == (1, 1, 0, ("algo-1",))
    assert team.exchange({"a": (1, 2)}) == [{"a": [1, 2]}]


def test_a_team_of_one_lets_errors_through_as_they_are():
    with pytest.raises(ZeroDivisionError), Team(None, ("algo-1",), 0).guard():
        1 / 0  # noqa: B018


def test_two_replicas_of_one_host_learn_what_one_does(alone):
    (one, local, expected), (two, both, losses) = alone
    assert (one, local, two, both) == (1, 1, 2, 2)
    assert expected[-1] < expected[0]
    np.testing.assert_allclose(losses, expected, rtol=TOLERANCE)


@pytest.mark.parametrize("count", [2, 3])
def test_hosts_learn_together_what_one_does_alone(tmp_path, alone, count):
    """The same loss at each step, uneven shares included; the first host writes, and all end well."""
    with run_hosts(tmp_path, count, TOY) as hosts:
        assert [host.wait() for host in hosts] == [0] * count, [host.log for host in hosts]
    told = [json.loads((host.root / "output" / "losses.json").read_text()) for host in hosts]
    for losses, ranks in told:
        np.testing.assert_allclose(losses, alone[0][2], rtol=TOLERANCE)
        assert ranks == [{"rank": rank, "name": f"algo-{rank + 1}", "é": None} for rank in range(count)]
    assert [losses for losses, _ in told] == [told[0][0]] * count
    written = [(host.root / "model" / "weights.npz").exists() for host in hosts]
    assert written == [True] + [False] * (count - 1)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_host_ends_the_others_with_its_name(tmp_path, lost):
    """Also the first host, which keeps TensorFlow's list of who is alive."""
    with run_hosts(tmp_path, 3, TOY, {"fail": f"{lost}:4:kill"}) as hosts:
        others = [host for host in hosts if host is not hosts[lost]]
        assert [host.wait() for host in others] == [1, 1], [host.log for host in hosts]
    for host in others:
        assert f"host algo-{lost + 1} was lost" in host.failure, host.failure
        assert "Traceback" not in host.failure


def test_a_silent_host_is_lost_too(tmp_path):
    """One that keeps its connections open and does nothing, as one off the network does."""
    with run_hosts(tmp_path, 2, TOY, {"fail": "1:4:silent"}) as hosts:
        assert hosts[0].wait() == 1
        hosts[1].kill()
    assert "host algo-2 was lost: no sign of life for 30 s." in hosts[0].failure


@pytest.mark.parametrize(
    ("fail", "failing", "cause"),
    [("1:4:raise", 1, "the loss became nan"), ("0:-1:write", 0, "the disk is full: make room.")],
)
def test_a_failure_on_one_host_is_the_reason_of_all(tmp_path, fail, failing, cause):
    """While training, and while the first host writes the model and the others wait for it."""
    with run_hosts(tmp_path, 2, TOY, {"fail": fail}) as hosts:
        assert [host.wait() for host in hosts] == [1, 1], [host.log for host in hosts]
    assert hosts[failing].failure.startswith(cause)
    other = hosts[1 - failing].failure
    assert other.startswith(f"host algo-{failing + 1} failed: {cause}"), other
    assert other.endswith("The training cannot go on without that host.")


def test_a_host_that_never_starts_is_named(tmp_path):
    """The others wait for it, but not for ever."""
    with run_hosts(tmp_path, 2, TOY, {"seconds": 5, "fail": "1:0:absent"}) as hosts:
        hosts[1].kill()
        assert hosts[0].wait() == 1
    assert "algo-1 waited 5 s for 1 other host(s), and in vain for algo-2 (" in hosts[0].failure


def test_the_image_classifier_trains_on_two_hosts(tmp_path):
    """With dropout and augmentation: both log the same numbers, and only the first leaves a model."""
    folder = write_images(tmp_path / "pictures")
    hyperparameters = {"epochs": 2, "batch_size": 16}
    with run_hosts(
        tmp_path, 2, "algorithms.image_classifier", hyperparameters, {"training": folder}
    ) as hosts:
        assert [host.wait() for host in hosts] == [0, 0], [host.log for host in hosts]
    epochs = [re.findall(r"(?m)^(epoch=\d+ .*) images_per_second", host.log) for host in hosts]
    assert len(epochs[0]) == 2
    assert epochs[0] == epochs[1]
    assert (hosts[0].root / "model" / "manifest.json").exists()
    assert not any((hosts[1].root / "model").iterdir())
