"""The loop that fits a network: epochs, early stopping, checkpoints, and leaving at once when stopped."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from algorithms.image_classifier.data.sources import Source
from algorithms.image_classifier.training.running_metrics import Tally
from algorithms.image_classifier.training.state import Course
from algorithms.image_classifier.training.step import Trainer
from backends.training.checkpoints import CheckpointStore
from backends.training.distribution import DistributedContext
from tandem.errors import UserError
from tandem.metrics import format_metrics

logger = logging.getLogger(__name__)

#: Steps after which several hosts agree on whether to leave or to save; each agreement waits for all of them.
AGREE_EVERY = 20

#: Called with the epoch, its numbers and the network, after each epoch.
Observe = Callable[[int, Mapping[str, float], Any], None]


@dataclass(frozen=True)
class Plan:
    """How to fit; `patience` 0 means to go through all epochs, `progress` to show a bar on the terminal."""

    epochs: int
    patience: int = 0
    checkpoint_seconds: float = 300.0
    progress: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a training ended with: the numbers of its weights, and each finished epoch's."""

    metrics: dict[str, float]
    history: list[dict[str, float]]


class Fit:
    """One training: `run` goes through the epochs; what it shares with its parts is here."""

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
        """Fit the network and log one line an epoch; give the numbers of the weights it ends with.

        It leaves right after the step in which `stop` was set. With patience it ends after so many epochs
        without a lower val_loss, and the weights of the best epoch come back, also after a stop. With a store
        it goes on from the newest checkpoint that all hosts have. Raises `UserError` if fewer than two
        classes can be read, or the fit diverges.
        """
        course = self._resume()
        metrics = dict(course.history[-1]) if course.history else {}
        while course.epoch <= self._plan.epochs and not self._has_lost_patience(course):
            self._train(course)
            seen = {"epoch": course.epoch, **course.tally.means()}
            if not self._stopped:
                self._check_labels(course.tally)
                held = self._measure()
            if self._stopped:
                metrics = seen
                self._save_at_last(course)
                logger.info(
                    "Stopped in epoch %s after %s steps of it; saving the model so far.",
                    *(course.epoch, course.tally.steps),
                )
                break
            metrics = seen | held.means("val_")
            self._end_epoch(course, metrics)
        if course.best and course.best is not metrics:
            self._trainer.network.set_weights(course.best_weights)
            if course.best != metrics:
                logger.info("The weights of the best epoch are back: %s", format_metrics(course.best))
            metrics = course.best
        return Outcome(metrics, course.history)

    def _resume(self) -> Course:
        """Go on from the newest checkpoint that every host can read, or start."""
        if self._store is None:
            return Course()
        held = self._team.exchange([list(step) for step in self._store.steps()])
        common = set.intersection(*({(epoch, step) for epoch, step in one} for one in held))
        if not common:
            return Course()
        course = Course.from_checkpoint(self._store.load(max(common)), self._trainer)
        logger.info("Going on from the checkpoint of epoch %s, step %s.", course.epoch, course.tally.steps)
        return course

    def _has_lost_patience(self, course: Course) -> bool:
        """Whether the last epochs brought no lower val_loss."""
        lost = bool(
            self._plan.patience
            and course.best
            and course.epoch - 1 - course.best["epoch"] >= self._plan.patience
        )
        if lost:
            logger.info("No lower val_loss for %s epochs; ending early.", self._plan.patience)
        return lost

    def _train(self, course: Course) -> None:
        """Take the rest of an epoch's steps, or those up to the one in which the job is stopped."""
        before = (course.epoch - 1) * self._training.steps
        progress = Progress(course.epoch, self._plan, self._training.steps) if self._plan.progress else None
        started = time.monotonic() - course.seconds
        for batch in self._training.batches(course.epoch, course.tally.steps):
            if self._is_empty(batch):
                course.tally.skip()
            else:
                course.tally.add(self._trainer.train(before + course.tally.steps, batch), *batch[1:])
            logger.debug("epoch %s: step %s", course.epoch, course.tally.steps)
            course.seconds = time.monotonic() - started
            self._training.check()
            if progress:
                progress.show(course.tally)
            leave, save = self._agree(course.tally.steps)
            if leave:
                self._stopped = True
                break
            if save:
                self._save(course)
        self._stopped = self._stopped or self._has_ended_early()
        course.tally.settle()
        course.seconds = time.monotonic() - started
        self._training.check()
        if progress:
            progress.close(course.tally)

    def _measure(self) -> Tally:
        """Measure on the validation pictures."""
        tally = Tally()
        for batch in self._validation.batches(1):
            tally.add(self._trainer.measure(batch), *batch[1:])
            self._validation.check()
            if self._agree(tally.steps)[0]:
                self._stopped = True
                return tally
        tally.settle()
        self._validation.check()
        if self._has_ended_early():
            self._stopped = True
            return tally
        if not tally.weight:
            raise UserError("no picture for validation could be read; the log names them and the reasons.")
        return tally

    def _end_epoch(self, course: Course, metrics: dict[str, float]) -> None:
        speed = course.tally.weight / max(course.seconds, 1e-9)
        logger.info("%s", format_metrics({**metrics, "images_per_second": speed}))
        course.history.append(metrics)
        for observe in self._observers:
            observe(course.epoch, {**metrics, "images_per_second": speed}, self._trainer.network)
        if self._plan.patience and (not course.best or metrics["val_loss"] < course.best["val_loss"]):
            course.best, course.best_weights = metrics, self._trainer.network.get_weights()
        course.epoch, course.tally, course.seconds = course.epoch + 1, Tally(), 0.0
        self._save(course)

    def _agree(self, steps: int) -> tuple[bool, bool]:
        """Decide whether to leave and whether to save, the same on every host and after the same step."""
        due = self._store is not None and (time.monotonic() - self._saved_at >= self._plan.checkpoint_seconds)
        if len(self._team.hosts) == 1:
            return self._stop.is_set(), due
        if steps % AGREE_EVERY:
            return False, False
        said = self._team.exchange([self._stop.is_set(), due])
        return any(leave for leave, _ in said), any(save for _, save in said)

    def _has_ended_early(self) -> bool:
        """Whether a pass may have ended because its source waits no longer; of several hosts none does so."""
        return len(self._team.hosts) == 1 and self._stop.is_set()

    def _save(self, course: Course) -> None:
        if self._store is None:
            return
        self._store.save(course.to_checkpoint(self._trainer))
        self._saved_at = time.monotonic()

    def _save_at_last(self, course: Course) -> None:
        """Save where the job is stopped, if that can be: the model so far is still to be written."""
        if not course.history and not course.tally.steps:
            raise UserError("the job was stopped before its first step, so there is no model to save.")
        try:
            self._save(course)
        except UserError as error:
            logger.warning("The last checkpoint could not be written: %s", error)

    def _is_empty(self, batch: Sequence[Any]) -> bool:
        """Whether no row of a batch counts; a step would only move averages. Several hosts step together."""
        return len(self._team.hosts) == 1 and not batch[2].numpy().any()

    def _check_labels(self, seen: Tally) -> None:
        """Raise `UserError` unless two classes were seen, on whichever host."""
        labels = {label for one in self._team.exchange(sorted(seen.labels)) for label in one}
        if len(labels) < 2:
            raise UserError(
                f"the readable pictures for training are of {len(labels)} class(es); expected two or "
                "more. The log names the unreadable ones."
            )


class Progress:
    """Keras's progress bar, for one pass."""

    def __init__(self, epoch: int, plan: Plan, steps: int) -> None:
        import keras

        sys.stdout.write(f"Epoch {epoch}/{plan.epochs}\n")
        self._bar = keras.utils.Progbar(steps, stateful_metrics=["loss", "accuracy"])

    def show(self, tally: Tally) -> None:
        """Show the step just taken, waiting for it."""
        tally.settle()
        self._bar.update(tally.steps, list(tally.means().items()), finalize=False)

    def close(self, tally: Tally) -> None:
        """Show the whole pass and end the line."""
        self._bar.update(tally.steps, list(tally.means().items()), finalize=True)
