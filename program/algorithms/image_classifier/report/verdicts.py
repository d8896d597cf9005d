"""What a split's scores and a fit's history mean, in a sentence each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Mean distance between a probability and what it should be, up to which each sentence holds.
TRUST = (
    (0.02, "Yes"),
    (0.05, "Nearly"),
    (0.10, "Roughly"),
)

#: A val_loss that is higher than the lowest by this part of it has risen.
RISEN = 0.1

#: Where the lowest val_loss of the last third is lower than that before by this part, it still falls.
FALLING = 0.02

History = Sequence[Mapping[str, float | None]]


@dataclass(frozen=True)
class Verdict:
    """An answer to a question that a person has: the few words of it, and the sentence behind them."""

    question: str
    answer: str
    reason: str


def judge(scores: Mapping[str, Any], history: History, labels: Sequence[str]) -> list[Verdict]:
    """Give the four verdicts on one split, for a person with ten seconds."""
    return [
        judge_quality(scores),
        judge_confusion(scores, labels),
        judge_trust(scores),
        judge_convergence(history),
    ]


def judge_quality(scores: Mapping[str, Any]) -> Verdict:
    """Say how many are right, and how sure that is."""
    low, high = scores["accuracy_interval"]
    return Verdict(
        "How good is it?",
        f"{percent(scores['accuracy'])} right",
        f"{scores['right']} of {scores['rows']} pictures. With so many measured, the true share is between "
        f"{percent(low)} and {percent(high)} in 95 of 100 cases.",
    )


def judge_confusion(scores: Mapping[str, Any], labels: Sequence[str]) -> Verdict:
    """Name the pair of labels that is confused most, and the label that is found least."""
    question = "What does it confuse?"
    confused = scores["confused"]
    if not confused:
        return Verdict(question, "Nothing", f"None of {scores['rows']} pictures was taken for another label.")
    present = [entry for entry in scores["classes"] if entry["support"]]
    weakest = min(present, key=lambda entry: (entry["f1"], labels.index(entry["label"])))
    return Verdict(
        question,
        f"{confused[0]['truth']} taken for {confused[0]['said']}",
        f"{count(confused[0]['rows'], 'time')}, the most frequent of "
        f"{count(scores['rows'] - scores['right'], 'mistake')}. Weakest label: {weakest['label']}, of which "
        f"{percent(weakest['recall'])} are found.",
    )


def judge_trust(scores: Mapping[str, Any]) -> Verdict:
    """Say whether a probability of 90 % means right nine times of ten."""
    error, said, right = (
        scores[name] for name in ("expected_calibration_error", "mean_probability", "accuracy")
    )
    answer = next((word for limit, word in TRUST if error <= limit), None)
    if answer is None:
        answer = "No: too sure" if said > right else "No: not sure enough"
    return Verdict(
        "Can its probabilities be trusted?",
        answer,
        f"It says {percent(said)} on average and is right in {percent(right)}; a probability is off by "
        f"{percent(error)} on average (expected calibration error).",
    )


def judge_convergence(history: History) -> Verdict:
    """Say whether the fit came to rest, should have gone on, or went too far."""
    question = "Did it converge?"
    losses = [loss for epoch in history if (loss := epoch.get("val_loss")) is not None]
    if len(losses) < 3:
        return Verdict(question, "Too early to say", f"Only {count(len(losses), 'epoch')} ended.")
    best = losses.index(min(losses))
    lowest, last = losses[best], losses[-1]
    where = f"val_loss was lowest in epoch {best + 1} of {len(losses)} ({lowest:.4g})"
    if last > lowest * (1 + RISEN) and last - lowest > 0.01:
        return Verdict(
            question,
            "It went too far",
            f"{where} and rose to {last:.4g}: it learned the training pictures by heart. early_stopping, "
            "more augmentation or more pictures help.",
        )
    tail = max(1, len(losses) // 3)
    if lowest < min(losses[:-tail]) * (1 - FALLING) and best >= len(losses) - tail:
        return Verdict(question, "Still improving", f"{where}: more epochs may help.")
    return Verdict(question, "Yes", f"{where} and is at rest since.")


def percent(share: float) -> str:
    """Write a share, with a decimal place where whole percents would hide the difference to 0 or 100."""
    text = f"{100 * share:.1f}"
    if share < 1 and text == "100.0":
        return "over 99.9 %"
    if share > 0 and text == "0.0":
        return "under 0.1 %"
    return f"{text.removesuffix('.0')} %"


def count(number: int, noun: str) -> str:
    """Write a number of things."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
