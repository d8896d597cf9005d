"""Label names for charts: shortened, and only with glyphs that an installed font has."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

#: Fonts with more scripts than matplotlib's own; used if they are installed.
MORE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Noto Sans Thai",
    "Noto Sans Devanagari",
)

#: Bidirectional classes that matplotlib can lay out, because it puts glyph after glyph from the left.
LEFT_TO_RIGHT = {"L", "EN", "ES", "ET", "CS", "ON", "WS", "AN", "BN"}

MAX_LENGTH = 22


@dataclass(frozen=True)
class ChartLabels:
    """The label names of charts in the order of the labels, and matplotlib's options for these texts."""

    names: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


def fit_labels(labels: Sequence[str]) -> ChartLabels:
    """Shorten the labels; those that no installed font can display become their number from 0, as `#3`."""
    from matplotlib import font_manager

    families = ["DejaVu Sans"]
    known = _find_characters(families)
    if any(ord(character) not in known for label in labels for character in label):
        installed = set(font_manager.get_font_names())
        families += [name for name in MORE_FONTS if name in installed]
        known = _find_characters(families)
    names = tuple(
        _shorten(label) if _is_displayable(label, known) else f"#{index}"
        for index, label in enumerate(labels)
    )
    # parse_math: a label may contain a dollar sign, which is not a formula.
    return ChartLabels(names, {"fontfamily": families, "parse_math": False})


def _find_characters(families: Sequence[str]) -> set[int]:
    from matplotlib import font_manager

    known: set[int] = set()
    for family in families:
        path = font_manager.findfont(font_manager.FontProperties(family=[family]), fallback_to_default=False)
        known.update(font_manager.get_font(path).get_charmap())
    return known


def _is_displayable(label: str, known: set[int]) -> bool:
    return bool(label.strip()) and all(
        ord(character) in known
        and unicodedata.bidirectional(character) in LEFT_TO_RIGHT
        and not unicodedata.combining(character)
        for character in label
    )


def _shorten(label: str) -> str:
    return label if len(label) <= MAX_LENGTH else f"{label[: MAX_LENGTH - 1]}…"
