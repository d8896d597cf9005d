"""Replicas on one host, and on several hosts in network namespaces, train as one."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from backends.training.distribution import DistributedContext, create_context, make_tf_config
from conftest import CPU, ROOT
from hosts import run_hosts
from sample_images import write_images

TOY = "fixtures.toy_distributed"
#: The largest relative difference of the losses after 15 steps of Adam, due to the order of float32 sums.
TOLERANCE = 2e-4

SINGLE_HOST = """
import json, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from backends.training.distribution import DistributedContext
from fixtures import toy_distributed
strategies = [tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])]
contexts = [DistributedContext(strategy, ("algo-1",), 0) for strategy in strategies]
assert [part.numpy().tolist() for part in contexts[1]._gather([1.0, 2.0])] == [[2], [1.0, 2.0]]
print(json.dumps([[each.replicas, each.local_replicas, toy_distributed.fit(each)[0]] for each in contexts]))
"""


@pytest.fixture(scope="module")
def single_host():
    """(replicas, local replicas, losses) of a training on one replica, and on two replicas of one host."""
    done = subprocess.run(
        [sys.executable, "-c", SINGLE_HOST],
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
    """The platform sorts names as text, so algo-10 comes before algo-2."""
    assert make_tf_config(["algo-1", "algo-10", "algo-2"], "algo-2") == {
        "cluster": {"worker": ["algo-1:8890", "algo-10:8890", "algo-2:8890"]},
        "task": {"type": "worker", "index": 2},
    }


def test_one_host_without_gpus_has_one_replica():
    context = create_context(CPU, ["algo-1"], "algo-1")
    assert (context.replicas, context.local_replicas, context.rank, context.hosts) == (1, 1, 0, ("algo-1",))
    assert context.exchange({"a": (1, 2)}) == [{"a": [1, 2]}]


def test_errors_on_a_single_host_are_raised_unchanged():
    with pytest.raises(ZeroDivisionError), DistributedContext(None, ("algo-1",), 0).guard():
        1 / 0  # noqa: B018


def test_two_replicas_on_one_host_have_the_losses_of_one(single_host):
    (one, local, expected), (two, both, losses) = single_host
    assert (one, local, two, both) == (1, 1, 2, 2)
    assert expected[-1] < expected[0]
    np.testing.assert_allclose(losses, expected, rtol=TOLERANCE)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_hosts_have_the_losses_of_one(tmp_path, single_host, count):
    """Also with shares of different sizes; only the first host writes the model."""
    with run_hosts(tmp_path, count, TOY) as hosts:
        assert [host.wait() for host in hosts] == [0] * count, [host.log for host in hosts]
    written = [json.loads((host.root / "output" / "losses.json").read_text()) for host in hosts]
    for losses, ranks in written:
        np.testing.assert_allclose(losses, single_host[0][2], rtol=TOLERANCE)
        assert ranks == [{"rank": rank, "name": f"algo-{rank + 1}", "é": None} for rank in range(count)]
    assert [losses for losses, _ in written] == [written[0][0]] * count
    models = [(host.root / "model" / "weights.npz").exists() for host in hosts]
    assert models == [True] + [False] * (count - 1)


@pytest.mark.parametrize(
    ("count", "lost"),
    [(2, 1), pytest.param(3, 0, marks=pytest.mark.slow), pytest.param(3, 1, marks=pytest.mark.slow)],
)
def test_after_a_host_is_killed_the_others_fail_with_its_name(tmp_path, count, lost):
    """Also after the first host is killed, which runs TensorFlow's coordination service."""
    with run_hosts(tmp_path, count, TOY, {"fail": f"{lost}:4:kill"}) as hosts:
        others = [host for host in hosts if host is not hosts[lost]]
        assert [host.wait() for host in others] == [1] * (count - 1), [host.log for host in hosts]
    for host in others:
        assert f"host algo-{lost + 1} was lost" in host.failure, host.failure
        assert "Traceback" not in host.failure


@pytest.mark.slow
def test_a_host_without_heartbeats_is_lost(tmp_path):
    """Its connections stay open, as when a host is cut off from the network."""
    with run_hosts(tmp_path, 2, TOY, {"fail": "1:4:silent"}) as hosts:
        assert hosts[0].wait() == 1
        hosts[1].kill()
    assert "host algo-2 was lost: no heartbeat for 30 s." in hosts[0].failure


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fail", "failing", "cause"),
    [("1:4:raise", 1, "the loss became nan"), ("0:-1:write", 0, "the disk is full: make room.")],
)
def test_all_hosts_report_the_failure_of_one(tmp_path, fail, failing, cause):
    """During training, and while the others wait for the first host to write the model."""
    with run_hosts(tmp_path, 2, TOY, {"fail": fail}) as hosts:
        assert [host.wait() for host in hosts] == [1, 1], [host.log for host in hosts]
    assert hosts[failing].failure.startswith(cause)
    other = hosts[1 - failing].failure
    assert other.startswith(f"host algo-{failing + 1} failed: {cause}"), other
    assert other.endswith("The training cannot continue without that host.")


def test_a_host_that_does_not_start_in_time_is_named(tmp_path):
    with run_hosts(tmp_path, 2, TOY, {"seconds": 5, "fail": "1:0:absent"}) as hosts:
        hosts[1].kill()
        assert hosts[0].wait() == 1
    assert "algo-1 waited 5 s for 1 other host(s), but some did not answer: algo-2 (" in hosts[0].failure


@pytest.mark.slow
def test_the_image_classifier_trains_on_two_hosts(tmp_path):
    """With dropout and augmentation, both log the same metrics, and only the first writes a model."""
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
    assert (hosts[0].root / "model" / "openvino" / "model.xml").exists()
    assert not any((hosts[1].root / "model").iterdir())
