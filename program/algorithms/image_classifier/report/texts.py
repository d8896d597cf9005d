"""Label names as a chart can show them: short, and in glyphs that a font on this machine has."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

#: Fonts with more scripts than matplotlib's own, where a machine has them.
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

#: matplotlib lays out glyph by glyph from the left: what is written otherwise comes out wrong.
FROM_THE_LEFT = {"L", "EN", "ES", "ET", "CS", "ON", "WS", "AN", "BN"}

LONGEST = 22


@dataclass(frozen=True)
class Texts:
    """What charts write: `names` in the order of the labels, `options` for each text of matplotlib."""

    names: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


def fit_texts(labels: Sequence[str]) -> Texts:
    """Shorten the labels; those that no font here can write become `#3`, their number from 0."""
    from matplotlib import font_manager

    own = ["DejaVu Sans"]
    known = _characters(own)
    needed = {character for label in labels for character in label if ord(character) not in known}
    if needed:
        there = {font.name for font in font_manager.fontManager.ttflist}
        own += [name for name in MORE_FONTS if name in there]
        known = _characters(own)
    names = tuple(
        _shorten(label) if _can_write(label, known) else f"#{index}" for index, label in enumerate(labels)
    )
    # parse_math: a label may hold a dollar, which is no formula.
    return Texts(names, {"fontfamily": own, "parse_math": False})


def _characters(families: Sequence[str]) -> set[int]:
    from matplotlib import font_manager

    known: set[int] = set()
    for family in families:
        path = font_manager.findfont(font_manager.FontProperties(family=[family]), fallback_to_default=False)
        known.update(font_manager.get_font(path).get_charmap())
    return known


def _can_write(label: str, known: set[int]) -> bool:
    return bool(label.strip()) and all(
        ord(character) in known
        and unicodedata.bidirectional(character) in FROM_THE_LEFT
        and not unicodedata.combining(character)
        for character in label
    )


def _shorten(label: str) -> str:
    return label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…"
