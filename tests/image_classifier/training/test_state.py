"""The state of a training, stored in a checkpoint and restored."""

import numpy as np

from algorithms.image_classifier.training.state import RunningMetrics, TrainingState
from backends.training.checkpoints import CheckpointStore


class Variables:
    """A trainer of one variable."""

    def __init__(self, value: float) -> None:
        self.value = np.array([value], np.float32)

    def read(self):
        return {"network": [self.value]}

    def restore(self, arrays) -> None:
        (self.value,) = arrays["network"]


def test_a_state_is_restored_exactly_from_disk(tmp_path):
    """Sums without a finite decimal form, labels, history, the best epoch's weights, and the variables."""
    metrics = RunningMetrics(loss=0.1 + 0.2, correct=3, weight=4, steps=2, labels={3, 1})
    best = {"epoch": 4, "val_loss": 1 / 3}
    state = TrainingState(5, metrics, 1.5, [best], best, [np.float32([[1 / 3]])])
    store = CheckpointStore(tmp_path, "algo-1", {})
    store.save(state.to_checkpoint(Variables(1 / 7)))

    other = Variables(0)
    found = TrainingState.from_checkpoint(store.load(store.steps()[-1]), other)
    assert (found.epoch, found.metrics, found.seconds) == (5, metrics, 1.5)
    assert (found.history, found.best) == ([best], best)
    np.testing.assert_array_equal(found.best_weights[0], state.best_weights[0])
    assert other.value == np.float32(1 / 7)
