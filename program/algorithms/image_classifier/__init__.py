"""Image classification: one folder of pictures per label in, labels with probabilities out."""

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
    """What a training job may set; every default works."""

    epochs: int = hyperparameter(10, minimum=1, maximum=1000, help="Passes over the training pictures.")
    batch_size: int = hyperparameter(32, minimum=1, maximum=4096, tunable=(16, 256), help="Pictures a step.")
    learning_rate: float = hyperparameter(
        0.001,
        exclusive_minimum=0,
        maximum=1,
        tunable=(1e-5, 0.1),
        scale="Logarithmic",
        help="Adam's rate at the start; it falls along a cosine to zero at the last epoch.",
    )
    dropout: float = hyperparameter(
        0.3,
        minimum=0,
        maximum=0.9,
        tunable=True,
        help="Share of the features left out before the last layer in training; SmallCNN leaves out a third "
        "of it after each block.",
    )
    class_weights: str = hyperparameter(
        "none",
        choices=("none", "balanced"),
        help="balanced: mistakes on rare labels count more, so that all labels count the same.",
    )
    architecture: str = hyperparameter(
        "SmallCNN",
        choices=tuple(ARCHITECTURES),
        help="SmallCNN: six convolutions, for small pictures. The others are Keras's own, by their names.",
    )
    image_size: int | None = hyperparameter(
        None,
        minimum=8,
        maximum=1024,
        help="Every picture becomes a square of this many pixels a side; 32 or more unless SmallCNN. "
        "None: 32 for SmallCNN, else 224.",
    )
    color: str = hyperparameter(
        "RGB",
        choices=("RGB", "GRAY"),
        help="What the network sees; pictures of the other kind are converted.",
    )
    augmentation: str = hyperparameter(
        "light",
        choices=("none", "light", "flip"),
        tunable=True,
        help="How training pictures are varied. light: shifted, turned, zoomed, brightness and contrast, all "
        "a little; flip: also mirrored left and right, which letters and digits do not survive.",
    )
    early_stopping: int = hyperparameter(
        0,
        minimum=0,
        maximum=1000,
        help="Epochs without a lower val_loss that end the training, with the best epoch's weights; 0: off.",
    )
    weights: str = hyperparameter(
        "random",
        help="Where the weights start: random, or the name of a Keras file (.keras, .h5, .weights.h5) in the "
        "channel pretrained; a last layer for other labels starts at random.",
    )
    freeze_epochs: int = hyperparameter(
        0,
        minimum=0,
        maximum=1000,
        help="The first epochs, in which only the last layer is fitted; for weights that do not start at "
        "random.",
    )
    fine_tuning_rate: float | None = hyperparameter(
        None,
        exclusive_minimum=0,
        maximum=1,
        help="The learning rate at which the whole network is fitted after freeze_epochs. None: a tenth of "
        "learning_rate.",
    )
    validation_share: float = hyperparameter(
        0.2,
        minimum=0.01,
        maximum=0.5,
        help="Share of every label's pictures held out for validation where there is no channel validation.",
    )
    unreadable_share: float = hyperparameter(
        0.1,
        minimum=0,
        maximum=1,
        help="Unreadable pictures are left out and named in the log; a larger share than this ends the job.",
    )
    seed: int = hyperparameter(
        0,
        minimum=0,
        maximum=2**31 - 1,
        help="Decides the split, the order, the augmentation and the weights.",
    )
    deterministic: bool = hyperparameter(
        False,  # noqa: FBT003
        help="The same seed gives the same weights to the last bit on the same kind of machine; slower.",
    )
    precision: str = hyperparameter(
        "auto",
        choices=dtype_policy.POLICIES,
        help="What layers compute in on GPUs; auto: mixed_bfloat16 or mixed_float16 where the GPU gains by "
        "it. On CPUs always float32. The stored model is float32.",
    )
    xla: bool = hyperparameter(
        False,  # noqa: FBT003
        help="Compile the steps by XLA: slower on CPUs; on one GPU a long first step, perhaps faster ones.",
    )
    quantization: str = hyperparameter(
        "none",
        choices=("none", "int8"),
        help="int8: the bundle gets a form in whole numbers too, calibrated on 300 training pictures, that "
        "serves about twice as fast where the setting PRECISION asks for it.",
    )
    checkpoint_minutes: float = hyperparameter(
        5.0,
        minimum=0,
        maximum=1440,
        help="Minutes between checkpoints within an epoch, where the job has a CheckpointConfig; there is "
        "one after each epoch in any case. 0: after each step.",
    )
    num_classes: int | None = hyperparameter(
        None,
        minimum=2,
        maximum=100_000,
        help="Labels of channels of records, 0 to one less; Pipe mode needs it. None: counted in the files.",
    )
    num_training_samples: int | None = hyperparameter(
        None,
        minimum=1,
        help="Records of one pass through channel training, of all hosts together; only Pipe mode needs it.",
    )
    num_validation_samples: int | None = hyperparameter(
        None,
        minimum=1,
        help="Records of one pass through channel validation, likewise.",
    )


PICTURES = [
    *("application/x-image", "image/jpeg", "image/png", "image/bmp", "image/webp", "image/tiff"),
    *parsing.CONTENT_TYPES,
]

CHANNELS: dict[str, dict[str, Any]] = {
    "training": {
        "description": "Pictures in one folder per label, or listed by an index, or records of pictures.",
        "content_types": PICTURES,
        "required": True,
    },
    "validation": {
        "description": "Pictures to measure on, laid out the same; without it, some of training is kept.",
        "content_types": PICTURES,
        "required": False,
    },
    "pretrained": {
        "description": "A Keras file for the weights to start from; the hyperparameter weights names it.",
        "content_types": ["application/octet-stream"],
        "required": False,
    },
    "test": {
        "description": "Pictures for the report only, laid out as training is.",
        "content_types": PICTURES,
        "required": False,
    },
    "model": {
        "description": "An earlier job's model.tar.gz, whose training this one continues.",
        "content_types": ["application/x-sagemaker-model"],
        "required": False,
    },
}

METRICS = {
    name: regex(name) for name in ("loss", "accuracy", "val_loss", "val_accuracy", "images_per_second")
}

OBJECTIVE = ("Maximize", "val_accuracy")

CONTENT_TYPES = tuple(inputs.READERS)

ACCEPTS = tuple(outputs.ARRANGEMENTS)

MAX_BATCH_ROWS = 64


@dataclass(frozen=True)
class Classifier:
    """A loaded bundle: what computes, what its outputs are called, and how its inputs are made."""

    engine: loader.Engine
    labels: tuple[str, ...]
    preprocessing: Preprocessing

    @property
    def concurrency(self) -> int | None:
        """How many threads at once pay; None: only the thread that loaded it may use it."""
        return self.engine.concurrency

    @property
    def max_batch_rows(self) -> int:
        """How many rows at once pay."""
        return self.engine.max_batch_rows


def train(job: TrainingJob[Hyperparameters]) -> None:
    """Fit a network to the job's pictures and leave a bundle in `job.model_dir`, also when stopped."""
    from algorithms.image_classifier.training import train  # which serving can do without

    train.train(job)


def model_fn(model_dir: Path, context: Context) -> Classifier:
    """Load the bundle on the engine that `context` calls for."""
    engine, manifest = loader.load_engine(
        model_dir, context.backend, context.decision, context.cores, context.precision
    )
    preprocessing = Preprocessing.from_dict(manifest.preprocessing)
    made, taken = (preprocessing.shape, preprocessing.dtype), (manifest.input_shape, manifest.input_dtype)
    if made != taken:
        raise UserError(
            f"the manifest's preprocessing makes rows of {made}, but its model takes {taken}; "
            "restore the whole model."
        )
    return Classifier(engine, manifest.labels, preprocessing)


def input_fn(body: bytes, content_type: str, context: Context) -> np.ndarray[Any, np.dtype[Any]]:
    """Give the request's pictures as rows (n, h, w, c), preprocessed as in training.

    One picture: `image/*`, `application/x-image`, `application/octet-stream`. Several: JSON
    `{"instances": [...]}` or JSON Lines, each a base64 text, `{"b64": text}`, `{"image": text}` or nested
    lists (h, w) or (h, w, c) of 0 to 255; NPY (n, h, w, c) or (n, h, w). NPY of (h, w) is one picture, and so
    is one of three axes whose last has 1 or 3 places.
    """
    return inputs.read_pictures(body, content_type, context.model.preprocessing)


def predict_fn(data: np.ndarray[Any, np.dtype[Any]], model: Classifier) -> np.ndarray[Any, np.dtype[Any]]:
    """Give float32 probabilities (n, labels)."""
    return model.engine.predict(data)


def output_fn(prediction: np.ndarray[Any, np.dtype[Any]], accept: str, context: Context) -> bytes:
    """Give the answer: JSON or JSON Lines with the best ten labels, CSV `label,probability`, or NPY."""
    return outputs.write_answers(prediction, accept, context.model.labels)
