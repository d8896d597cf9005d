"""A training job of this algorithm, from the channels to the bundle."""

from __future__ import annotations

import dataclasses
import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path

from algorithms.image_classifier import data, fitting, networks
from backends import bundle, tensorflow_backend
from tandem.channels import Channel
from tandem.errors import UserError
from tandem.images import Preprocessing
from tandem.job import TrainingJob

logger = logging.getLogger(__name__)

#: Pictures whose answers the bundle keeps as its proof.
GOLDEN = 32


def train(job: TrainingJob) -> None:
    """Fit a network to the channel `training` and leave a bundle in `job.model_dir`, also when stopped."""
    if len(job.hosts) > 1:
        raise UserError(
            f"the job has {len(job.hosts)} hosts; this algorithm trains on one. Set InstanceCount to 1."
        )
    if len(job.decision.gpus) > 1:
        logger.warning("%s GPUs are usable; this algorithm trains on the first one.", len(job.decision.gpus))
    parameters = job.hyperparameters
    size = parameters.image_size or networks.ARCHITECTURES[parameters.architecture].image_size
    spec = describe_preprocessing(size, parameters.color)
    pretrained = find_pretrained(job.channels, parameters.weights)
    pictures = data.list_pictures(job.channels, parameters.validation_share, parameters.seed)
    listed = len(pictures.training) + len(pictures.validation)
    logger.info(
        "%s pictures of %s classes: %s to train, %s to validate; %s at %sx%s",
        *(listed, len(pictures.labels), len(pictures.training), len(pictures.validation)),
        *(parameters.architecture, size, size),
    )

    tensorflow_backend.start(job.decision)
    import keras

    keras.utils.set_random_seed(parameters.seed)
    network = networks.build_network(parameters.architecture, spec.shape, len(pictures.labels))
    if pretrained:
        networks.load_pretrained(network, pretrained)
    reader = data.Reader(spec, listed, parameters.unreadable_share)
    metrics = fitting.fit(
        network,
        networks.build_augmentation(parameters.augmentation),
        data.stream(pictures.training, reader, parameters.batch_size, parameters.seed),
        data.stream(pictures.validation, reader, parameters.batch_size, None),
        fitting.Plan(
            epochs=parameters.epochs,
            steps_per_epoch=math.ceil(len(pictures.training) / parameters.batch_size),
            learning_rate=parameters.learning_rate,
            patience=parameters.early_stopping,
            # The SDK's local mode gives a job a terminal that nobody watches, but also a name.
            progress=sys.stdout.isatty() and not job.name,
        ),
        stop=job.stop,
        check=reader.check,
    )
    report_unreadable(pictures, reader)
    bundle.write_bundle(
        job.model_dir,
        network,
        labels=pictures.labels,
        preprocessing=spec.as_dict(),
        golden_inputs=data.choose_spread([*pictures.validation, *pictures.training], GOLDEN, reader),
        decision=job.decision,
        metrics=metrics,
        hyperparameters={**dataclasses.asdict(parameters), "image_size": size},
    )


def describe_preprocessing(size: int, color: str) -> Preprocessing:
    """Give the preprocessing that training and serving share: a square of bytes, the whole picture in it."""
    return Preprocessing(
        height=size,
        width=size,
        channels=1 if color == "GRAY" else 3,
        color_order=color,
        resize="stretch",
        interpolation="area_or_cubic",
    )


def find_pretrained(channels: Mapping[str, Channel], weights: str) -> Path | None:
    """Find the file `weights` in the channel `pretrained`; None for random weights.

    Raises `UserError` where only one of the two was given, or the file is not there.
    """
    folder = channels["pretrained"].directory if "pretrained" in channels else None
    found = (
        sorted(path.name for path in folder.iterdir() if path.is_file()) if folder and folder.is_dir() else []
    )
    listed = ", ".join(found[:10]) or "no file"
    if weights == "random":
        if found:
            raise UserError(
                f"channel pretrained holds {listed}, but hyperparameter weights is 'random'; name the file "
                "there, or leave the channel out."
            )
        return None
    if folder is None:
        raise UserError(
            f"hyperparameter weights is {weights!r}, but there is no channel pretrained to hold that file; "
            "add the channel, or use 'random'."
        )
    if weights not in found:
        raise UserError(f"hyperparameter weights is {weights!r}; channel pretrained has: {listed}.")
    return folder / weights


def report_unreadable(pictures: data.Pictures, reader: data.Reader) -> None:
    """Say how many pictures were left out, and which labels the network has therefore never seen."""
    if not reader.unreadable:
        return
    logger.warning("%s of %s pictures were left out as unreadable.", len(reader.unreadable), reader.listed)
    readable = reader.readable(pictures.training)
    unseen = [label for index, label in enumerate(pictures.labels) if not readable[index]]
    if unseen:
        logger.warning("No picture for training could be read of: %s.", ", ".join(unseen))
