#!/usr/bin/env python3
"""Writes the sample data: the 1797 handwritten digits of UCI that scikit-learn ships, as PNG files.

Four fifths go to input/data/training/<class>/, the rest to held_out/<class>/, for asking the trained model.
Nothing is downloaded. A file that is already right is left alone, so a second run repairs a broken first.
"""

from __future__ import annotations

import argparse
import os
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

TEST_DIR = Path(__file__).resolve().parent / "test_dir"
TRAINING = Path("input", "data", "training")
HELD_OUT = Path("held_out")
HELD_OUT_PART = 0.2
SEED = 0
DARKEST = 16  # the data set's grey values go from 0 to 16

Picture = Sequence[Sequence[int]]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY = b"\x08\x00\x00\x00\x00"  # 8 bit grey, deflated, rows filtered one by one, not interlaced


def encode_png(picture: Picture) -> bytes:
    """Give the rows of grey values 0..255 as a PNG file; the same picture is always the same bytes."""
    rows = b"".join(b"\x00" + bytes(row) for row in picture)  # 0: the row is stored as it is
    size = struct.pack(">II", len(picture[0]), len(picture))
    chunks = ((b"IHDR", size + GREY), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def decode_png(body: bytes) -> list[bytes]:
    """Give the rows of grey values of a file that `encode_png` made."""
    width, height = struct.unpack_from(">II", body, 16)
    (length,) = struct.unpack_from(">I", body, 33)
    rows = zlib.decompress(body[41 : 41 + length])
    return [rows[y * (width + 1) + 1 : (y + 1) * (width + 1)] for y in range(height)]


def read_digits() -> Iterator[tuple[Path, bytes]]:
    """Give (path, file content) of each sample; the split is stratified and always the same."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 (takes a second; --help and demo.py need it not)
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    pictures, labels = load_digits(return_X_y=True)
    numbers = range(len(labels))
    _, held_out = train_test_split(numbers, test_size=HELD_OUT_PART, random_state=SEED, stratify=labels)
    held_out = set(held_out)
    grey = (pictures.reshape(-1, 8, 8) * 255 / DARKEST).round().astype("uint8")
    for number in numbers:
        folder = HELD_OUT if number in held_out else TRAINING
        path = folder / str(labels[number]) / f"digit-{number:04}.png"
        yield path, encode_png(grey[number].tolist())


def write_digits(root: Path) -> tuple[int, int]:
    """Write all samples below `root`; give how many there are and how many of them had to be written.

    Each file appears whole or not at all, and files of other names are not touched.
    """
    total = written = 0
    # Beside the channels and not in them: what a killed run leaves must not become training data.
    aside = root / f".digits-{os.getpid()}"
    try:
        for path, content in read_digits():
            target = root / path
            total += 1
            if target.is_file() and target.read_bytes() == content:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(content)
            aside.replace(target)
            written += 1
    finally:
        aside.unlink(missing_ok=True)
    return total, written


def main() -> str | None:
    """Run the command line; give a sentence where it cannot be done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "test_dir",
        nargs="?",
        type=Path,
        default=TEST_DIR,
        metavar="DIR",
        help="the miniature /opt/ml to write to (default: test_dir beside this script)",
    )
    root = parser.parse_args().test_dir
    try:
        total, written = write_digits(root)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed in {sys.executable}: `make sample-data` runs this where it is."
    except OSError as error:
        return f"The sample data cannot be written to {root}: {error}."
    print(f"{total} digits in {root}, {written} of them newly written.")
    return None


if __name__ == "__main__":
    sys.exit(main())
