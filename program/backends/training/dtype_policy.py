"""In which precision a network is trained: half of it where a GPU gains by it, never on a CPU."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tandem.errors import UserError
from tandem.runtime.devices import Decision

logger = logging.getLogger(__name__)

#: Keras's policies; `auto` chooses.
POLICIES = ("auto", "float32", "mixed_float16", "mixed_bfloat16")

_POLICY_OF = {"float32": "float32", "float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}


def choose_policy(wanted: str, decision: Decision) -> str:
    """Choose Keras's dtype policy and say why in a log line.

    `auto` is what pays on the GPUs that were decided on: mixed_bfloat16 from capability 8.0, mixed_float16
    from 7.0, else float32. On a CPU it is float32 whatever is wanted: half precision is computed there, but
    slower than single, so that a job's hyperparameters serve both kinds of instance.
    """
    if decision.device == "cpu":
        policy, reason = "float32", "mixed precision is for GPUs"
    elif wanted == "auto":
        policy, reason = _POLICY_OF[decision.precision], "what the GPUs gain by"
    else:
        policy, reason = wanted, "as the hyperparameter says"
    if wanted not in ("auto", policy):
        logger.warning("precision: %s instead of %s: %s", policy, wanted, reason)
    else:
        logger.info("precision: %s: %s", policy, reason)
    return policy


@contextmanager
def use_policy(name: str) -> Iterator[None]:
    """Make layers that are built meanwhile compute by Keras's policy `name`."""
    import keras

    if name == "mixed_float16" and not hasattr(keras.optimizers, "LossScaleOptimizer"):
        raise UserError("precision mixed_float16 needs Keras 3; this image has Keras 2: use float32.")
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)
