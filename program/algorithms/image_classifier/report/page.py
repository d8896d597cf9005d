"""The report as one self-contained HTML page with embedded images and without scripts."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from algorithms.image_classifier.report import charts
from algorithms.image_classifier.report.evaluation import TOP, Evaluation
from algorithms.image_classifier.report.fonts import ChartLabels
from algorithms.image_classifier.report.verdicts import count, judge, percent

#: The number of labels in the table, those with the lowest F1; metrics.json has all.
MAX_TABLE_LABELS = 50


def render_report(
    folder: Path,
    evaluations: Sequence[Evaluation],
    content: Mapping[str, Any],
    chart_labels: ChartLabels,
) -> str:
    """Return the page for `content`, which is that of metrics.json, and for the charts in `folder`."""
    from jinja2 import Environment, StrictUndefined

    labels, history = content["labels"], content["history"]

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=_percent, count=count)
    template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    return template.render(
        labels=labels,
        numbered=[
            (name, label)
            for index, (name, label) in enumerate(zip(chart_labels.names, labels, strict=True))
            if name == f"#{index}"
        ],
        history=history,
        curves=_embed(folder / "learning_curves.png"),
        sections=[_describe(folder, one, content, first=one is evaluations[0]) for one in evaluations],
        matrix=len(labels) <= charts.MAX_MATRIX_LABELS,
        top=TOP,
    )


def _describe(
    folder: Path, evaluation: Evaluation, content: Mapping[str, Any], *, first: bool
) -> dict[str, Any]:
    labels, scores = content["labels"], content["splits"][evaluation.name]
    verdicts = judge(scores, content["history"], labels)
    prefix = "" if first else f"{evaluation.name}_"
    present = [entry for entry in scores["classes"] if entry["support"]]
    return {
        "name": evaluation.name,
        "scores": scores,
        "verdicts": verdicts if first else verdicts[:-1],  # convergence is the same for all
        "confusion": _embed(folder / f"{prefix}confusion_matrix.png"),
        "calibration": _embed(folder / f"{prefix}calibration.png"),
        "sheet": _embed(folder / f"{prefix}mistakes.png"),
        "mistakes": [
            (mistake, labels[mistake.truth], labels[mistake.predicted]) for mistake in evaluation.worst
        ],
        "classes": sorted(present, key=lambda entry: entry["f1"])[:MAX_TABLE_LABELS],
        "more": max(len(present) - MAX_TABLE_LABELS, 0),
        "missing": [entry["label"] for entry in scores["classes"] if not entry["support"]],
    }


def _embed(path: Path) -> dict[str, Any] | None:
    """Return a PNG as a `data:` URL with its size; None if the file does not exist."""
    if not path.exists():
        return None
    content = path.read_bytes()
    width, height = (int.from_bytes(content[offset : offset + 4], "big") for offset in (16, 20))
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return {"url": url, "width": width, "height": height}


def _percent(share: float | None) -> str:
    return "none" if share is None else percent(share)
