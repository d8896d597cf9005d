"""Inputs for fuzzing: mutated files of every kind, and generated files with false headers."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fuzz.mutations import NUMBERS, mutate
from image_files import KINDS, MORE, bmp, chunk, encode, png, progressive_jpeg, riff, segment, tiff


class Input(NamedTuple):
    """A body with its decoder and its content type."""

    target: str  # "image", "rows" or "request"
    content_type: str
    body: bytes


def list_images() -> list[bytes]:
    """Return small images of every kind, and scikit-learn's photographs, small and in full size."""
    import sklearn

    found = [body for body, _ in KINDS.values()] + list(MORE.values())
    for path in sorted((Path(sklearn.__file__).parent / "datasets" / "images").glob("*.jpg")):
        photograph = cv2.imread(str(path))[..., ::-1]
        small = cv2.resize(photograph, (96, 64), interpolation=cv2.INTER_AREA)
        progressive = (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
        found += [encode(".jpg", small), encode(".jpg", small, *progressive), encode(".png", small)]
        found += [encode(".webp", small, cv2.IMWRITE_WEBP_QUALITY, 80), encode(".tif", small)]
        found.append(path.read_bytes())
    return found


def list_rows() -> list[tuple[str, bytes]]:
    """Return bodies of rows in each media type."""
    found = [
        ("application/json", b'{"instances": [[1, 2.5, -3e4], [4, null, "a"]]}'),
        ("application/json", b'[{"b64": "AAAA"}, [[0, 1], [2, 3]], 1e400, NaN]'),
        ("application/json; charset=utf-16", '[[1, "\u00e9\U0001f40c"]]'.encode("utf-16")),
        ("application/json", b"[" * 400 + b"]" * 400),
        ("application/jsonlines", b'[1, 2]\n{"a": [3]}\n\n"text"'),
        ("text/csv", b'1,2,3\n4,5,6\n"7",8e8,-9\n'),
        ("text/csv; header=present", b'a,"b ""c""",d\r\n1,2,3\r\n'),
        ("text/csv; charset=latin1", b"caf\xe9,1\n"),
    ]
    for array in (
        np.arange(12.0).reshape(3, 4),
        np.zeros((2, 3), ">i2"),
        np.ones((2, 2, 2), bool, order="F"),
    ):
        file = io.BytesIO()
        np.save(file, array)
        found.append(("application/x-npy", file.getvalue()))
    return found


def list_requests(images: list[bytes]) -> list[tuple[str, bytes]]:
    """Return request bodies for the image classifier."""
    texts = [base64.b64encode(body).decode() for body in images if len(body) < 3000]
    found = [("image/png", images[0]), ("application/octet-stream", images[3])]
    found += [
        ("application/json", json.dumps({"instances": [text, {"b64": text}]}).encode()) for text in texts
    ]
    found.append(("application/jsonlines", b"\n".join(json.dumps(text).encode() for text in texts[:4])))
    pixels: list[object] = [[[0, 1, 2], [3, 4, 255]], [[[1], [2.5]]], [[0.5]], "data:image/png;base64,AAAA"]
    found.append(("application/json", json.dumps({"instances": pixels}).encode()))
    for shape in ((8, 8, 3), (2, 8, 8), (8, 8), (1, 8, 8, 1)):
        file = io.BytesIO()
        np.save(file, np.full(shape, 9, np.uint8))
        found.append(("application/x-npy", file.getvalue()))
    return found


numbers = st.sampled_from(NUMBERS) | st.integers(0, 70_000)
shorts = numbers.map(lambda number: number % (1 << 16))
words = numbers.map(lambda number: number % (1 << 32))
signed = words.map(lambda number: number - (1 << 31))
sides = st.integers(1, 40) | words
contents = st.binary(max_size=60)

JPEG_CODES = [0xC4, 0xDB, 0xDA, 0xDD, 0xE0, 0xE1, 0xE2, 0xEE, 0xFE, 0xC9, 0xCC]
JPEG_PIECES = [
    piece
    for body in (KINDS["jpeg"][0], KINDS["jpeg progressive"][0], MORE["jpeg cmyk"])
    for piece in (body[2:200], body[200:-2], body[-300:-2])
]
frames = st.builds(
    lambda bits, height, width, samples, rest: struct.pack(">BHHB", bits, height, width, samples) + rest,
    st.sampled_from([8, 8, 8, 12]),
    st.integers(1, 64) | shorts,
    st.integers(1, 64) | shorts,
    st.integers(0, 4),
    contents,
)
jpeg_parts = st.one_of(
    st.builds(segment, st.sampled_from([0xC0, 0xC2]), frames),
    st.builds(segment, st.sampled_from(JPEG_CODES), contents),
    st.sampled_from(JPEG_PIECES),
    contents,
)
jpegs = st.lists(jpeg_parts, min_size=1, max_size=8).map(
    lambda parts: b"\xff\xd8" + b"".join(parts) + b"\xff\xd9"
)

PNG_NAMES = [b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IHDR", b"acTL", b"fcTL", b"fdAT", b"zTXt", b"ABCD"]
pngs = st.builds(
    lambda chunks, *header, interlaced: png(*header, *chunks, interlaced=interlaced),
    st.lists(st.builds(chunk, st.sampled_from(PNG_NAMES), contents), max_size=4),
    sides,
    sides,
    st.sampled_from([1, 2, 4, 8, 16, 3]),
    st.sampled_from([0, 2, 3, 4, 6, 1]),
    st.binary(max_size=400),
    interlaced=st.integers(0, 2),
)

bmps = st.builds(
    bmp,
    st.integers(-40, 40) | signed,
    st.integers(-40, 40) | signed,
    st.sampled_from([1, 4, 8, 16, 24, 32, 7]),
    st.integers(0, 6),
    st.binary(max_size=400),
    colors=st.just([(1, 2, 3)] * 16),
)

WEBP_NAMES = [b"VP8X", b"VP8 ", b"VP8L", b"ANIM", b"ANMF", b"ALPH", b"EXIF", b"ICCP"]
WEBP_PIECES = [KINDS[name][0][20:] for name in ("webp", "webp lossy")]
webps = st.lists(
    st.tuples(st.sampled_from(WEBP_NAMES), contents | st.sampled_from(WEBP_PIECES)), min_size=1, max_size=5
).map(lambda parts: riff(*parts))

# All tags except the offsets of the strips, which the writer sets.
TAGS = [256, 257, 258, 259, 262, 266, 274, 277, 278, 284, 317, 320, 322, 323, 330, 338, 339, 347, 530, 34665]
tags = st.dictionaries(
    st.sampled_from([f"t{tag}" for tag in TAGS]),
    st.sampled_from([1, 2, 3, 4, 5, 7, 8, 16, 32, 32773]) | words | st.lists(shorts, min_size=1, max_size=5),
    max_size=8,
)
tiffs = st.builds(
    lambda width, height, data, found, **options: tiff(width, height, [data], **options, **found),
    sides,
    sides,
    st.binary(max_size=900),
    tags,
    order=st.sampled_from("<>"),
    big=st.booleans(),
    following=st.sampled_from([0, 8, 16, 9999]),
)

scans = st.builds(progressive_jpeg, st.integers(1, 200), st.integers(1, 200), st.integers(1, 110))
structured = st.one_of(jpegs, scans, pngs, bmps, webps, tiffs)


def draw(count: int, number: int) -> list[bytes]:
    """Return `count` generated images, the same for the same number."""
    drawn: list[bytes] = []

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(structured)
    def keep(body: bytes) -> None:
        drawn.append(body)

    keep()
    return drawn


class Source:
    """Generates batches of inputs, the same for the same seed and batch number."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.images = list_images()
        self.small = [body for body in self.images if len(body) < 20_000]
        self.rows = list_rows()
        self.requests = list_requests(self.small)

    def batch(self, index: int, size: int) -> Iterator[Input]:
        """Yield a batch: images, two in ten of them generated, then rows and requests."""
        rng = random.Random(f"{self.number}-{index}")
        for body in draw(size * 2 // 10, rng.randrange(1 << 32)):
            yield Input("image", "", mutate(rng, body, self.small) if rng.random() < 0.3 else body)
        for _ in range(size // 2):
            chosen = rng.choice(self.images if rng.random() < 0.05 else self.small)
            yield Input("image", "", mutate(rng, chosen, self.small))
        for target, bodies in (("rows", self.rows), ("request", self.requests)):
            others = [body for _, body in bodies]
            for _ in range(size * 15 // 100):
                kind, body = rng.choice(bodies)
                yield Input(target, kind, mutate(rng, body, others))
