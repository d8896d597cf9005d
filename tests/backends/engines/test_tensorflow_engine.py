"""TensorFlow's environment, and the first op on a GPU."""

import pytest

from backends.engines import tensorflow_engine
from tandem.runtime.devices import Decision, Gpu

CPU = Decision("cpu", "a test")
GPU = Decision("gpu", "a test", (Gpu("Imaginary", "GPU-0", 1 << 34, (8, 0)),))


def test_the_environment_sets_the_device_and_the_cores(monkeypatch):
    """The variables are removed first, as an earlier test may have started TensorFlow in this process."""
    for name in tensorflow_engine.environment(GPU, cores=3):
        monkeypatch.delenv(name, raising=False)
    variables = tensorflow_engine.environment(GPU, cores=3)
    assert variables["CUDA_VISIBLE_DEVICES"] == "GPU-0"
    assert variables["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    assert variables["TF_NUM_INTRAOP_THREADS"] == "3"


def test_variables_that_are_set_are_kept_except_that_a_cpu_decision_hides_gpus(monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-0")
    assert tensorflow_engine.environment(GPU)["CUDA_VISIBLE_DEVICES"] == "GPU-0"
    variables = tensorflow_engine.environment(CPU)
    assert (variables["TF_CPP_MIN_LOG_LEVEL"], variables["CUDA_VISIBLE_DEVICES"]) == ("0", "-1")


def test_no_first_op_is_tried_on_a_cpu():
    assert tensorflow_engine.try_first_op(CPU, seconds=0) is None


@pytest.mark.slow
def test_a_gpu_that_tensorflow_does_not_find_is_reported_in_one_line():
    """TensorFlow's CPU build finds no GPU, nor does its GPU build without this one."""
    assert tensorflow_engine.try_first_op(GPU) == "TensorFlow finds no GPU, 1 expected"


def test_a_first_op_that_never_ends_is_stopped():
    assert "did not finish within" in tensorflow_engine.try_first_op(GPU, seconds=0.01)


def test_starting_without_the_selected_gpu_logs_a_warning(caplog):
    tensorflow_engine.start(GPU)
    assert "finds none" in caplog.text
