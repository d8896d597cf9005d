"""Reads one batch after the other and tells of each on standard output; its parent sees if it crashes."""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import struct
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from algorithms.image_classifier import inputs
from fuzz.inputs import Input, Source
from tandem import formats
from tandem.errors import UserError
from tandem.images import codec

SLOW_SECONDS = 2.0  # of the processor; the clock on the wall counts other processes too
CURRENT_BYTES = 1 << 24
HEAD = struct.Struct("<QII")  # inputs begun, length, length of what is known of it
SPEC = codec.Preprocessing(16, 16, resize="crop")
COMPARED_PIXELS = 250_000
M_PERTURB = -6  # with which byte the C library fills memory that it gives
LIBC = ctypes.CDLL(None)


def main() -> None:
    """Run batches FIRST to LAST of SIZE inputs by SEED; the input in hand is always in the file CURRENT."""
    number, first, last, size = map(int, sys.argv[1:5])
    path = Path(sys.argv[5])
    path.write_bytes(bytes(CURRENT_BYTES))
    source = Source(number)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), CURRENT_BYTES) as current:
        for index in range(first, last):
            told = Batch(current).run(source, index, size)
            sys.stdout.write(json.dumps({"batch": index, **told}) + "\n")
            sys.stdout.flush()


class Batch:
    """What became of a batch's inputs."""

    begun = 0

    def __init__(self, current: mmap.mmap) -> None:
        self.current = current
        self.outcomes: Counter[str] = Counter()
        self.faults: list[dict[str, str]] = []
        self.slowest = 0.0
        self.noise: Counter[str] = Counter()
        self.most_noise = 0

    def run(self, source: Source, index: int, size: int) -> dict[str, Any]:
        """Read all inputs of a batch; give the counts, the slowest and the memory held afterwards."""
        for given in source.batch(index, size):
            self.note(given)
            before, started = os.fstat(2).st_size, time.process_time()
            try:
                rows = READERS[given.target](given)
                self.listen(given, before)
                if given.target == "picture":
                    check_picture(given.body, rows)
                outcome = "accepted"
            except UserError as error:
                self.listen(given, before)
                outcome = error.kind
            except Exception:  # noqa: BLE001  # what the fuzzing is for
                outcome = "fault"
                self.save(given, traceback.format_exc())
            seconds = time.process_time() - started
            self.slowest = max(self.slowest, seconds)
            if seconds > SLOW_SECONDS:
                self.save(given, f"took {seconds:.1f} s")
            self.outcomes[f"{given.target} {outcome}"] += 1
        gc.collect()
        LIBC.malloc_trim(0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {
            "outcomes": self.outcomes,
            "faults": self.faults,
            "slowest": self.slowest,
            "noise": self.noise,
            "most_noise": self.most_noise,
            "rss": pages * os.sysconf("SC_PAGESIZE"),
        }

    def note(self, given: Input) -> None:
        """Leave the input where the parent finds it if this process ends in the middle of it."""
        Batch.begun += 1
        known = f"{given.target} {given.content_type}".encode()
        body = given.body[: CURRENT_BYTES - HEAD.size - len(known)]
        self.current[: HEAD.size] = HEAD.pack(Batch.begun, len(body), len(known))
        self.current[HEAD.size : HEAD.size + len(known) + len(body)] = known + body

    def save(self, given: Input, why: str) -> None:
        """Tell of an input that was not read as it must be."""
        self.faults.append(
            {"known": f"{given.target} {given.content_type}", "why": why, "body": given.body.hex()}
        )

    def listen(self, given: Input, before: int) -> None:
        """Count what C libraries wrote on standard error, and the most that one picture made them write."""
        after = os.fstat(2).st_size
        if after > before:
            lines = os.pread(2, after - before, before).decode(errors="replace").splitlines()
            if given.target == "picture":
                self.most_noise = max(self.most_noise, len(lines))
            self.noise.update(" ".join(line.split()[:4]) for line in lines)


def read_picture(given: Input) -> Any:
    LIBC.mallopt(M_PERTURB, 0x55)
    return codec.decode(given.body)


def read_rows(given: Input) -> Any:
    rows = formats.decode_rows(given.body, given.content_type)
    assert len(rows) > 0
    return rows


def read_request(given: Input) -> Any:
    rows = inputs.read_pictures(given.body, given.content_type, SPEC)
    assert (rows.shape[1:], rows.dtype) == (SPEC.shape, SPEC.dtype)
    return rows


READERS = {"picture": read_picture, "rows": read_rows, "request": read_request}


def check_picture(body: bytes, picture: Any) -> None:
    """Hold a picture against what is promised of it: also that its pixels come from the file alone."""
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    assert picture.flags.c_contiguous
    if picture.shape[0] * picture.shape[1] <= COMPARED_PIXELS:
        assert codec.preprocess(picture, SPEC).shape == SPEC.shape
        LIBC.mallopt(M_PERTURB, 0xAA)
        assert np.array_equal(picture, codec.decode(body)), "memory of others shows in the picture"


if __name__ == "__main__":
    main()
