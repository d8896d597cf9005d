"""The report as one HTML page that needs nothing beside it: its pictures are inside, and no script."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from algorithms.image_classifier.report import charts
from algorithms.image_classifier.report.evaluation import AMONG, Split
from algorithms.image_classifier.report.texts import Texts
from algorithms.image_classifier.report.verdicts import count, judge, percent

#: Labels in the table, the weakest; metrics.json has all.
TABLE = 50


def render_report(
    folder: Path,
    splits: Sequence[Split],
    content: Mapping[str, Any],
    texts: Texts,
) -> str:
    """Give the page of what metrics.json holds, `content`, with those of the charts that lie in `folder`."""
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
            for index, (name, label) in enumerate(zip(texts.names, labels, strict=True))
            if name == f"#{index}"
        ],
        history=history,
        curves=_embed(folder / "learning_curves.png"),
        sections=[_describe(folder, split, content, first=place == 0) for place, split in enumerate(splits)],
        matrix=len(labels) <= charts.MATRIX_LABELS,
        among=AMONG,
    )


def _describe(
    folder: Path,
    split: Split,
    content: Mapping[str, Any],
    *,
    first: bool,
) -> dict[str, Any]:
    labels, scores = content["labels"], content["splits"][split.name]
    verdicts = judge(scores, content["history"], labels)
    before = "" if first else f"{split.name}_"
    present = [entry for entry in scores["classes"] if entry["support"]]
    return {
        "name": split.name,
        "scores": scores,
        "verdicts": verdicts if first else verdicts[:-1],  # how the fit went is said once
        "confusion": _embed(folder / f"{before}confusion_matrix.png"),
        "calibration": _embed(folder / f"{before}calibration.png"),
        "sheet": _embed(folder / f"{before}mistakes.png"),
        "mistakes": [(mistake, labels[mistake.truth], labels[mistake.said]) for mistake in split.worst],
        "classes": sorted(present, key=lambda entry: entry["f1"])[:TABLE],
        "more": max(len(present) - TABLE, 0),
        "missing": [entry["label"] for entry in scores["classes"] if not entry["support"]],
    }


def _embed(path: Path) -> dict[str, Any] | None:
    """Give a PNG's content as a `data:` address, with its size; None where there is no such file."""
    if not path.exists():
        return None
    content = path.read_bytes()
    width, height = (int.from_bytes(content[place : place + 4], "big") for place in (16, 20))
    address = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return {"address": address, "width": width, "height": height}


def _percent(share: float | None) -> str:
    return "none" if share is None else percent(share)
