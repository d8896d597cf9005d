"""One-sentence interpretations of scores and of the history of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: The maximum expected calibration error of each answer.
CALIBRATION = (
    (0.02, "Yes"),
    (0.05, "Nearly"),
    (0.10, "Roughly"),
)

#: The relative increase over the lowest val_loss that means overfitting.
OVERFITTING = 0.1

#: The relative decrease of val_loss in the last third of the epochs that means it is still improving.
IMPROVING = 0.02

History = Sequence[Mapping[str, float | None]]


@dataclass(frozen=True)
class Verdict:
    """A question, a short answer, and the sentence that explains it."""

    question: str
    answer: str
    reason: str


def judge(scores: Mapping[str, Any], history: History, labels: Sequence[str]) -> list[Verdict]:
    """Return the four verdicts on one evaluation."""
    return [
        judge_quality(scores),
        judge_confusion(scores, labels),
        judge_trust(scores),
        judge_convergence(history),
    ]


def judge_quality(scores: Mapping[str, Any]) -> Verdict:
    """Return the accuracy and its confidence interval."""
    low, high = scores["accuracy_interval"]
    return Verdict(
        "How good is it?",
        f"{percent(scores['accuracy'])} correct",
        f"{scores['right']} of {scores['rows']} images. The 95 % confidence interval of the accuracy is "
        f"{percent(low)} to {percent(high)}.",
    )


def judge_confusion(scores: Mapping[str, Any], labels: Sequence[str]) -> Verdict:
    """Return the most confused pair of labels and the label with the lowest F1."""
    question = "What does it confuse?"
    confused = scores["confused"]
    if not confused:
        return Verdict(question, "Nothing", f"None of {scores['rows']} images was misclassified.")
    present = [entry for entry in scores["classes"] if entry["support"]]
    weakest = min(present, key=lambda entry: (entry["f1"], labels.index(entry["label"])))
    return Verdict(
        question,
        f"{confused[0]['truth']} predicted as {confused[0]['said']}",
        f"{count(confused[0]['rows'], 'time')}, the most frequent of "
        f"{count(scores['rows'] - scores['right'], 'mistake')}. Weakest label: {weakest['label']}, with a "
        f"recall of {percent(weakest['recall'])}.",
    )


def judge_trust(scores: Mapping[str, Any]) -> Verdict:
    """Return whether predictions with a probability of 90 % are correct nine times out of ten."""
    error, probability, accuracy = (
        scores[name] for name in ("expected_calibration_error", "mean_probability", "accuracy")
    )
    answer = next((word for limit, word in CALIBRATION if error <= limit), None)
    if answer is None:
        answer = "No: overconfident" if probability > accuracy else "No: underconfident"
    return Verdict(
        "Can its probabilities be trusted?",
        answer,
        f"The mean probability is {percent(probability)} and the accuracy {percent(accuracy)}; probabilities "
        f"are off by {percent(error)} on average (expected calibration error).",
    )


def judge_convergence(history: History) -> Verdict:
    """Return whether training converged, should continue, or overfitted."""
    question = "Did it converge?"
    losses = [loss for epoch in history if (loss := epoch.get("val_loss")) is not None]
    if len(losses) < 3:
        return Verdict(question, "Too early to say", f"Only {count(len(losses), 'epoch')} finished.")
    best = losses.index(min(losses))
    lowest, last = losses[best], losses[-1]
    summary = f"val_loss was lowest in epoch {best + 1} of {len(losses)} ({lowest:.4g})"
    if last > lowest * (1 + OVERFITTING) and last - lowest > 0.01:
        return Verdict(
            question,
            "No: overfitting",
            f"{summary} and rose to {last:.4g}: the network memorized the training images. Use "
            "early_stopping, more augmentation or more images.",
        )
    tail = max(1, len(losses) // 3)
    if lowest < min(losses[:-tail]) * (1 - IMPROVING) and best >= len(losses) - tail:
        return Verdict(question, "Still improving", f"{summary}; more epochs may help.")
    return Verdict(question, "Yes", f"{summary} and has been stable since.")


def percent(share: float) -> str:
    """Format a share as a percentage that is 0 or 100 only if the share is exactly 0 or 1."""
    text = f"{100 * share:.1f}"
    if share < 1 and text == "100.0":
        return "over 99.9 %"
    if share > 0 and text == "0.0":
        return "under 0.1 %"
    return f"{text.removesuffix('.0')} %"


def count(number: int, noun: str) -> str:
    """Format a number with its noun, in the plural unless it is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
