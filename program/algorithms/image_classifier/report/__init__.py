"""What people look at after a job: numbers, charts, the worst mistakes, and one page with all of them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from algorithms.image_classifier.report import charts, gradcam, mistakes, page
from algorithms.image_classifier.report.evaluation import Mistake, Split
from algorithms.image_classifier.report.scores import score
from algorithms.image_classifier.report.texts import fit_texts

logger = logging.getLogger(__name__)


def write_evidence(
    output_dir: Path,
    splits: Iterable[Split],
    history: Sequence[Mapping[str, float]],
    network: Any,
    labels: Sequence[str],
) -> None:
    """Write metrics.json, PNG charts and report.html to `output_dir/data`; the first split has the headlines.

    `history` is one mapping an epoch, of the names that its log line has. A split without a row is left out.
    It never raises: the job's model is stored by now, and a report that fails, be it in making `splits` as
    they are asked for, is a warning with its reason.
    """
    folder = output_dir / "data"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, [split for split in splits if split.rows], history, network, tuple(labels))
    except Exception as error:  # a rim: whatever it was, the model is worth more
        reason = str(error) or type(error).__name__
        logger.warning("The model is whole, but its report in %s is not: %s", folder, reason)
        logger.debug("How the report failed:", exc_info=True)


def _write(
    folder: Path,
    splits: Sequence[Split],
    history: Sequence[Mapping[str, float]],
    network: Any,
    labels: tuple[str, ...],
) -> None:
    scores = {split.name: score(split, labels) for split in splits}
    epochs = [{name: _number(value) for name, value in epoch.items()} for epoch in history]
    content: dict[str, Any] = {"labels": labels, "history": epochs, "splits": scores}
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    for old in folder.glob("*.png"):  # an earlier job's, in a local tree
        old.unlink()
    texts = fit_texts(labels)
    if history:
        charts.draw_learning_curves(folder / "learning_curves.png", history)
    for split in splits:
        before = "" if split is splits[0] else f"{split.name}_"
        charts.draw_confusion(folder / f"{before}confusion_matrix.png", split, texts)
        charts.draw_calibration(folder / f"{before}calibration.png", scores[split.name]["calibration"])
        if split.worst:
            heats = _locate(network, split.worst)
            mistakes.draw_mistakes(folder / f"{before}mistakes.png", split.worst, heats, texts)
    text = page.render_report(folder, splits, content, texts)
    (folder / "report.html").write_text(text, encoding="utf-8")
    logger.info("The report is %s.", folder / "report.html")


def _locate(network: Any, worst: Sequence[Mistake]) -> Any:
    """Give the mistakes' Grad-CAM maps; None, and the reason in the log, where there can be none."""
    import numpy as np

    try:
        pixels = np.stack([mistake.pixels for mistake in worst])
        return gradcam.locate(network, pixels, np.array([mistake.said for mistake in worst]))
    except Exception as error:  # noqa: BLE001  # networks are the user's to change; the sheet does without
        logger.warning("The mistakes are shown without Grad-CAM: %s", str(error) or type(error).__name__)
        return None


def _number(value: float) -> float | None:
    """Give a plain number for JSON, which has no NaN; whole ones stay whole."""
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if isinstance(value, int) else number
