"""The state of a training that a checkpoint stores, and the running metrics of a pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from algorithms.image_classifier.training.step import Trainer
from backends.training.checkpoints import Checkpoint
from tandem.errors import UserError

#: Steps between two reads of the loss; each read waits for the device.
MAX_PENDING = 20


@dataclass
class RunningMetrics:
    """Sums over the images of one pass; results that the device has not computed yet are pending."""

    loss: float = 0.0
    correct: float = 0.0
    weight: float = 0.0  # the number of readable images
    steps: int = 0
    labels: set[int] = field(default_factory=set)  # that this host has seen
    pending: list[Any] = field(default_factory=list)

    def add(self, result: Any, labels: Any, weights: Any) -> None:
        """Add a step: its (loss, correct, weight), and its rows' labels and weights."""
        self.steps += 1
        self.labels.update(labels.numpy()[weights.numpy() > 0].tolist())
        self.pending.append(result)
        if len(self.pending) >= MAX_PENDING:
            self.settle()

    def skip(self) -> None:
        """Count a step that was skipped because none of its rows counts."""
        self.steps += 1

    def settle(self) -> None:
        """Wait for the pending results; raise `UserError` if the loss is not finite any more."""
        for result in self.pending:
            loss, correct, weight = result.numpy().tolist()
            self.loss += loss
            self.correct += correct
            self.weight += weight
        self.pending.clear()
        if not math.isfinite(self.loss):
            raise UserError(
                f"the loss became {self.loss}: training diverged. Lower the hyperparameter learning_rate."
            )

    def means(self, prefix: str = "") -> dict[str, float]:
        """Return the mean loss and accuracy of the settled images."""
        count = max(self.weight, 1.0)
        return {f"{prefix}loss": self.loss / count, f"{prefix}accuracy": self.correct / count}

    def as_dict(self) -> dict[str, Any]:
        """Return the settled sums as plain data; floats survive JSON exactly."""
        return {
            "loss": self.loss,
            "correct": self.correct,
            "weight": self.weight,
            "steps": self.steps,
            "labels": sorted(self.labels),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> RunningMetrics:
        """Return the metrics that `as_dict` wrote."""
        return cls(**{**stored, "labels": set(stored["labels"])})


@dataclass
class TrainingState:
    """The progress of a training: everything that a checkpoint stores besides the variables."""

    epoch: int = 1
    metrics: RunningMetrics = field(default_factory=RunningMetrics)  # of this epoch's training pass
    seconds: float = 0.0  # that this pass has taken so far
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    best_weights: list[Any] = field(default_factory=list)

    def to_checkpoint(self, trainer: Trainer) -> Checkpoint:
        """Return everything that is needed to continue from here."""
        self.metrics.settle()
        state = {
            "tally": self.metrics.as_dict(),
            "seconds": self.seconds,
            "history": self.history,
            "best": self.best,
        }
        arrays = {**trainer.read(), "best_weights": self.best_weights}
        return Checkpoint(self.epoch, self.metrics.steps, arrays, state)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, trainer: Trainer) -> TrainingState:
        """Restore the trainer's variables and return the state."""
        trainer.restore(checkpoint.arrays)
        state = checkpoint.state
        return cls(
            checkpoint.epoch,
            RunningMetrics.from_dict(state["tally"]),
            state["seconds"],
            state["history"],
            state["best"],
            checkpoint.arrays["best_weights"],
        )
