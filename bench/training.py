"""Measure how fast images are fitted, by where their batches come from; `make bench-train` runs it.

The batches come from tensors in memory (the limit), from our files (`ours`), and from Keras's own
`image_dataset_from_directory`. All take turns in one process, and ratios compare figures of the same round.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.figures import Record, Spread, compare, group, render_table, show_ratio
from bench.samples import CACHE, RESULTS
from tandem.images.codec import Preprocessing

SEED = 0
QUALITY = 90
LABELS = ("china", "flower")
BATCH_SIZE = 32

#: From an epoch's number to its batches of (pixels, labels int64, weights float32).
Pass = Callable[[int], Iterable[Any]]


@dataclasses.dataclass(frozen=True)
class Workload:
    """A network, and the size and number of the images it is fitted to."""

    architecture: str
    size: int
    images: int


WORKLOADS = {
    "32": Workload("SmallCNN", 32, 1024),
    "224": Workload("MobileNetV2", 224, 96),
}


def main(arguments: Sequence[str]) -> int:
    """Measure, print the tables, and write them to `training.md`."""
    parser = argparse.ArgumentParser("make bench-train BENCH_ARGS=", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", choices=WORKLOADS, help="one image size")
    parser.add_argument("--output", type=Path, default=RESULTS, help="a folder")
    options = parser.parse_args(arguments)
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="2", CUDA_VISIBLE_DEVICES="-1")
    options.output.mkdir(parents=True, exist_ok=True)
    records: list[Record] = []
    for name, workload in WORKLOADS.items():
        if options.only in (None, name):
            folder = find_images(CACHE, workload.size, workload.images)
            feed = Feed(folder, workload.size)
            found = measure_speed(feed, workload.architecture, options.rounds)
            records += [{"workload": name, **record} for record in found]
    text = render(records)
    (options.output / "training.md").write_text(text)
    print(text)
    return 0


def find_images(cache: Path, size: int, count: int) -> Path:
    """Return a folder of `count` JPEGs of `size` x `size` pixels, one folder per label; written once.

    They are crops of random size and position of scikit-learn's two photographs, every other one mirrored.
    """
    import cv2
    import sklearn.datasets

    folder = cache / f"photographs-{size}-{count}"
    if (folder / ".complete").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    images = Path(sklearn.datasets.__file__).parent / "images"
    photographs: list[Any] = [cv2.imread(str(images / f"{label}.jpg")) for label in LABELS]
    for label in LABELS:
        (folder / label).mkdir(parents=True)
    random = np.random.default_rng(SEED)
    for number in range(count):
        photograph = photographs[number % len(LABELS)]
        height, width = photograph.shape[:2]
        side = int(random.integers(size, height + 1))
        top, left = (int(random.integers(0, length - side + 1)) for length in (height, width))
        crop = photograph[top : top + side, left : left + side]
        if random.random() < 0.5:
            crop = crop[:, ::-1]
        crop = cv2.resize(np.ascontiguousarray(crop), (size, size), interpolation=cv2.INTER_AREA)
        path = folder / LABELS[number % len(LABELS)] / f"{number:06}.jpg"
        if not cv2.imwrite(str(path), crop, [cv2.IMWRITE_JPEG_QUALITY, QUALITY]):
            raise OSError(f"{path} cannot be written")
    (folder / ".complete").touch()
    return folder


@dataclasses.dataclass(frozen=True)
class Feed:
    """The ways in which a folder of images of `size` x `size` pixels becomes batches."""

    folder: Path
    size: int

    @property
    def spec(self) -> Preprocessing:
        """How the images are read."""
        return Preprocessing(height=self.size, width=self.size)

    def from_files(self, memory: int | None) -> Pass:
        """Return our source, which keeps decoded images in `memory` bytes; None: as many as it chooses."""
        from algorithms.image_classifier.data.images import ImageReader
        from algorithms.image_classifier.data.source import Batching
        from algorithms.image_classifier.files import listing
        from algorithms.image_classifier.files.source import FileSource
        from tandem.jobs.channels import Channel

        labels = listing.sort_labels(path.name for path in self.folder.iterdir() if path.is_dir())
        items = listing.list_labelled(Channel("training", self.folder), labels)
        reader = ImageReader(self.spec, len(items), 0)
        return FileSource(items, labels, reader, Batching(len(items), BATCH_SIZE, SEED), memory).batches

    def from_tensors(self) -> Pass:
        """Return the limit: the batches are tensors already, so that feeding them costs nothing."""
        batches = list(self.from_files(memory=0)(1))
        return lambda _epoch: batches

    def from_keras(self, *, cached: bool) -> Pass:
        """Return Keras's `image_dataset_from_directory`, which shuffles and yields float32 pixels."""
        import keras
        import tensorflow as tf

        dataset = keras.utils.image_dataset_from_directory(
            self.folder,
            image_size=(self.size, self.size),
            batch_size=None if cached else BATCH_SIZE,
            seed=SEED,
            verbose=False,
        )
        if cached:  # as in Keras's guides: single images are cached, so that each epoch has its own order
            dataset = dataset.cache().shuffle(1000, seed=SEED).batch(BATCH_SIZE)

        def weigh(pixels: Any, labels: Any) -> Any:
            return pixels, tf.cast(labels, tf.int64), tf.ones(tf.shape(labels)[:1])

        dataset = dataset.map(weigh, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
        return lambda _epoch: dataset


def make_fit(architecture: str, feed: Feed) -> Callable[[Iterable[Any]], dict[str, float]]:
    """Return a function that fits one pass with a job's step and returns images/s and CPU ms per image."""
    import keras

    from algorithms.image_classifier.networks import build_network
    from algorithms.image_classifier.training.step import Optimization, Trainer
    from backends.training.distribution import create_context
    from tandem.runtime.devices import Decision

    keras.utils.set_random_seed(SEED)
    context = create_context(Decision("cpu", "a benchmark"), ("algo-1",), "algo-1", "")
    network = build_network(architecture, feed.spec.shape, len(LABELS))
    optimization = Optimization(label_weights=[1.0] * len(LABELS), learning_rate=1e-3, steps=1_000_000)
    floats = dataclasses.replace(feed.spec, scale=0.5)  # makes the rows float32, as Keras's are
    trainers = {spec.dtype: Trainer(network, [], spec, optimization, context) for spec in (feed.spec, floats)}

    def fit(batches: Iterable[Any]) -> dict[str, float]:
        count = 0
        result: Any = None
        started, used = time.perf_counter(), time.process_time()
        for batch in batches:
            result = trainers[batch[0].dtype.name].train(0, batch)
            count += int(batch[1].shape[0])
        result.numpy()
        seconds, cpu = time.perf_counter() - started, time.process_time() - used
        return {"rate": count / seconds, "cpu": 1000 * cpu / count}

    return fit


def measure_speed(feed: Feed, architecture: str, rounds: int) -> list[Record]:
    """Return {round, way, rate, cpu} records; every way has its turn in each round, after one to warm up."""
    fit = make_fit(architecture, feed)
    limit, uncached = feed.from_tensors(), feed.from_files(memory=0)
    keras_plain, keras_cached = feed.from_keras(cached=False), feed.from_keras(cached=True)
    records: list[Record] = []
    for number in range(rounds + 1):
        kept = feed.from_files(memory=None)  # a new one, whose first epoch has nothing kept yet
        turns = [
            [("limit", limit, 1)],
            [("ours, not kept", uncached, number + 1)],
            [("ours, first epoch", kept, 1), ("ours, later epochs", kept, 2)],
            [("keras", keras_plain, 1)],
            [("keras, cached", keras_cached, 1)],
        ]
        shift = number % len(turns)
        for way, batches, epoch in itertools.chain(*turns[shift:], *turns[:shift]):
            found = fit(batches(epoch))
            if number:
                records.append({"round": number, "way": way, **found})
    return records


def render(measured: Sequence[Record]) -> str:
    """Return the tables in Markdown."""
    lines = []
    for (name,), records in group(measured, "workload").items():
        rows = [("", "images/s", "rate / limit", "rate / Keras's own", "CPU, ms/image", "limit's CPU / own")]
        for (way,), found in group(records, "way").items():
            others = {other: [one for one in records if one["way"] == other] for other in ("limit", "keras")}
            rows.append(
                (
                    way,
                    Spread.of(record["rate"] for record in found).show(),
                    show_ratio(compare(found, others["limit"])),
                    show_ratio(compare(found, others["keras"])),
                    f"{Spread.of(record['cpu'] for record in found).median:.2f}",
                    show_ratio(compare(others["limit"], found, "cpu")),
                )
            )
        workload = WORKLOADS[name]
        size = f"{workload.size} x {workload.size}"
        title = f"**{workload.architecture}, {workload.images} JPEGs of {size}, batches of {BATCH_SIZE}**"
        lines += [title, "", render_table(rows), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
