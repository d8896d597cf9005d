"""Real pictures to train on: pieces of scikit-learn's two photographs, the same ones each time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

SEED = 0
QUALITY = 90
LABELS = ("china", "flower")


def find_photographs(cache: Path, size: int, count: int) -> Path:
    """Give a folder of `count` JPEGs of `size` x `size` pixels, one folder a label; written once."""
    folder = cache / f"photographs-{size}-{count}"
    if not (folder / ".complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        _write(folder, size, count)
        (folder / ".complete").touch()
    return folder


def _write(folder: Path, size: int, count: int) -> None:
    """Cut pieces of random size and place, mirror every other one, and scale them down."""
    import cv2
    import sklearn.datasets

    images = Path(sklearn.datasets.__file__).parent / "images"
    photographs: list[Any] = [cv2.imread(str(images / f"{label}.jpg")) for label in LABELS]
    for label in LABELS:
        (folder / label).mkdir(parents=True)
    random = np.random.default_rng(SEED)
    for number in range(count):
        photograph = photographs[number % len(LABELS)]
        height, width = photograph.shape[:2]
        side = int(random.integers(size, height + 1))
        top, left = (int(random.integers(0, room - side + 1)) for room in (height, width))
        piece = photograph[top : top + side, left : left + side]
        if random.random() < 0.5:
            piece = piece[:, ::-1]
        piece = cv2.resize(np.ascontiguousarray(piece), (size, size), interpolation=cv2.INTER_AREA)
        name = folder / LABELS[number % len(LABELS)] / f"{number:06}.jpg"
        if not cv2.imwrite(str(name), piece, [cv2.IMWRITE_JPEG_QUALITY, QUALITY]):
            raise OSError(f"{name} cannot be written")
