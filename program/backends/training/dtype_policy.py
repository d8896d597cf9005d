"""The precision of training: mixed on GPUs that are faster with it, always float32 on a CPU."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tandem.errors import UserError
from tandem.runtime.devices import Decision

logger = logging.getLogger(__name__)

#: Keras's policies; `auto` chooses one of the others.
POLICIES = ("auto", "float32", "mixed_float16", "mixed_bfloat16")

_POLICY_OF = {"float32": "float32", "float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}


def choose_policy(requested: str, decision: Decision) -> str:
    """Return the Keras dtype policy to train with, and log the reason.

    `auto` is the fastest on the GPUs decided on: mixed_bfloat16 from compute capability 8.0, mixed_float16
    from 7.0, else float32. On a CPU, where half precision is slower, float32 is always used,
    so that the same hyperparameters suit both kinds of instance.
    """
    if decision.device == "cpu":
        policy, reason = "float32", "mixed precision is only used on GPUs"
    elif requested == "auto":
        policy, reason = _POLICY_OF[decision.precision], "the fastest on these GPUs"
    else:
        policy, reason = requested, "set by the hyperparameter"
    if requested not in ("auto", policy):
        logger.warning("precision: %s instead of %s: %s", policy, requested, reason)
    else:
        logger.info("precision: %s: %s", policy, reason)
    return policy


@contextmanager
def use_policy(name: str) -> Iterator[None]:
    """Make layers that are built inside the context compute with Keras's dtype policy `name`."""
    import keras

    if name == "mixed_float16" and not hasattr(keras.optimizers, "LossScaleOptimizer"):
        raise UserError("precision mixed_float16 needs Keras 3, but this image has Keras 2: use float32.")
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)
