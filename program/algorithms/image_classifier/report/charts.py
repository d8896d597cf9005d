"""The charts of a report, as PNG files: learning curves, confusion, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from algorithms.image_classifier.report.evaluation import Split
from algorithms.image_classifier.report.scores import fill_matrix, rank_confused
from algorithms.image_classifier.report.texts import Texts

#: Labels up to which the matrix can be read; past them the most confused pairs are shown.
MATRIX_LABELS = 30
PAIRS = 25

#: Told apart by those who see colors otherwise, and in grey.
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#8a8a8a"
DPI = 110


def draw_learning_curves(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Draw loss and accuracy of training and validation, an epoch a step."""
    figure = make_figure(8, 3.2)
    epochs = [int(entry.get("epoch", place + 1)) for place, entry in enumerate(history)]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for key, shown, color, mark in (
            (name, "training", GREY, "s"),
            (f"val_{name}", "validation", BLUE, "o"),
        ):
            values = [float(entry.get(key, np.nan)) for entry in history]
            axes.plot(epochs, values, color=color, marker=mark, markersize=4, label=shown)
        axes.set(xlabel="epoch", title=name)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
        axes.legend()
    losses = [float(entry.get("val_loss", np.nan)) for entry in history]
    if np.isfinite(losses).any():
        best = epochs[int(np.nanargmin(losses))]
        figure.axes[0].axvline(best, color=ORANGE, linestyle=":")
        figure.suptitle(f"lowest validation loss in epoch {best}", fontsize=9, color=ORANGE)
    save_figure(figure, path)


def draw_confusion(path: Path, split: Split, texts: Texts) -> None:
    """Draw the confusion matrix, or of many labels the pairs that are confused most."""
    if split.classes <= MATRIX_LABELS:
        _draw_matrix(path, fill_matrix(split), texts)
    else:
        _draw_pairs(path, split, texts)


def _draw_matrix(path: Path, matrix: np.ndarray[Any, np.dtype[np.int64]], texts: Texts) -> None:
    classes = len(matrix)
    side = 2.2 + 0.3 * classes
    figure = make_figure(side, side)
    axes = figure.subplots()
    support = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, support, out=np.zeros(matrix.shape), where=support > 0)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 9 if classes <= 12 else 7  # points
    for truth, said in np.argwhere(matrix):
        wrong = truth != said
        axes.text(
            said,
            truth,
            str(matrix[truth, said]),
            ha="center",
            va="center",
            fontsize=size,
            color="white" if shares[truth, said] > 0.55 else ORANGE if wrong else "black",
            fontweight="bold" if wrong else "normal",
        )
    places = range(classes)
    axes.set_xticks(places, texts.names, rotation=90 if classes > 4 else 0, fontsize=size, **texts.options)
    axes.set_yticks(places, texts.names, fontsize=size, **texts.options)
    axes.set(xlabel="said", ylabel="is")
    axes.set_title("pictures; color: share of what it is", fontsize=9)
    save_figure(figure, path)


def _draw_pairs(path: Path, split: Split, texts: Texts) -> None:
    pairs = rank_confused(split)[:PAIRS]
    figure = make_figure(8, 1.2 + 0.25 * max(len(pairs), 1))
    axes = figure.subplots()
    named = [f"{texts.names[truth]} → {texts.names[said]}" for (truth, said), _ in pairs]
    axes.barh(range(len(pairs)), [rows for _, rows in pairs], color=ORANGE)
    axes.set_yticks(range(len(pairs)), named, fontsize=8, **texts.options)
    axes.invert_yaxis()
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.set(xlabel="pictures")
    axes.set_title(f"is → said; {len(split.confused)} pairs are confused", fontsize=9)
    save_figure(figure, path)


def draw_calibration(path: Path, bins: Sequence[Mapping[str, Any]]) -> None:
    """Draw how often each probability was right, and below how many pictures had it."""
    figure = make_figure(5, 5)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = bins[0]["to"] - bins[0]["from"]
    middles = [(entry["from"] + entry["to"]) / 2 for entry in bins]
    filled = [entry for entry in bins if entry["rows"]]
    above.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="as it should be")
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
        [6 + 10 * np.log1p(entry["rows"]) for entry in filled],  # in points: larger where more pictures are
        color=BLUE,
        label="measured",
        zorder=3,
    )
    above.set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.02))
    above.legend(loc="upper left")
    below.bar(middles, [entry["rows"] for entry in bins], width=width * 0.9, color=GREY)
    below.set_yscale("symlog")
    below.set(xlabel="probability of what it said", ylabel="pictures")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def make_figure(width: float, height: float) -> Any:
    """Give a figure of so many inches that no global state knows of."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def save_figure(figure: Any, path: Path) -> None:
    """Write the PNG without a display; equal numbers make equal files."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", metadata={"Software": None})
