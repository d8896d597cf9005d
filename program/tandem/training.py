"""The program `train`: run a training job, or write the reason for its failure."""

from __future__ import annotations

import inspect
import json
import logging
import os
import signal
import site
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from tandem import hyperparameters
from tandem.algorithm import Algorithm, load_algorithm
from tandem.errors import TandemError, UserError
from tandem.jobs.channels import Channel, check_content_type
from tandem.jobs.failures import describe_failure, write_failure
from tandem.jobs.job import JobConfig, TrainingJob, warn_of_unlisted
from tandem.jobs.tuning import describe_tuning
from tandem.logs import configure_logging
from tandem.runtime.devices import Decision
from tandem.runtime.resources import count_cores
from tandem.script_mode.environment import decode_parameters, describe_environment, make_flags
from tandem.script_mode.requirements import install_requirements
from tandem.script_mode.runner import make_call, make_command, run_command
from tandem.script_mode.submission import find_submission, is_module
from tandem.settings import Settings, find_base_dir, render_settings

logger = logging.getLogger(__name__)

ChooseDevice = Callable[[str, str | None], Decision]


def main(arguments: Sequence[str], choose_device: ChooseDevice) -> int:
    """Run the training job below `SAGEMAKER_BASE_DIR`, or answer `arguments`; return the exit status.

    `choose_device(wanted, visible)` chooses the device without importing a framework.
    """
    configure_logging(logging.INFO)
    if arguments:
        return _answer(arguments)
    base_dir = find_base_dir(os.environ)
    try:
        settings = Settings.load(os.environ)
        configure_logging(settings.log_level)
        _train(settings, choose_device)
    except Exception as error:  # noqa: BLE001  # the platform gets the cause of any error
        failure = describe_failure(error, base_dir)
        logger.error("training failed: %s", failure)  # noqa: TRY400
        write_failure(base_dir / "output", failure)
        return 1
    return 0


def _answer(arguments: Sequence[str]) -> int:
    """Print the page of the first argument; reject unknown arguments. No job is changed."""
    if unknown := [argument for argument in arguments if argument not in PAGES]:
        print(  # noqa: T201  # to the terminal
            f"train: unknown argument {' '.join(unknown)!r:.200}; hyperparameters come from "
            "input/config/hyperparameters.json. `train --help` lists them.",
            file=sys.stderr,
        )
        return 2
    try:
        print(PAGES[arguments[0]](Settings.load(os.environ)), flush=True)  # noqa: T201  # to the terminal
    except BrokenPipeError:  # `train --tuning | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except Exception as error:  # noqa: BLE001  # any error is reported
        print(f"train: {describe_failure(error)}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _render_help(settings: Settings) -> str:
    algorithm = load_algorithm(settings.algorithm)
    parts = [
        "usage: train [--help | --tuning]\n\nRun the SageMaker training job below SAGEMAKER_BASE_DIR.",
        "--tuning prints the ranges, metrics and objective for a tuning job as JSON.",
        f"environment:\n{render_settings()}",
    ]
    if algorithm.hyperparameters:
        table = hyperparameters.render_help(algorithm.hyperparameters)
        parts.append(f"hyperparameters of {algorithm.name}, in input/config/hyperparameters.json:\n\n{table}")
    return "\n\n".join(parts)


def _render_tuning(settings: Settings) -> str:
    return json.dumps(describe_tuning(load_algorithm(settings.algorithm)), indent=2)


#: The pages that arguments print instead of training.
PAGES = {"-h": _render_help, "--help": _render_help, "--tuning": _render_tuning}


def _train(settings: Settings, choose_device: ChooseDevice) -> None:
    job = replace(JobConfig.load(settings.base_dir), name=settings.job_name)
    submission = find_submission(job, settings)
    is_script = bool(settings.training_module) or bool(submission and not is_module(submission.path))
    if not is_script:  # a script gets its signals itself
        _stop_on_signal(job.stop)
    decision = choose_device(settings.device, settings.visible_devices)
    logger.info("device: %s: %s", decision.device, decision.reason)
    warn_of_unlisted(job)
    job = replace(job, decision=decision)
    check_writable(job.model_dir)
    check_writable(job.output_dir)
    if job.checkpoint_dir:
        check_writable(job.checkpoint_dir)
    folder = submission.folder if submission else None
    imports = install_requirements(folder) if folder else []
    program = submission.program if submission else ""
    described = describe_environment(job, settings, count_cores(), program, folder)
    variables = {**decision.environment(), **described}
    if is_script:
        flags = make_flags(decode_parameters(job.raw_hyperparameters))
        if settings.training_module:
            command = make_call(settings.training_module, flags)
        else:
            assert submission is not None  # noqa: S101  # a script has one
            command = make_command(submission, flags)
        run_command(command, folder or Path.cwd(), variables, imports)
    os.environ.update(variables)
    for path in imports:
        site.addsitedir(str(path))
    # The environment is complete: from here on the algorithm may import its framework.
    _train_here(load_algorithm(settings.algorithm, submission.path if submission else None), job)


def _train_here(algorithm: Algorithm, job: JobConfig) -> None:
    """Call the algorithm's train() in this process and check that it left a model."""
    train = algorithm.require("train").train
    assert train is not None  # noqa: S101  # required above
    check_signature(algorithm)
    check_channels(algorithm, job)
    raw, declaration = job.raw_hyperparameters, algorithm.hyperparameters
    typed = raw if declaration is None else hyperparameters.convert(raw, declaration)
    train(TrainingJob(**vars(job), hyperparameters=typed))
    if job.rank:
        logger.info("training is done; the first host, %s, has the model", job.hosts[0])
        return
    if not any(job.model_dir.iterdir()):
        raise TandemError(f"train() of {algorithm.name} returned, but left nothing in {job.model_dir}.")
    logger.info("training is done; the model is in %s", job.model_dir)


def check_signature(algorithm: Algorithm) -> None:
    """Raise `UserError` if train() cannot be called with a job as its only argument."""
    assert algorithm.train is not None  # noqa: S101  # required before
    try:
        signature = inspect.signature(algorithm.train)
    except ValueError:  # native code has no signature
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise UserError(
            f"{algorithm.name} defines train{signature}; expected train(job), which is called with the job. "
            "A script that calls train() itself is run unchanged."
        ) from error


def check_channels(algorithm: Algorithm, job: JobConfig) -> None:
    """Raise `UserError` if a required channel is missing or a channel has an unknown content type."""
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
    for name in algorithm.channels.keys() & job.channels.keys():
        check_content_type(job.channels[name], algorithm.channels[name].get("content_types", ()))


def _is_there(channel: Channel | None) -> bool:
    """Return whether a channel may have data; the first FIFO of a Pipe channel may appear later."""
    return channel is not None and (channel.is_pipe or channel.directory.is_dir())


def check_writable(folder: Path) -> None:
    """Create `folder` and write to it; raise `UserError` now rather than at the end of the job."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"nothing can be written to {folder}: {error.strerror}; the job needs this folder."
        ) from error


def _stop_on_signal(stop: threading.Event) -> None:
    """Make SIGTERM and a first Ctrl-C set `stop`; a second Ctrl-C ends the process.

    A thread sets it too: Python runs no handler while the main thread waits in native code.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(writer, False)

    def listen() -> None:
        while not stop.is_set():
            if {signal.SIGTERM, signal.SIGINT} & set(os.read(reader, 1)):
                stop.set()

    def handle(number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        logger.info("%s: finishing the step and saving the model so far", signal.Signals(number).name)
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=listen, name="signals", daemon=True).start()
