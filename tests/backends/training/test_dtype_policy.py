"""The choice of the training precision."""

import logging

import pytest

from backends.training.dtype_policy import choose_policy, use_policy
from tandem.runtime.devices import Decision

GPUS = {
    word: Decision(device="gpu", reason="", precision=word) for word in ("float32", "float16", "bfloat16")
}
CPU = Decision(device="cpu", reason="")


@pytest.mark.parametrize(
    ("requested", "decision", "policy"),
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
def test_mixed_precision_is_used_on_gpus_that_are_faster_with_it(requested, decision, policy, caplog):
    """A request that the device does not support is only a warning."""
    caplog.set_level(logging.INFO)
    assert choose_policy(requested, decision) == policy
    (record,) = caplog.records
    assert (record.levelno == logging.WARNING) is (requested not in ("auto", policy))
    assert policy in record.getMessage()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_only_layers_built_inside_the_context_use_the_policy():
    """Their variables, which are stored, remain float32."""
    import keras

    with use_policy("mixed_bfloat16"):
        half = keras.layers.Dense(2)
    half.build((None, 3))
    assert half.compute_dtype == "bfloat16"
    assert half.kernel.dtype == "float32"
    assert keras.layers.Dense(2).compute_dtype == "float32"
