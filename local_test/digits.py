#!/usr/bin/env python3
"""Write the sample data: the 1797 handwritten digits from UCI that come with scikit-learn, as PNG files.

80 % of them go to input/data/training/<class>/, the rest to held_out/<class>/, to test the trained model.
Nothing is downloaded. Files that are already correct are left alone, so a second run repairs a broken first.
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
HELD_OUT_SHARE = 0.2
SEED = 0
DARKEST = 16  # the data set's grey values go from 0 to 16

Pixels = Sequence[Sequence[int]]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY = b"\x08\x00\x00\x00\x00"  # 8-bit grey, deflate, one filter per row, not interlaced


def encode_png(pixels: Pixels) -> bytes:
    """Return rows of grey values, 0 to 255, as a PNG file; the same pixels always give the same bytes."""
    rows = b"".join(b"\x00" + bytes(row) for row in pixels)  # 0: the row is stored without a filter
    size = struct.pack(">II", len(pixels[0]), len(pixels))
    chunks = ((b"IHDR", size + GREY), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def decode_png(body: bytes) -> list[bytes]:
    """Return the rows of grey values of a file that `encode_png` made."""
    width, height = struct.unpack_from(">II", body, 16)
    (length,) = struct.unpack_from(">I", body, 33)
    rows = zlib.decompress(body[41 : 41 + length])
    return [rows[y * (width + 1) + 1 : (y + 1) * (width + 1)] for y in range(height)]


def read_digits() -> Iterator[tuple[Path, bytes]]:
    """Yield the path and the content of each sample; the split is stratified and always the same."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 (takes a second, and --help does not need it)
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    pixels, labels = load_digits(return_X_y=True)
    numbers = range(len(labels))
    _, held_out = train_test_split(numbers, test_size=HELD_OUT_SHARE, random_state=SEED, stratify=labels)
    held_out = set(held_out)
    grey = (pixels.reshape(-1, 8, 8) * 255 / DARKEST).round().astype("uint8")
    for number in numbers:
        folder = HELD_OUT if number in held_out else TRAINING
        path = folder / str(labels[number]) / f"digit-{number:04}.png"
        yield path, encode_png(grey[number].tolist())


def write_digits(root: Path) -> tuple[int, int]:
    """Write all samples below `root`; return their number, and how many of them had to be written.

    Each file is written atomically. Other files are not touched.
    """
    total = written = 0
    # Outside the channels: a file that a killed run leaves behind must not become training data.
    temporary = root / f".digits-{os.getpid()}"
    try:
        for path, content in read_digits():
            target = root / path
            total += 1
            if target.is_file() and target.read_bytes() == content:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(target)
            written += 1
    finally:
        temporary.unlink(missing_ok=True)
    return total, written


def main() -> str | None:
    """Run the command line; return an error message if it fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "test_dir",
        nargs="?",
        type=Path,
        default=TEST_DIR,
        metavar="DIR",
        help="the folder to write to, used as /opt/ml (default: test_dir beside this script)",
    )
    root = parser.parse_args().test_dir
    try:
        total, written = write_digits(root)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed in {sys.executable}; `make sample-data` installs it."
    except OSError as error:
        return f"The sample data cannot be written to {root}: {error}."
    print(f"{total} digits in {root}, {written} of them newly written.")
    return None


if __name__ == "__main__":
    sys.exit(main())
