"""A sheet of the worst mistakes: each picture, and beside it where the network saw what it said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from algorithms.image_classifier.report.charts import make_figure, save_figure
from algorithms.image_classifier.report.evaluation import Mistake
from algorithms.image_classifier.report.texts import Texts
from algorithms.image_classifier.report.verdicts import percent

#: Mistakes side by side.
ACROSS = 3

Rows = np.ndarray[Any, np.dtype[Any]]


def draw_mistakes(path: Path, mistakes: Sequence[Mistake], heats: Rows | None, texts: Texts) -> None:
    """Draw mistakes, at least one, with their maps from 0 to 1 where there are any."""
    across = min(ACROSS, len(mistakes))
    down = math.ceil(len(mistakes) / across)
    wide = 1 if heats is None else 2
    figure = make_figure(1.45 * wide * across + 0.2, 1.85 * down)
    grid = figure.subplots(down, wide * across, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for place, mistake in enumerate(mistakes):
        row, column = divmod(place, across)
        picture = show_pixels(mistake.pixels)
        left = grid[row, wide * column]
        left.imshow(picture)
        said = f"{texts.names[mistake.truth]} → {texts.names[mistake.said]}"
        sure = percent(mistake.probability)
        if heats is None:
            left.set_title(f"{place + 1}. {said} {sure}", fontsize=8, loc="left", **texts.options)
            continue
        left.set_title(f"{place + 1}. {said}", fontsize=8, loc="left", **texts.options)
        right = grid[row, wide * column + 1]
        height, width = picture.shape[:2]
        right.imshow(np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8))
        right.imshow(
            heats[place],
            cmap="inferno",
            vmin=0,
            vmax=1,
            alpha=0.55,
            interpolation="bilinear",
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )
        right.set_title(sure, fontsize=8, loc="right")
    save_figure(figure, path)


def show_pixels(pixels: Rows) -> Rows:
    """Give uint8 (h, w, 3) of what a network takes, (h, w, 1) or (h, w, 3) of 0…255."""
    clipped = np.clip(np.nan_to_num(pixels.astype(np.float32)), 0, 255).round().astype(np.uint8)
    return np.repeat(clipped, 3, axis=2) if clipped.shape[2] == 1 else clipped
