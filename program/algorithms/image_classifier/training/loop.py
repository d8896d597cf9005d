"""The training loop: epochs, early stopping, checkpoints, and leaving at once when stopped."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from algorithms.image_classifier.data.source import Source
from algorithms.image_classifier.training.state import RunningMetrics, TrainingState
from algorithms.image_classifier.training.step import Trainer
from backends.training.checkpoints import CheckpointStore
from backends.training.distribution import DistributedContext
from tandem.errors import UserError
from tandem.metrics import format_metrics

logger = logging.getLogger(__name__)

#: Steps after which several hosts agree on whether to stop or to save; each agreement waits for all of them.
STEPS_PER_AGREEMENT = 20

#: Called after each epoch with the epoch, its metrics and the network.
Observe = Callable[[int, Mapping[str, float], Any], None]


@dataclass(frozen=True)
class Plan:
    """How to train; `patience` 0 turns early stopping off, `progress` shows a bar on the terminal."""

    epochs: int
    patience: int = 0
    checkpoint_seconds: float = 300.0
    progress: bool = False


@dataclass(frozen=True)
class Outcome:
    """The metrics of the final weights, and those of each finished epoch."""

    metrics: dict[str, float]
    history: list[dict[str, float]]


class Fit:
    """One training, which `run` takes through its epochs."""

    def __init__(
        self,
        trainer: Trainer,
        training: Source,
        validation: Source,
        plan: Plan,
        *,
        team: DistributedContext,
        stop: threading.Event,
        observers: Sequence[Observe] = (),
        store: CheckpointStore | None = None,
    ) -> None:
        self._trainer = trainer
        self._training = training
        self._validation = validation
        self._plan = plan
        self._team = team
        self._stop = stop
        self._observers = observers
        self._store = store
        self._saved_at = time.monotonic()
        self._stopped = False

    def run(self) -> Outcome:
        """Train the network, log one line per epoch, and return the metrics of the final weights.

        It returns right after the step in which `stop` was set. With patience it ends after that many epochs
        without a lower val_loss and restores the weights of the best epoch, also after a stop. With a store
        it continues from the newest checkpoint that all hosts have. Raises `UserError` if fewer than two
        classes are readable, or training diverges.
        """
        state = self._resume()
        metrics = dict(state.history[-1]) if state.history else {}
        while state.epoch <= self._plan.epochs and not self._is_patience_exhausted(state):
            self._train(state)
            metrics = {"epoch": state.epoch, **state.metrics.means()}
            if not self._stopped:
                self._check_labels(state.metrics)
                validation = self._measure()
            if self._stopped:
                self._save_before_leaving(state)
                logger.info(
                    "Stopped in epoch %s after %s steps of it; saving the model so far.",
                    *(state.epoch, state.metrics.steps),
                )
                break
            metrics |= validation.means("val_")
            self._end_epoch(state, metrics)
        if state.best and state.best is not metrics:
            self._trainer.network.set_weights(state.best_weights)
            if state.best != metrics:
                logger.info("Restored the weights of the best epoch: %s", format_metrics(state.best))
            metrics = state.best
        return Outcome(metrics, state.history)

    def _resume(self) -> TrainingState:
        """Return the state of the newest checkpoint that every host can read, or a new one."""
        if self._store is None:
            return TrainingState()
        hosts = self._team.exchange([list(step) for step in self._store.steps()])
        common = set.intersection(*({(epoch, step) for epoch, step in steps} for steps in hosts))
        if not common:
            return TrainingState()
        state = TrainingState.from_checkpoint(self._store.load(max(common)), self._trainer)
        logger.info("Continuing from the checkpoint of epoch %s, step %s.", state.epoch, state.metrics.steps)
        return state

    def _is_patience_exhausted(self, state: TrainingState) -> bool:
        """Return whether the last epochs brought no lower val_loss."""
        exhausted = bool(
            self._plan.patience
            and state.best
            and state.epoch - 1 - state.best["epoch"] >= self._plan.patience
        )
        if exhausted:
            logger.info("No lower val_loss for %s epochs; ending early.", self._plan.patience)
        return exhausted

    def _train(self, state: TrainingState) -> None:
        """Run the remaining steps of an epoch, or those up to the one in which the job is stopped."""
        before = (state.epoch - 1) * self._training.steps
        progress = Progress(state.epoch, self._plan, self._training.steps) if self._plan.progress else None
        started = time.monotonic() - state.seconds
        for batch in self._training.batches(state.epoch, state.metrics.steps):
            if self._is_empty(batch):
                state.metrics.skip()
            else:
                state.metrics.add(self._trainer.train(before + state.metrics.steps, batch), *batch[1:])
            logger.debug("epoch %s: step %s", state.epoch, state.metrics.steps)
            state.seconds = time.monotonic() - started
            self._training.check()
            if progress:
                progress.update(state.metrics)
            stop, save = self._agree(state.metrics.steps)
            if stop:
                self._stopped = True
                break
            if save:
                self._save(state)
        self._stopped = self._stopped or self._may_have_ended_early()
        state.metrics.settle()
        state.seconds = time.monotonic() - started
        self._training.check()
        if progress:
            progress.close(state.metrics)

    def _measure(self) -> RunningMetrics:
        """Measure on the validation images."""
        metrics = RunningMetrics()
        for batch in self._validation.batches(1):
            metrics.add(self._trainer.measure(batch), *batch[1:])
            self._validation.check()
            if self._agree(metrics.steps)[0]:
                self._stopped = True
                return metrics
        metrics.settle()
        self._validation.check()
        if self._may_have_ended_early():
            self._stopped = True
            return metrics
        if not metrics.weight:
            raise UserError("no validation image was readable; the log has their names and the reasons.")
        return metrics

    def _end_epoch(self, state: TrainingState, metrics: dict[str, float]) -> None:
        reported = {**metrics, "images_per_second": state.metrics.weight / max(state.seconds, 1e-9)}
        logger.info("%s", format_metrics(reported))
        state.history.append(metrics)
        for observe in self._observers:
            observe(state.epoch, reported, self._trainer.network)
        if self._plan.patience and (not state.best or metrics["val_loss"] < state.best["val_loss"]):
            state.best, state.best_weights = metrics, self._trainer.network.get_weights()
        state.epoch, state.metrics, state.seconds = state.epoch + 1, RunningMetrics(), 0.0
        self._save(state)

    def _agree(self, steps: int) -> tuple[bool, bool]:
        """Return whether to stop and whether to save, the same on every host and after the same step."""
        due = self._store is not None and (time.monotonic() - self._saved_at >= self._plan.checkpoint_seconds)
        if len(self._team.hosts) == 1:
            return self._stop.is_set(), due
        if steps % STEPS_PER_AGREEMENT:
            return False, False
        hosts = self._team.exchange([self._stop.is_set(), due])
        return any(stop for stop, _ in hosts), any(save for _, save in hosts)

    def _may_have_ended_early(self) -> bool:
        """Return whether a stop may have ended a pass early; with several hosts a source never ends so."""
        return len(self._team.hosts) == 1 and self._stop.is_set()

    def _save(self, state: TrainingState) -> None:
        if self._store is None:
            return
        self._store.save(state.to_checkpoint(self._trainer))
        self._saved_at = time.monotonic()

    def _save_before_leaving(self, state: TrainingState) -> None:
        """Save a checkpoint; a failure is only logged, because the model so far is still to be written."""
        if not state.history and not state.metrics.steps:
            raise UserError("the job was stopped before its first step, so there is no model to save.")
        try:
            self._save(state)
        except UserError as error:
            logger.warning("The last checkpoint could not be written: %s", error)

    def _is_empty(self, batch: Sequence[Any]) -> bool:
        """Return whether no row of a batch counts, so that the step would only change averages.

        With several hosts no step is skipped, because they run their steps together.
        """
        return len(self._team.hosts) == 1 and not batch[2].numpy().any()

    def _check_labels(self, metrics: RunningMetrics) -> None:
        """Raise `UserError` unless the hosts have seen at least two classes."""
        labels = {label for host in self._team.exchange(sorted(metrics.labels)) for label in host}
        if len(labels) < 2:
            raise UserError(
                f"the readable training images are of {len(labels)} class(es); expected two or "
                "more. The log names the unreadable ones."
            )


class Progress:
    """Keras's progress bar, for one pass."""

    def __init__(self, epoch: int, plan: Plan, steps: int) -> None:
        import keras

        sys.stdout.write(f"Epoch {epoch}/{plan.epochs}\n")
        self._bar = keras.utils.Progbar(steps, stateful_metrics=["loss", "accuracy"])

    def update(self, metrics: RunningMetrics) -> None:
        """Show the last step, after waiting for its result."""
        metrics.settle()
        self._bar.update(metrics.steps, list(metrics.means().items()), finalize=False)

    def close(self, metrics: RunningMetrics) -> None:
        """Show the whole pass and end the line."""
        self._bar.update(metrics.steps, list(metrics.means().items()), finalize=True)
