"""A training job of this algorithm, from the channels to the bundle and the report."""

from __future__ import annotations

import dataclasses
import logging
import math
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from algorithms.image_classifier import Hyperparameters, networks, report
from algorithms.image_classifier.data.sources import Reading, Sources, open_sources
from algorithms.image_classifier.records.channels import Told
from algorithms.image_classifier.report.evaluation import Split, measure
from algorithms.image_classifier.training import calibration, initial_weights
from algorithms.image_classifier.training.loop import Fit, Outcome, Plan
from algorithms.image_classifier.training.step import Optimization, Trainer, balance_labels
from algorithms.image_classifier.training.tensorboard import Scalars
from backends.bundle import writer
from backends.engines import quantization, tensorflow_engine
from backends.training import dtype_policy
from backends.training.checkpoints import CheckpointStore
from backends.training.distribution import DistributedContext, create_context
from tandem.images.codec import Preprocessing
from tandem.jobs.job import TrainingJob

logger = logging.getLogger(__name__)

#: Pictures whose answers the bundle keeps as its proof.
GOLDEN = 32

#: Hyperparameters that may change between two runs of which one goes on where the other was stopped.
CHANGEABLE = ("epochs", "early_stopping", "checkpoint_minutes", "unreadable_share", "xla", "quantization")


def train(job: TrainingJob[Hyperparameters]) -> None:
    """Fit a network to the channel `training` and leave a bundle in `job.model_dir`, also when stopped."""
    parameters = job.hyperparameters
    if parameters.quantization == "int8":
        quantization.check_installed()
    tensorflow_engine.start(job.decision)
    if parameters.deterministic:
        tensorflow_engine.make_deterministic()
    team = create_context(job.decision, job.hosts, job.current_host, job.network_interface, stop=job.stop)
    with team.guard():
        size = parameters.image_size or networks.ARCHITECTURES[parameters.architecture].image_size
        spec = describe_preprocessing(size, parameters.color)
        reading = Reading(
            spec,
            parameters.batch_size,
            parameters.seed,
            parameters.validation_share,
            parameters.unreadable_share,
            Told(
                parameters.num_classes,
                {
                    "training": parameters.num_training_samples,
                    "validation": parameters.num_validation_samples,
                },
            ),
            job.stop,
        )
        sources = open_sources(job.channels, reading, team.rank, team.exchange)
        logger.info(
            "%s pictures of %s labels to train, %s to validate; %s at %sx%s",
            *(sources.training.rows, len(sources.labels), sources.validation.rows),
            *(parameters.architecture, size, size),
        )
        network, outcome = _fit(job, spec, sources, team)
        sources.report()
        if team.rank == 0:
            _write(job, network, outcome, sources, {**dataclasses.asdict(parameters), "image_size": size})
        team.exchange("written")  # all hosts leave together, after the model is there


def _fit(
    job: TrainingJob[Hyperparameters], spec: Preprocessing, sources: Sources, team: DistributedContext
) -> tuple[Any, Outcome]:
    """Fit a network; give it in float32, as it is stored and served, with its numbers."""
    import keras

    parameters = job.hyperparameters
    policy = dtype_policy.choose_policy(parameters.precision, job.decision)
    keras.utils.set_random_seed(parameters.seed)

    def build() -> Any:
        return networks.build_network(
            parameters.architecture, spec.shape, len(sources.labels), parameters.dropout
        )

    start = initial_weights.find_start(
        job.channels, parameters.weights, parameters.architecture, sources.labels
    )
    with start as file, team.strategy.scope(), dtype_policy.use_policy(policy):
        network = build()
        if file:
            initial_weights.load_weights(network, file)
        if team.rank == 0:  # at the end it would be too late
            writer.check_disk_space(job.model_dir, network, GOLDEN * math.prod(spec.shape))
        team.synchronize(network)
        trainer = Trainer(
            network,
            networks.build_augmentation(parameters.augmentation),
            spec,
            _plan_optimization(parameters, sources, policy),
            team,
        )
    scalars = Scalars(job.tensorboard_dir or job.output_dir / "tensorboard") if team.rank == 0 else None
    fit = Fit(
        trainer,
        sources.training,
        sources.validation,
        Plan(
            epochs=parameters.epochs,
            patience=parameters.early_stopping,
            checkpoint_seconds=60 * parameters.checkpoint_minutes,
            # The SDK's local mode gives a job a terminal that nobody watches, but also a name.
            progress=sys.stdout.isatty() and not job.name,
        ),
        team=team,
        stop=job.stop,
        observers=[scalars.observe] if scalars else [],
        store=_open_store(job, sources),
    )
    outcome = fit.run()
    if scalars:
        scalars.close()
    if policy == "float32" and team.replicas == 1:
        return network, outcome
    stored = build()
    stored.set_weights(network.get_weights())
    return stored, outcome


def _plan_optimization(parameters: Any, sources: Sources, policy: str) -> Optimization:
    steps = sources.training.steps
    rate = parameters.learning_rate
    label_weights = [1.0] * len(sources.labels)
    if parameters.class_weights == "balanced":
        label_weights = balance_labels(sources.count_labels())
    return Optimization(
        label_weights=label_weights,
        learning_rate=rate,
        steps=parameters.epochs * steps,
        frozen_steps=min(parameters.freeze_epochs, parameters.epochs) * steps,
        fine_tuning_rate=rate / 10 if parameters.fine_tuning_rate is None else parameters.fine_tuning_rate,
        scaled_loss=policy == "mixed_float16",
        xla=parameters.xla,
    )


def _open_store(job: TrainingJob[Hyperparameters], sources: Sources) -> CheckpointStore | None:
    """Open the job's checkpoints, where it keeps any."""
    if job.checkpoint_dir is None:
        return None
    parameters = dataclasses.asdict(job.hyperparameters)
    must = {name: value for name, value in parameters.items() if name not in CHANGEABLE}
    should = {name: parameters[name] for name in CHANGEABLE[:2]}
    must |= {"labels": list(sources.labels), "pictures": sources.digest}
    return CheckpointStore(job.checkpoint_dir, job.current_host, {"must": must, "should": should})


def _write(
    job: TrainingJob[Hyperparameters],
    network: Any,
    outcome: Outcome,
    sources: Sources,
    hyperparameters: Mapping[str, Any],
) -> None:
    """Write the bundle, then what people look at; the second never costs the first."""
    writer.write_bundle(
        job.model_dir,
        network,
        labels=sources.labels,
        preprocessing=sources.spec.as_dict(),
        golden_inputs=sources.sample(GOLDEN),
        decision=job.decision,
        metrics=outcome.metrics,
        hyperparameters=hyperparameters,
    )
    if hyperparameters["quantization"] == "int8":
        calibration.add_int8(job.model_dir, sources, job.stop)
    report.write_evidence(
        job.output_dir, _judge(network, sources, job.stop), outcome.history, network, sources.labels
    )


def _judge(network: Any, sources: Sources, stop: threading.Event) -> Iterator[Split]:
    """Yield what the network says of each whole set, as far as the job is not stopped before its end."""
    for name, source in sources.evaluated.items():
        split = Split(name, len(sources.labels), source.name)
        if not measure(network, source.batches(1), split, stop):
            logger.warning("Stopped: the report is without the pictures for %s.", name)
            return
        yield split


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
