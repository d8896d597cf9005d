"""The models and requests of the workloads: real bundles with random weights from a fixed seed, written once.

`python -m bench.samples FOLDER` writes them, in a separate process because it needs TensorFlow.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "bench" / ".cache"
LOGS = CACHE / "logs"
RESULTS = ROOT / "bench" / "results"
SEED = 0
CLASSES = 1000
GOLDEN = 32
#: Rows that int8 is calibrated on, none of them a reference row.
CALIBRATION = 200
FEATURES = 30
#: Random networks give all labels nearly the same probability; this spread of logits separates them.
LOGITS = 2.0

Pixels = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Workload:
    """One kind of request; its folder has `model/` and the file `body`, which every caller posts."""

    name: str
    title: str
    content_type: str
    algorithm: str
    body: str
    has_limit: bool = False  # the other workloads are nearly all HTTP


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "picture",
            "MobileNetV2 at 224 x 224, a JPEG of 640 x 427 pixels and 143 kB",
            "image/jpeg",
            "algorithms.image_classifier",
            "flower.jpg",
            has_limit=True,
        ),
        Workload(
            "digits",
            "SmallCNN at 32 x 32, a PNG of 8 x 8 pixels",
            "image/png",
            "algorithms.image_classifier",
            "digit.png",
        ),
        Workload(
            "tabular",
            f"a linear model in NumPy, one JSON row of {FEATURES} numbers",
            "application/json",
            "bench.tabular",
            "row.json",
        ),
    )
}


def find_samples(cache: Path) -> Path:
    """Return the folder with one subfolder per workload, written again if its source code has changed."""
    cache.mkdir(exist_ok=True)
    sources = [Path(__file__), *(ROOT / "program" / "backends").rglob("*.py")]
    shared = ("tandem/images/codec.py", "algorithms/image_classifier/networks.py")
    sources += [ROOT / "program" / name for name in shared]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()[:12]
    folder = cache / f"samples-{digest}"
    if not (folder / "complete").exists():
        for stale in cache.glob("samples-*"):
            shutil.rmtree(stale)
        command = [sys.executable, "-m", "bench.samples", str(folder)]
        quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
        subprocess.run(command, cwd=ROOT, env=quiet, check=True, timeout=600, stdout=sys.stderr)
    return folder


def write_samples(folder: Path) -> None:
    """Write each workload's model and body below `folder`, and the file `complete` at the end."""
    import sklearn.datasets

    from tandem.images import codec
    from tandem.images.codec import Preprocessing

    sys.path.insert(0, str(ROOT / "local_test"))
    encode_png = importlib.import_module("digits").encode_png
    for workload in WORKLOADS.values():
        (folder / workload.name / "model").mkdir(parents=True, exist_ok=True)

    photographs = Path(sklearn.datasets.__file__).parent / "images"
    (folder / "picture" / "flower.jpg").write_bytes((photographs / "flower.jpg").read_bytes())
    spec = Preprocessing(height=224, width=224)
    whole = [codec.decode((photographs / name).read_bytes()) for name in ("flower.jpg", "china.jpg")]
    corners = [(top, left) for top in range(0, 204, 60) for left in range(0, 417, 120)]
    views = [(image, 224, *corner) for image in whole for corner in corners][:GOLDEN]
    views += [(image, *view) for image in whole for view in _calibration_views()]
    crops = [image[top : top + size, left : left + size] for image, size, top, left in views]
    rows = np.stack([codec.preprocess(np.ascontiguousarray(crop), spec) for crop in crops])
    _write_classifier(folder / "picture" / "model", "MobileNetV2", spec, rows, CLASSES)

    grey = (sklearn.datasets.load_digits().images * 255 / 16).round().astype(np.uint8)
    (folder / "digits" / "digit.png").write_bytes(encode_png(grey[0].tolist()))
    spec = Preprocessing(height=32, width=32)
    digits = grey[: GOLDEN + CALIBRATION]
    rows = np.stack([codec.preprocess(codec.from_array(digit), spec) for digit in digits])
    _write_classifier(folder / "digits" / "model", "SmallCNN", spec, rows, 10)

    random = np.random.default_rng(SEED)
    np.savez(folder / "tabular" / "model" / "weights.npz", weights=random.normal(size=(FEATURES, 3)))
    row = random.normal(size=FEATURES).round(4).tolist()
    (folder / "tabular" / "row.json").write_text(json.dumps({"instances": [row]}))
    (folder / "complete").touch()


def _calibration_views() -> list[tuple[int, int, int]]:
    """Return size, top and left of larger crops, with which int8 is calibrated."""
    random = np.random.default_rng(SEED)
    sizes = random.integers(240, 420, CALIBRATION // 2).tolist()
    return [(size, int(random.integers(427 - size)), int(random.integers(640 - size))) for size in sizes]


def _write_classifier(model_dir: Path, architecture: str, spec: Any, rows: Pixels, classes: int) -> None:
    import keras

    from algorithms.image_classifier.networks import build_network
    from backends.bundle.writer import write_bundle
    from backends.engines import quantization
    from tandem.runtime.devices import Decision

    keras.utils.set_random_seed(SEED)
    network = build_network(architecture, spec.shape, classes)
    pixels = rows[:GOLDEN].astype(np.float32)
    for _ in range(30):  # fit the normalizations' statistics, as training does
        network(pixels, training=True)
    head = network.layers[-1]
    features = keras.Model(network.input, network.layers[-2].output)(pixels, training=False)
    kernel, bias = head.get_weights()
    logits = np.asarray(features) @ kernel
    head.set_weights([kernel * (LOGITS / logits.std(axis=1).mean()), bias])
    write_bundle(
        model_dir,
        network,
        labels=[str(number) for number in range(classes)],
        preprocessing=spec.as_dict(),
        golden_inputs=rows[:GOLDEN],
        decision=Decision("cpu", "the benchmark's samples"),
    )
    quantization.add_int8(model_dir, rows[GOLDEN:], ())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.path.insert(0, str(ROOT / "program"))
    write_samples(Path(sys.argv[1]))
