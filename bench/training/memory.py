"""Measure the peak of resident memory of a process that passes twice over pictures and fits nothing.

`python -m bench.training.memory WAY FOLDER SIZE BATCH` writes the peak, and what it was before, in MB.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench.training import ways
from bench.training.ways import Feed

WAYS = {
    "ours, not kept": lambda feed: ways.read_files(feed, memory=0),
    "ours, kept": lambda feed: ways.read_files(feed, memory=None),
    "keras": lambda feed: ways.use_keras(feed, cached=False),
    "keras, cached": lambda feed: ways.use_keras(feed, cached=True),
}


def read_peak() -> float:
    """Give this process's peak of resident memory so far, in MB."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (peak,) = (line.split()[1] for line in status if line.startswith("VmHWM"))
    return int(peak) * 1024 / 1e6


if __name__ == "__main__":
    import keras  # noqa: F401  # what a job has in memory anyway
    import tensorflow as tf

    way, folder, size, batch_size = sys.argv[1:]
    tf.zeros(1)
    before = read_peak()
    passes = WAYS[way](Feed(Path(folder), int(size), int(batch_size)))
    for epoch in (1, 2):
        for batch in passes(epoch):
            batch[0].shape  # noqa: B018
    print(json.dumps({"way": way, "before": before, "peak": read_peak()}))
