"""The charts of a report as PNG files: learning curves, confusion, calibration, and the worst mistakes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from algorithms.image_classifier.report.evaluation import Evaluation, Mistake
from algorithms.image_classifier.report.fonts import ChartLabels
from algorithms.image_classifier.report.scores import fill_matrix, rank_confused
from algorithms.image_classifier.report.verdicts import percent

#: The maximum number of labels for a readable matrix; with more labels the most confused pairs are shown.
MAX_MATRIX_LABELS = 30
MAX_PAIRS = 25

#: Mistakes in one row of the sheet.
MISTAKES_PER_ROW = 3

#: Distinguishable with color blindness and in grey.
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#8a8a8a"
DPI = 110

Rows = np.ndarray[Any, np.dtype[Any]]


def draw_learning_curves(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Draw loss and accuracy of training and validation by epoch."""
    figure = _make_figure(8, 3.2)
    epochs = [int(entry.get("epoch", number)) for number, entry in enumerate(history, 1)]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for key, label, color, marker in (
            (name, "training", GREY, "s"),
            (f"val_{name}", "validation", BLUE, "o"),
        ):
            values = [float(entry.get(key, np.nan)) for entry in history]
            axes.plot(epochs, values, color=color, marker=marker, markersize=4, label=label)
        axes.set(xlabel="epoch", title=name)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
        axes.legend()
    losses = [float(entry.get("val_loss", np.nan)) for entry in history]
    if np.isfinite(losses).any():
        best = epochs[int(np.nanargmin(losses))]
        figure.axes[0].axvline(best, color=ORANGE, linestyle=":")
        figure.suptitle(f"lowest validation loss in epoch {best}", fontsize=9, color=ORANGE)
    _save_figure(figure, path)


def draw_confusion(path: Path, evaluation: Evaluation, labels: ChartLabels) -> None:
    """Draw the confusion matrix, or the most confused pairs if there are too many labels."""
    if evaluation.classes <= MAX_MATRIX_LABELS:
        _draw_matrix(path, fill_matrix(evaluation), labels)
    else:
        _draw_pairs(path, evaluation, labels)


def _draw_matrix(path: Path, matrix: np.ndarray[Any, np.dtype[np.int64]], labels: ChartLabels) -> None:
    classes = len(matrix)
    side = 2.2 + 0.3 * classes
    figure = _make_figure(side, side)
    axes = figure.subplots()
    support = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, support, out=np.zeros(matrix.shape), where=support > 0)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 9 if classes <= 12 else 7  # points
    for truth, predicted in np.argwhere(matrix):
        wrong = truth != predicted
        axes.text(
            predicted,
            truth,
            str(matrix[truth, predicted]),
            ha="center",
            va="center",
            fontsize=size,
            color="white" if shares[truth, predicted] > 0.55 else ORANGE if wrong else "black",
            fontweight="bold" if wrong else "normal",
        )
    ticks = range(classes)
    axes.set_xticks(ticks, labels.names, rotation=90 if classes > 4 else 0, fontsize=size, **labels.options)
    axes.set_yticks(ticks, labels.names, fontsize=size, **labels.options)
    axes.set(xlabel="predicted label", ylabel="true label")
    axes.set_title("images; color: share of the true label", fontsize=9)
    _save_figure(figure, path)


def _draw_pairs(path: Path, evaluation: Evaluation, labels: ChartLabels) -> None:
    pairs = rank_confused(evaluation)[:MAX_PAIRS]
    figure = _make_figure(8, 1.2 + 0.25 * max(len(pairs), 1))
    axes = figure.subplots()
    names = [f"{labels.names[truth]} → {labels.names[predicted]}" for (truth, predicted), _ in pairs]
    axes.barh(range(len(pairs)), [rows for _, rows in pairs], color=ORANGE)
    axes.set_yticks(range(len(pairs)), names, fontsize=8, **labels.options)
    axes.invert_yaxis()
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.set(xlabel="images")
    axes.set_title(f"true label → predicted label; {len(evaluation.confused)} confused pairs", fontsize=9)
    _save_figure(figure, path)


def draw_calibration(path: Path, bins: Sequence[Mapping[str, Any]]) -> None:
    """Draw the accuracy for each probability, and below it the number of images with that probability."""
    figure = _make_figure(5, 5)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = bins[0]["to"] - bins[0]["from"]
    middles = [(entry["from"] + entry["to"]) / 2 for entry in bins]
    filled = [entry for entry in bins if entry["rows"]]
    above.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="ideal")
    above.bar(
        [(entry["from"] + entry["to"]) / 2 for entry in filled],
        [entry["accuracy"] for entry in filled],
        width=width * 0.9,
        color=BLUE,
        alpha=0.35,
    )
    above.scatter(
        [entry["probability"] for entry in filled],
        [entry["accuracy"] for entry in filled],
        [6 + 10 * np.log1p(entry["rows"]) for entry in filled],  # in points: larger with more images
        color=BLUE,
        label="measured",
        zorder=3,
    )
    above.set(ylabel="share of correct predictions", xlim=(0, 1), ylim=(0, 1.02))
    above.legend(loc="upper left")
    below.bar(middles, [entry["rows"] for entry in bins], width=width * 0.9, color=GREY)
    below.set_yscale("symlog")
    below.set(xlabel="probability of the predicted label", ylabel="images")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    _save_figure(figure, path)


def draw_mistakes(
    path: Path, mistakes: Sequence[Mistake], heatmaps: Rows | None, labels: ChartLabels
) -> None:
    """Draw at least one mistake, each with its Grad-CAM map of 0 to 1 beside it if there are maps."""
    across = min(MISTAKES_PER_ROW, len(mistakes))
    down = math.ceil(len(mistakes) / across)
    wide = 1 if heatmaps is None else 2
    figure = _make_figure(1.45 * wide * across + 0.2, 1.85 * down)
    grid = figure.subplots(down, wide * across, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, mistake in enumerate(mistakes):
        row, column = divmod(index, across)
        image = _to_rgb(mistake.pixels)
        left = grid[row, wide * column]
        left.imshow(image)
        title = f"{index + 1}. {labels.names[mistake.truth]} → {labels.names[mistake.predicted]}"
        probability = percent(mistake.probability)
        if heatmaps is None:
            left.set_title(f"{title} {probability}", fontsize=8, loc="left", **labels.options)
            continue
        left.set_title(title, fontsize=8, loc="left", **labels.options)
        right = grid[row, wide * column + 1]
        height, width = image.shape[:2]
        right.imshow(np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8))
        right.imshow(
            heatmaps[index],
            cmap="inferno",
            vmin=0,
            vmax=1,
            alpha=0.55,
            interpolation="bilinear",
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )
        right.set_title(probability, fontsize=8, loc="right")
    _save_figure(figure, path)


def _to_rgb(pixels: Rows) -> Rows:
    """Return a network's input (h, w, 1) or (h, w, 3) of 0 to 255 as uint8 (h, w, 3)."""
    clipped = np.clip(np.nan_to_num(pixels.astype(np.float32)), 0, 255).round().astype(np.uint8)
    return np.repeat(clipped, 3, axis=2) if clipped.shape[2] == 1 else clipped


def _make_figure(width: float, height: float) -> Any:
    """Return a figure of this size in inches that is not registered in pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def _save_figure(figure: Any, path: Path) -> None:
    """Write the PNG without a display; equal numbers result in equal files."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", metadata={"Software": None})
