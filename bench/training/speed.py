"""Measure how many pictures a second are fitted, for each way of feeding them, in one process.

`python -m bench.training.speed FOLDER ARCHITECTURE SIZE BATCH ROUNDS` writes a line of JSON a measurement.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bench.training import ways
from bench.training.ways import Feed

LABELS = 2


class Fitter:
    """The step with which a job fits a network, without augmentation, for pixels as bytes and as floats."""

    def __init__(self, architecture: str, feed: Feed) -> None:
        import keras

        from algorithms.image_classifier.networks import build_network
        from algorithms.image_classifier.training.step import Optimization, Trainer
        from backends.training.distribution import create_context
        from tandem.runtime.devices import Decision

        keras.utils.set_random_seed(0)
        team = create_context(Decision("cpu", "a benchmark"), ("algo-1",), "algo-1", "")
        network = build_network(architecture, feed.spec.shape, LABELS)
        optimization = Optimization(label_weights=[1.0] * LABELS, learning_rate=1e-3, steps=1_000_000)
        floats = dataclasses.replace(feed.spec, scale=0.5)  # only its dtype counts here
        self._of_bytes = Trainer(network, [], feed.spec, optimization, team)
        self._of_floats = Trainer(network, [], floats, optimization, team)

    def fit(self, batches: Iterable[Any]) -> dict[str, float]:
        """Fit to one pass until the last step is computed; give images/s and CPU milliseconds an image."""
        count = 0
        result: Any = None
        started, used = time.perf_counter(), time.process_time()
        for batch in batches:
            trainer = self._of_bytes if batch[0].dtype == "uint8" else self._of_floats
            result = trainer.train(0, batch)
            count += int(batch[1].shape[0])
        result.numpy()
        seconds, cpu = time.perf_counter() - started, time.process_time() - used
        return {"rate": count / seconds, "cpu": 1000 * cpu / count}


def measure(feed: Feed, architecture: str, rounds: int) -> Iterator[dict[str, Any]]:
    """Give {round, way, rate, cpu}: in each round every way has its turn, and one round before warms up."""
    fitter = Fitter(architecture, feed)
    limit = ways.keep_tensors(feed)
    uncached = ways.read_files(feed, memory=0)
    keras_plain = ways.use_keras(feed, cached=False)
    keras_cached = ways.use_keras(feed, cached=True)
    for number in range(rounds + 1):
        cached = ways.read_files(feed, memory=None)  # a new one: its first epoch has nothing kept yet
        turns = [
            [("limit", limit, 1)],
            [("ours, not kept", uncached, number + 1)],
            [("ours, first epoch", cached, 1), ("ours, later epochs", cached, 2)],
            [("keras", keras_plain, 1)],
            [("keras, cached", keras_cached, 1)],
        ]
        shift = number % len(turns)  # nobody is always the first
        for name, passes, epoch in itertools.chain(*turns[shift:], *turns[:shift]):
            found = fitter.fit(passes(epoch))
            if number:
                yield {"round": number, "way": name, **found}


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    folder, architecture, size, batch_size, rounds = sys.argv[1:]
    for record in measure(Feed(Path(folder), int(size), int(batch_size)), architecture, int(rounds)):
        print(json.dumps(record), flush=True)
