"""A training job, from the channels to the bundle and the report."""

from __future__ import annotations

import dataclasses
import logging
import math
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from algorithms.image_classifier import Hyperparameters, networks, report
from algorithms.image_classifier.channels import open_sources
from algorithms.image_classifier.data.source import DeclaredCounts, Host, ReadOptions, Sources
from algorithms.image_classifier.report.evaluation import Evaluation, measure
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

#: Images that the bundle stores with their probabilities as reference answers.
REFERENCE_ROWS = 32

#: Hyperparameters that may change when a run continues from a checkpoint.
CHANGEABLE = ("epochs", "early_stopping", "checkpoint_minutes", "unreadable_share", "xla", "quantization")


def train(job: TrainingJob[Hyperparameters]) -> None:
    """Train a network on the channel `training` and write a bundle to `job.model_dir`, also when stopped."""
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
        options = ReadOptions(
            spec,
            parameters.batch_size,
            parameters.seed,
            parameters.validation_share,
            parameters.unreadable_share,
            DeclaredCounts(
                parameters.num_classes,
                {
                    "training": parameters.num_training_samples,
                    "validation": parameters.num_validation_samples,
                },
            ),
            job.stop,
        )
        sources = open_sources(job.channels, options, Host(team.rank, len(team.hosts), team.exchange))
        logger.info(
            "%s training images of %s labels, %s validation images; %s at %sx%s",
            *(sources.training.rows, len(sources.labels), sources.validation.rows),
            *(parameters.architecture, size, size),
        )
        network, outcome = _fit(job, spec, sources, team)
        sources.report()
        if team.rank == 0:
            _write(job, network, outcome, sources, {**dataclasses.asdict(parameters), "image_size": size})
        team.exchange("written")  # all hosts leave together, after the model is written


def _fit(
    job: TrainingJob[Hyperparameters], spec: Preprocessing, sources: Sources, team: DistributedContext
) -> tuple[Any, Outcome]:
    """Train a network; return it in float32, as it is stored and served, with its metrics."""
    import keras

    parameters = job.hyperparameters
    policy = dtype_policy.choose_policy(parameters.precision, job.decision)
    keras.utils.set_random_seed(parameters.seed)

    def build() -> Any:
        return networks.build_network(
            parameters.architecture, spec.shape, len(sources.labels), parameters.dropout
        )

    weights = initial_weights.find_initial_weights(
        job.channels, parameters.weights, parameters.architecture, sources.labels
    )
    with weights as file, team.strategy.scope(), dtype_policy.use_policy(policy):
        network = build()
        if file:
            initial_weights.load_weights(network, file)
        if team.rank == 0:  # before training, as at the end it would be too late
            writer.check_disk_space(job.model_dir, network, REFERENCE_ROWS * math.prod(spec.shape))
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
            # In the SDK's local mode a job has a terminal without a viewer, but it also has a name.
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
    """Open the job's checkpoints, if it has a directory for them."""
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
    """Write the bundle and then the report, whose failure does not affect the bundle."""
    writer.write_bundle(
        job.model_dir,
        network,
        labels=sources.labels,
        preprocessing=sources.spec.as_dict(),
        golden_inputs=sources.sample(REFERENCE_ROWS),
        decision=job.decision,
        metrics=outcome.metrics,
        hyperparameters=hyperparameters,
    )
    if hyperparameters["quantization"] == "int8":
        calibration.add_int8(job.model_dir, sources, job.stop)
    report.write_report(
        job.output_dir, _evaluate(network, sources, job.stop), outcome.history, network, sources.labels
    )


def _evaluate(network: Any, sources: Sources, stop: threading.Event) -> Iterator[Evaluation]:
    """Yield the evaluation of each whole set, until the job is stopped."""
    for name, source in sources.evaluated.items():
        evaluation = Evaluation(name, len(sources.labels), source.name)
        if not measure(network, source.batches(1), evaluation, stop):
            logger.warning("The job was stopped, so the report has no evaluation of %s.", name)
            return
        yield evaluation


def describe_preprocessing(size: int, color: str) -> Preprocessing:
    """Return the preprocessing of training and serving: the whole image, stretched to a square of bytes."""
    return Preprocessing(
        height=size,
        width=size,
        channels=1 if color == "GRAY" else 3,
        color_order=color,
        resize="stretch",
        interpolation="area_or_cubic",
    )
