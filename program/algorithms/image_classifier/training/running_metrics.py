"""The sums of one pass over the pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tandem.errors import UserError

#: Steps between two looks at the loss; each look waits for the device.
LOOK_EVERY = 20


@dataclass
class Tally:
    """Sums over the pictures of one pass; what the device has not computed yet is pending."""

    loss: float = 0.0
    correct: float = 0.0
    weight: float = 0.0  # pictures that could be read
    steps: int = 0
    labels: set[int] = field(default_factory=set)  # that this host has seen
    pending: list[Any] = field(default_factory=list)

    def add(self, result: Any, labels: Any, weights: Any) -> None:
        """Take in one step: its (loss, correct, weight), and its rows' labels and weights."""
        self.steps += 1
        self.labels.update(labels.numpy()[weights.numpy() > 0].tolist())
        self.pending.append(result)
        if len(self.pending) >= LOOK_EVERY:
            self.settle()

    def skip(self) -> None:
        """Take in a step of which no row counts, and which was therefore not taken."""
        self.steps += 1

    def settle(self) -> None:
        """Wait for what is pending; raise `UserError` if the loss is not a number any more."""
        for result in self.pending:
            loss, correct, weight = result.numpy().tolist()
            self.loss += loss
            self.correct += correct
            self.weight += weight
        self.pending.clear()
        if not math.isfinite(self.loss):
            raise UserError(
                f"the loss became {self.loss}: the fit diverged. Lower the hyperparameter learning_rate."
            )

    def means(self, prefix: str = "") -> dict[str, float]:
        """Give the mean loss and accuracy of the pictures that are settled."""
        count = max(self.weight, 1.0)
        return {f"{prefix}loss": self.loss / count, f"{prefix}accuracy": self.correct / count}

    def as_dict(self) -> dict[str, Any]:
        """Give what is settled as plain data; floats survive JSON to the last bit."""
        return {
            "loss": self.loss,
            "correct": self.correct,
            "weight": self.weight,
            "steps": self.steps,
            "labels": sorted(self.labels),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Tally:
        """Give back what `as_dict` gave."""
        return cls(**{**stored, "labels": set(stored["labels"])})
