"""Which precision a network is trained in."""

import logging

import pytest

from backends.training.dtype_policy import choose_policy, use_policy
from tandem.runtime.devices import Decision

GPUS = {
    word: Decision(device="gpu", reason="", precision=word) for word in ("float32", "float16", "bfloat16")
}
CPU = Decision(device="cpu", reason="")


@pytest.mark.parametrize(
    ("wanted", "decision", "policy"),
    [
        ("auto", CPU, "float32"),
        ("auto", GPUS["float32"], "float32"),
        ("auto", GPUS["float16"], "mixed_float16"),
        ("auto", GPUS["bfloat16"], "mixed_bfloat16"),
        ("float32", GPUS["bfloat16"], "float32"),
        ("mixed_float16", GPUS["bfloat16"], "mixed_float16"),
        ("mixed_bfloat16", CPU, "float32"),
    ],
)
def test_half_precision_is_for_gpus_that_gain_by_it(wanted, decision, policy, caplog):
    """A wish that the device does not grant is told as a warning, and the job goes on."""
    caplog.set_level(logging.INFO)
    assert choose_policy(wanted, decision) == policy
    (record,) = caplog.records
    assert (record.levelno == logging.WARNING) is (wanted not in ("auto", policy))
    assert policy in record.getMessage()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_layers_built_meanwhile_compute_by_the_policy_and_later_ones_do_not():
    """Their variables, which are what is stored, stay float32."""
    import keras

    with use_policy("mixed_bfloat16"):
        half = keras.layers.Dense(2)
    half.build((None, 3))
    assert half.compute_dtype == "bfloat16"
    assert half.kernel.dtype == "float32"
    assert keras.layers.Dense(2).compute_dtype == "float32"
