"""Image classification, trained on one folder of images per label."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from algorithms.image_classifier import inputs, outputs
from algorithms.image_classifier.networks import ARCHITECTURES
from algorithms.image_classifier.records import parsing
from backends.engines import loader
from backends.training import dtype_policy
from tandem.algorithm import Context
from tandem.errors import UserError
from tandem.hyperparameters import hyperparameter
from tandem.images.codec import Preprocessing
from tandem.jobs.job import TrainingJob
from tandem.metrics import regex


@dataclass(frozen=True)
class Hyperparameters:
    """The hyperparameters of a training job; every default works."""

    epochs: int = hyperparameter(10, minimum=1, maximum=1000, help="Passes over the training images.")
    batch_size: int = hyperparameter(32, minimum=1, maximum=4096, tunable=(16, 256), help="Images per step.")
    learning_rate: float = hyperparameter(
        0.001,
        exclusive_minimum=0,
        maximum=1,
        tunable=(1e-5, 0.1),
        scale="Logarithmic",
        help="Adam's initial learning rate; it falls along a cosine to zero at the last epoch.",
    )
    dropout: float = hyperparameter(
        0.3,
        minimum=0,
        maximum=0.9,
        tunable=True,
        help="Share of the features dropped before the last layer in training; SmallCNN drops a third of it "
        "after each block.",
    )
    class_weights: str = hyperparameter(
        "none",
        choices=("none", "balanced"),
        help="balanced: mistakes on rare labels count more, so that all labels have the same total weight.",
    )
    architecture: str = hyperparameter(
        "SmallCNN",
        choices=tuple(ARCHITECTURES),
        help="SmallCNN: six convolutions, for small images. The others are Keras's own architectures.",
    )
    image_size: int | None = hyperparameter(
        None,
        minimum=8,
        maximum=1024,
        help="Every image is resized to a square with sides of this many pixels; 32 or more unless SmallCNN. "
        "None: 32 for SmallCNN, else 224.",
    )
    color: str = hyperparameter(
        "RGB",
        choices=("RGB", "GRAY"),
        help="The color mode of the network's input; other images are converted.",
    )
    augmentation: str = hyperparameter(
        "light",
        choices=("none", "light", "flip"),
        tunable=True,
        help="How training images are augmented. light: slightly shifted, rotated, zoomed, and changed in "
        "brightness and contrast; flip: also mirrored horizontally, which is wrong for letters and digits.",
    )
    early_stopping: int = hyperparameter(
        0,
        minimum=0,
        maximum=1000,
        help="Epochs without a lower val_loss after which training ends with the best epoch's weights; 0: "
        "off.",
    )
    weights: str = hyperparameter(
        "random",
        help="The initial weights: random, or the name of a Keras file (.keras, .h5, .weights.h5) in the "
        "channel pretrained; a last layer for other labels starts with random weights.",
    )
    freeze_epochs: int = hyperparameter(
        0,
        minimum=0,
        maximum=1000,
        help="The number of first epochs that train only the last layer; for weights that are not random.",
    )
    fine_tuning_rate: float | None = hyperparameter(
        None,
        exclusive_minimum=0,
        maximum=1,
        help="The initial learning rate of the whole network after freeze_epochs. None: a tenth of "
        "learning_rate.",
    )
    validation_share: float = hyperparameter(
        0.2,
        minimum=0.01,
        maximum=0.5,
        help="Share of every label's images held out for validation if there is no channel validation.",
    )
    unreadable_share: float = hyperparameter(
        0.1,
        minimum=0,
        maximum=1,
        help="Unreadable images are skipped and named in the log; a larger share than this fails the job.",
    )
    seed: int = hyperparameter(
        0,
        minimum=0,
        maximum=2**31 - 1,
        help="Determines the split, the order, the augmentation and the initial weights.",
    )
    deterministic: bool = hyperparameter(
        False,  # noqa: FBT003
        help="The same seed gives bit-identical weights on the same kind of instance; slower.",
    )
    precision: str = hyperparameter(
        "auto",
        choices=dtype_policy.POLICIES,
        help="The precision of layers on GPUs; auto: mixed_bfloat16 or mixed_float16 if the GPU is faster "
        "with it. CPUs always use float32. The stored model is float32.",
    )
    xla: bool = hyperparameter(
        False,  # noqa: FBT003
        help="Compile the steps with XLA: slower on CPUs; on one GPU a long first step, then possibly faster "
        "ones.",
    )
    quantization: str = hyperparameter(
        "none",
        choices=("none", "int8"),
        help="int8: the bundle also gets an int8 model, calibrated on 300 training images, that serves about "
        "twice as fast if the setting PRECISION selects it.",
    )
    checkpoint_minutes: float = hyperparameter(
        5.0,
        minimum=0,
        maximum=1440,
        help="Minutes between checkpoints within an epoch, if the job has a CheckpointConfig; there is "
        "always one after each epoch. 0: after each step.",
    )
    num_classes: int | None = hyperparameter(
        None,
        minimum=2,
        maximum=100_000,
        help="The number of labels of record channels, which are 0 to one less; Pipe mode needs it. None: "
        "counted in the files.",
    )
    num_training_samples: int | None = hyperparameter(
        None,
        minimum=1,
        help="Records per pass through channel training, of all hosts together; only Pipe mode needs it.",
    )
    num_validation_samples: int | None = hyperparameter(
        None,
        minimum=1,
        help="Records per pass through channel validation, of all hosts together; only Pipe mode needs it.",
    )


IMAGE_TYPES = [
    *("application/x-image", "image/jpeg", "image/png", "image/bmp", "image/webp", "image/tiff"),
    *parsing.CONTENT_TYPES,
]

CHANNELS: dict[str, dict[str, Any]] = {
    "training": {
        "description": "Images in one folder per label, or listed by an index, or records of images.",
        "content_types": IMAGE_TYPES,
        "required": True,
    },
    "validation": {
        "description": "Images to validate on, laid out like training; without it, a share of training is "
        "held out.",
        "content_types": IMAGE_TYPES,
        "required": False,
    },
    "pretrained": {
        "description": "A Keras file with the initial weights; the hyperparameter weights has its name.",
        "content_types": ["application/octet-stream"],
        "required": False,
    },
    "test": {
        "description": "Images for the report only, laid out like training.",
        "content_types": IMAGE_TYPES,
        "required": False,
    },
    "model": {
        "description": "The model.tar.gz of an earlier job, whose training this job continues.",
        "content_types": ["application/x-sagemaker-model"],
        "required": False,
    },
}

METRICS = {
    name: regex(name) for name in ("loss", "accuracy", "val_loss", "val_accuracy", "images_per_second")
}

OBJECTIVE = ("Maximize", "val_accuracy")

CONTENT_TYPES = inputs.CONTENT_TYPES

ACCEPTS = outputs.ACCEPTS

MAX_BATCH_ROWS = 64


@dataclass(frozen=True)
class Classifier:
    """A loaded bundle: its engine, its labels, and the preprocessing of its inputs."""

    engine: loader.Engine
    labels: tuple[str, ...]
    preprocessing: Preprocessing

    @property
    def concurrency(self) -> int | None:
        """How many threads may predict at the same time; None: only the thread that loaded the model."""
        return self.engine.concurrency

    @property
    def max_batch_rows(self) -> int:
        """How many rows a batch should have at most."""
        return self.engine.max_batch_rows


def train(job: TrainingJob[Hyperparameters]) -> None:
    """Train a network on the job's images and write a bundle to `job.model_dir`, also when stopped."""
    from algorithms.image_classifier.training import train  # not needed for serving

    train.train(job)


def model_fn(model_dir: Path, context: Context) -> Classifier:
    """Load the bundle on the engine that `context` selects."""
    engine, manifest = loader.load_engine(
        model_dir, context.backend, context.decision, context.cores, context.precision
    )
    preprocessing = Preprocessing.from_dict(manifest.preprocessing)
    produced = preprocessing.shape, preprocessing.dtype
    expected = manifest.input_shape, manifest.input_dtype
    if produced != expected:
        raise UserError(
            f"the manifest's preprocessing produces rows of {produced}, but its model takes {expected}; "
            "restore the whole model."
        )
    return Classifier(engine, manifest.labels, preprocessing)


def input_fn(body: bytes, content_type: str, context: Context) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the request's images as rows (n, h, w, c), preprocessed as in training.

    One image: `image/*`, `application/x-image`, `application/octet-stream`. Several images: JSON
    `{"instances": [...]}` or JSON Lines, each a base64 text, `{"b64": text}`, `{"image": text}` or nested
    lists (h, w) or (h, w, c) of 0 to 255; NPY (n, h, w, c) or (n, h, w). NPY of (h, w) is one image, and so
    is NPY of three axes if the last one has a length of 1 or 3.
    """
    return inputs.read_images(body, content_type, context.model.preprocessing)


def predict_fn(data: np.ndarray[Any, np.dtype[Any]], model: Classifier) -> np.ndarray[Any, np.dtype[Any]]:
    """Return float32 probabilities (n, labels)."""
    return model.engine.predict(data)


def output_fn(prediction: np.ndarray[Any, np.dtype[Any]], accept: str, context: Context) -> bytes:
    """Return the response: JSON or JSON Lines with the best ten labels, CSV `label,probability`, or NPY."""
    return outputs.encode_predictions(prediction, accept, context.model.labels)
