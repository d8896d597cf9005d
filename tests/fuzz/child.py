"""Runs batches of inputs and reports each batch on standard output; the parent notices crashes."""

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

SLOW_SECONDS = 2.0  # of CPU time, as wall-clock time depends on other processes
CURRENT_BYTES = 1 << 24
HEAD = struct.Struct("<QII")  # inputs started, length of the body, length of the description
SPEC = codec.Preprocessing(16, 16, resize="crop")
COMPARED_PIXELS = 250_000
M_PERTURB = -6  # the byte with which the C library fills allocated memory
LIBC = ctypes.CDLL(None)


def main() -> None:
    """Run batches FIRST to LAST of SIZE inputs by SEED; the current input is always in the file CURRENT."""
    number, first, last, size = map(int, sys.argv[1:5])
    path = Path(sys.argv[5])
    path.write_bytes(bytes(CURRENT_BYTES))
    source = Source(number)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), CURRENT_BYTES) as current:
        for index in range(first, last):
            result = Batch(current).run(source, index, size)
            sys.stdout.write(json.dumps({"batch": index, **result}) + "\n")
            sys.stdout.flush()


class Batch:
    """The results of a batch."""

    begun = 0

    def __init__(self, current: mmap.mmap) -> None:
        self.current = current
        self.outcomes: Counter[str] = Counter()
        self.faults: list[dict[str, str]] = []
        self.slowest = 0.0
        self.noise: Counter[str] = Counter()
        self.max_noise = 0

    def run(self, source: Source, index: int, size: int) -> dict[str, Any]:
        """Decode all inputs of a batch; return the counts, the slowest time and the final memory."""
        for given in source.batch(index, size):
            self.note(given)
            before, started = os.fstat(2).st_size, time.process_time()
            try:
                rows = READERS[given.target](given)
                self.listen(given, before)
                if given.target == "image":
                    check_image(given.body, rows)
                outcome = "accepted"
            except UserError as error:
                self.listen(given, before)
                outcome = error.kind
            except Exception:  # noqa: BLE001  # fuzzing looks for any exception
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
            "max_noise": self.max_noise,
            "rss": pages * os.sysconf("SC_PAGESIZE"),
        }

    def note(self, given: Input) -> None:
        """Write the input to where the parent finds it if this process crashes."""
        Batch.begun += 1
        known = f"{given.target} {given.content_type}".encode()
        body = given.body[: CURRENT_BYTES - HEAD.size - len(known)]
        self.current[: HEAD.size] = HEAD.pack(Batch.begun, len(body), len(known))
        self.current[HEAD.size : HEAD.size + len(known) + len(body)] = known + body

    def save(self, given: Input, why: str) -> None:
        """Report an input that was not handled correctly."""
        self.faults.append(
            {"known": f"{given.target} {given.content_type}", "why": why, "body": given.body.hex()}
        )

    def listen(self, given: Input, before: int) -> None:
        """Count the lines of C libraries on standard error, and the maximum for one image."""
        after = os.fstat(2).st_size
        if after > before:
            lines = os.pread(2, after - before, before).decode(errors="replace").splitlines()
            if given.target == "image":
                self.max_noise = max(self.max_noise, len(lines))
            self.noise.update(" ".join(line.split()[:4]) for line in lines)


def read_image(given: Input) -> Any:
    LIBC.mallopt(M_PERTURB, 0x55)
    return codec.decode(given.body)


def read_rows(given: Input) -> Any:
    rows = formats.decode_rows(given.body, given.content_type)
    assert len(rows) > 0
    return rows


def read_request(given: Input) -> Any:
    rows = inputs.read_images(given.body, given.content_type, SPEC)
    assert (rows.shape[1:], rows.dtype) == (SPEC.shape, SPEC.dtype)
    return rows


READERS = {"image": read_image, "rows": read_rows, "request": read_request}


def check_image(body: bytes, image: Any) -> None:
    """Check the properties of a decoded image, also that its pixels depend only on the file."""
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image.flags.c_contiguous
    if image.shape[0] * image.shape[1] <= COMPARED_PIXELS:
        assert codec.preprocess(image, SPEC).shape == SPEC.shape
        LIBC.mallopt(M_PERTURB, 0xAA)
        assert np.array_equal(image, codec.decode(body)), "the image contains uninitialized memory"


if __name__ == "__main__":
    main()
