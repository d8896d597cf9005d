"""Small images of one color each and jobs that train on them, for tests of the image classifier."""

import base64
import io
import json
import re
from pathlib import Path

import cv2
import numpy as np

from algorithms import image_classifier
from tandem import hyperparameters
from tandem.jobs.channels import Channel
from tandem.jobs.job import TrainingJob
from tandem.runtime.devices import Decision

CPU = Decision(device="cpu", reason="a test")
COLORS = {"blue": (255, 0, 0), "green": (0, 255, 0), "red": (0, 0, 255)}  # BGR, as in cv2


def paint(label: str, seed: int, size: tuple[int, int] = (12, 18)) -> np.ndarray:
    """Return a noisy image of one color in BGR."""
    noise = np.random.default_rng(seed).integers(-60, 60, (*size, 3))
    return np.clip(np.array(COLORS[label]) * 0.6 + 60 + noise, 0, 255).astype(np.uint8)


def write_images(folder: Path, labels=tuple(COLORS), count: int = 12, first: int = 0) -> Path:
    """Write `count` images per label in the layout of a channel."""
    for label in labels:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            assert cv2.imwrite(str(folder / label / f"{number:03}.png"), paint(label, number))
    return folder


def make_job(root: Path, folders: dict[str, Path], **parameters) -> TrainingJob:
    """Return a job as `train` gets it, with typed hyperparameters that are small and quick by default."""
    chosen = {"image_size": 8, "epochs": 1, "batch_size": 8, "augmentation": "none", **parameters}
    typed = hyperparameters.convert(
        {name: str(value) for name, value in chosen.items()}, image_classifier.Hyperparameters
    )
    return TrainingJob(base_dir=root, channels=make_channels(folders), hyperparameters=typed, decision=CPU)


def make_channels(folders) -> dict[str, Channel]:
    """Return File channels of these folders."""
    return {name: Channel(name, folder) for name, folder in folders.items()}


def read_epochs(caplog) -> list[dict[str, float]]:
    """Return the metrics in the log lines of epochs, read with the declared regexes as SageMaker does."""
    lines = [record.getMessage() for record in caplog.records if re.match("epoch=", record.getMessage())]
    return [
        {name: float(re.search(regex, line)[1]) for name, regex in image_classifier.METRICS.items()}
        for line in lines
    ]


def encode_requests(image: np.ndarray) -> dict[str, tuple[str, bytes]]:
    """Return the BGR image in every content type and encoding of requests."""
    png = cv2.imencode(".png", image)[1].tobytes()
    text = base64.b64encode(png).decode()
    rgb = image[:, :, ::-1]

    def npy(array: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, array)
        return buffer.getvalue()

    instances = [text, {"b64": text}, {"image": text}, f"data:image/png;base64,{text}", rgb.tolist()]
    forms = {
        f"json {number}": ("application/json", json.dumps({"instances": [instance]}).encode())
        for number, instance in enumerate(instances)
    }
    lines = "".join(json.dumps(instance) + "\n" for instance in instances).encode()
    return {
        **forms,
        "png": ("image/png", png),
        "x-image": ("application/x-image", png),
        "bytes": ("application/octet-stream", png),
        "lines": ("application/jsonlines; charset=utf-8", lines),
        "npy": ("application/x-npy", npy(rgb)),
        "npy rows": ("application/x-npy", npy(np.stack([rgb, rgb]))),
    }
