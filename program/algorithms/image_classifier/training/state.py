"""How far a training has come, as a checkpoint keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from algorithms.image_classifier.training.running_metrics import Tally
from algorithms.image_classifier.training.step import Trainer
from backends.training.checkpoints import Checkpoint


@dataclass
class Course:
    """How far a training has come: all of it that a checkpoint keeps beside the variables."""

    epoch: int = 1
    tally: Tally = field(default_factory=Tally)  # of this epoch's training pass
    seconds: float = 0.0  # that this pass took so far
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    best_weights: list[Any] = field(default_factory=list)

    def to_checkpoint(self, trainer: Trainer) -> Checkpoint:
        """Give all that is needed to go on from here."""
        self.tally.settle()
        state = {
            "tally": self.tally.as_dict(),
            "seconds": self.seconds,
            "history": self.history,
            "best": self.best,
        }
        arrays = {**trainer.read(), "best_weights": self.best_weights}
        return Checkpoint(self.epoch, self.tally.steps, arrays, state)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, trainer: Trainer) -> Course:
        """Take the variables back and give the course."""
        trainer.restore(checkpoint.arrays)
        state = checkpoint.state
        return cls(
            checkpoint.epoch,
            Tally.from_dict(state["tally"]),
            state["seconds"],
            state["history"],
            state["best"],
            checkpoint.arrays["best_weights"],
        )
