"""A training's course through a checkpoint and back."""

import numpy as np

from algorithms.image_classifier.training.running_metrics import Tally
from algorithms.image_classifier.training.state import Course
from backends.training.checkpoints import CheckpointStore


class Variables:
    """A trainer of one variable."""

    def __init__(self, value: float) -> None:
        self.value = np.array([value], np.float32)

    def read(self):
        return {"network": [self.value]}

    def restore(self, arrays) -> None:
        (self.value,) = arrays["network"]


def test_a_course_comes_back_from_the_disk_to_the_last_bit(tmp_path):
    """Sums that no decimal writes, labels, history, the best epoch and its weights, and the variables."""
    tally = Tally(loss=0.1 + 0.2, correct=3, weight=4, steps=2, labels={3, 1})
    best = {"epoch": 4, "val_loss": 1 / 3}
    course = Course(5, tally, 1.5, [best], best, [np.float32([[1 / 3]])])
    store = CheckpointStore(tmp_path, "algo-1", {})
    store.save(course.to_checkpoint(Variables(1 / 7)))

    other = Variables(0)
    found = Course.from_checkpoint(store.load(store.steps()[-1]), other)
    assert (found.epoch, found.tally, found.seconds) == (5, tally, 1.5)
    assert (found.history, found.best) == ([best], best)
    np.testing.assert_array_equal(found.best_weights[0], course.best_weights[0])
    assert other.value == np.float32(1 / 7)
