"""Train: from the platform's files to a model, or to a sentence that says why not."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from tandem import hyperparameters
from tandem.algorithm import Algorithm, find_program, load_algorithm
from tandem.channels import Channel
from tandem.devices import Decision
from tandem.errors import TandemError, UserError
from tandem.failures import describe_failure, write_failure
from tandem.job import TrainingJob
from tandem.logs import configure_logging
from tandem.settings import Settings, find_base_dir, render_settings

logger = logging.getLogger(__name__)

ChooseDevice = Callable[[str, str | None], Decision]


def main(arguments: Sequence[str], choose_device: ChooseDevice) -> int:
    """Run the training job below `SAGEMAKER_BASE_DIR`; give the exit status.

    `choose_device(wanted, visible)` decides where to compute without importing a framework.
    """
    configure_logging(logging.INFO)
    base_dir = find_base_dir(os.environ)
    try:
        settings = Settings.load(os.environ)
        configure_logging(settings.log_level)
        if {"-h", "--help"} & set(arguments):
            print(_render_help(settings))  # noqa: T201  # asked for at a terminal
            return 0
        if arguments:
            raise UserError(
                f"train takes no argument, but got {' '.join(arguments)!r}; hyperparameters come from "
                "input/config/hyperparameters.json. `train --help` lists them."
            )
        _train(settings, choose_device)
    except Exception as error:  # noqa: BLE001  # the rim: whatever it was, the platform gets its cause
        failure = describe_failure(error, base_dir)
        logger.error("training failed: %s", failure)  # noqa: TRY400
        write_failure(base_dir / "output", failure)
        return 1
    return 0


def _render_help(settings: Settings) -> str:
    algorithm = load_algorithm(settings.algorithm)
    parts = [
        "usage: train\n\nRun the SageMaker training job below SAGEMAKER_BASE_DIR.",
        f"environment:\n{render_settings()}",
    ]
    if algorithm.hyperparameters:
        table = hyperparameters.render_help(algorithm.hyperparameters)
        parts.append(f"hyperparameters of {algorithm.name}, in input/config/hyperparameters.json:\n\n{table}")
    return "\n\n".join(parts)


def _train(settings: Settings, choose_device: ChooseDevice) -> None:
    job = TrainingJob.load(settings.base_dir)
    _stop_on_signal(job.stop)
    decision = choose_device(settings.device, settings.visible_devices)
    logger.info("device: %s: %s", decision.device, decision.reason)
    os.environ.update(decision.environment())
    # The environment is set: from here on the algorithm may import its framework.
    algorithm = _find_algorithm(settings, job).require("train")
    check_channels(algorithm, job)
    typed = job.hyperparameters
    if algorithm.hyperparameters is not None:
        typed = hyperparameters.convert(job.hyperparameters, algorithm.hyperparameters)
    for folder in (job.model_dir, job.output_dir):
        check_writable(folder)
    train = algorithm.train
    assert train is not None  # noqa: S101  # required above
    train(replace(job, name=settings.job_name, hyperparameters=typed, decision=decision))
    if job.rank == 0 and not any(job.model_dir.iterdir()):
        raise TandemError(f"train() of {algorithm.name} returned, but left nothing in {job.model_dir}.")
    logger.info("training is done; the model is in %s", job.model_dir)


def _find_algorithm(settings: Settings, job: TrainingJob) -> Algorithm:
    """Load the user's own program if the job or the environment names one, else ALGORITHM's module."""
    decode = hyperparameters.decode
    name = str(decode(str(job.hyperparameters.get("sagemaker_program", settings.program))))
    submitted = str(
        decode(str(job.hyperparameters.get("sagemaker_submit_directory", settings.submit_directory)))
    )
    folders = [Path(submitted)] if submitted else []
    folders += [job.channels["code"].directory] if "code" in job.channels else []
    program = find_program(name, [*folders, job.base_dir / "code"])
    return load_algorithm(settings.algorithm, program)


def check_channels(algorithm: Algorithm, job: TrainingJob) -> None:
    """Raise `UserError` if a channel that the algorithm requires is missing, naming what is there."""
    missing = [
        name
        for name, declared in algorithm.channels.items()
        if declared.get("required") and not _is_there(job.channels.get(name))
    ]
    if missing:
        found = ", ".join(sorted(job.channels)) or "none"
        raise UserError(
            f"the channel {missing[0]!r} is missing: expected the folder "
            f"{job.base_dir / 'input' / 'data' / missing[0]}; channels of this job: {found}."
        )


def _is_there(channel: Channel | None) -> bool:
    """Whether a channel has data, as far as can be told: a Pipe's first FIFO may appear later."""
    return channel is not None and (channel.is_pipe or channel.directory.is_dir())


def check_writable(folder: Path) -> None:
    """Make `folder` and write in it, so that a job does not find out at its end; else raise `UserError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"nothing can be written to {folder}: {error.strerror}; the job must leave its model and output."
        ) from error


def _stop_on_signal(stop: threading.Event) -> None:
    """Make SIGTERM, and a first Ctrl-C, set `stop`; a second Ctrl-C ends at once."""

    def handle(number: int, _frame: FrameType | None) -> None:
        logger.info("%s: finishing the step and saving the model so far", signal.Signals(number).name)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
