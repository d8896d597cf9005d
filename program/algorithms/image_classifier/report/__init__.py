"""The report on a training job: metrics.json, charts, and an HTML page with everything."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from algorithms.image_classifier.report import charts, gradcam, page
from algorithms.image_classifier.report.evaluation import Evaluation, Mistake
from algorithms.image_classifier.report.fonts import fit_labels
from algorithms.image_classifier.report.scores import score

logger = logging.getLogger(__name__)


def write_report(
    output_dir: Path,
    evaluations: Iterable[Evaluation],
    history: Sequence[Mapping[str, float]],
    network: Any,
    labels: Sequence[str],
) -> None:
    """Write metrics.json, PNG charts and report.html to `output_dir/data`, the first evaluation first.

    `history` has one mapping per epoch, with the names of its log line. Evaluations without rows are skipped.
    It never raises, because the model is already stored: any failure, also in the iteration of `evaluations`,
    is logged as a warning with its reason.
    """
    folder = output_dir / "data"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, [one for one in evaluations if one.rows], history, network, tuple(labels))
    except Exception as error:  # a boundary: the model is stored, whatever failed here
        reason = str(error) or type(error).__name__
        logger.warning("The model is complete, but its report in %s is not: %s", folder, reason)
        logger.debug("The report failed:", exc_info=True)


def _write(
    folder: Path,
    evaluations: Sequence[Evaluation],
    history: Sequence[Mapping[str, float]],
    network: Any,
    labels: tuple[str, ...],
) -> None:
    scores = {one.name: score(one, labels) for one in evaluations}
    epochs = [{name: _number(value) for name, value in epoch.items()} for epoch in history]
    content: dict[str, Any] = {"labels": labels, "history": epochs, "splits": scores}
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    for old in folder.glob("*.png"):  # of an earlier job in the same directory
        old.unlink()
    chart_labels = fit_labels(labels)
    if history:
        charts.draw_learning_curves(folder / "learning_curves.png", history)
    for one in evaluations:
        prefix = "" if one is evaluations[0] else f"{one.name}_"
        charts.draw_confusion(folder / f"{prefix}confusion_matrix.png", one, chart_labels)
        charts.draw_calibration(folder / f"{prefix}calibration.png", scores[one.name]["calibration"])
        if one.worst:
            heatmaps = _locate(network, one.worst)
            charts.draw_mistakes(folder / f"{prefix}mistakes.png", one.worst, heatmaps, chart_labels)
    text = page.render_report(folder, evaluations, content, chart_labels)
    (folder / "report.html").write_text(text, encoding="utf-8")
    logger.info("The report is %s.", folder / "report.html")


def _locate(network: Any, worst: Sequence[Mistake]) -> Any:
    """Return the mistakes' Grad-CAM maps; None, with a warning, if they cannot be computed."""
    import numpy as np

    try:
        pixels = np.stack([mistake.pixels for mistake in worst])
        return gradcam.locate(network, pixels, np.array([mistake.predicted for mistake in worst]))
    except Exception as error:  # noqa: BLE001  # users may change the network; the sheet works without maps
        logger.warning(
            "The report shows the mistakes without Grad-CAM: %s", str(error) or type(error).__name__
        )
        return None


def _number(value: float) -> float | None:
    """Return a number for JSON, with None instead of NaN and infinities; integers stay integers."""
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if isinstance(value, int) else number
