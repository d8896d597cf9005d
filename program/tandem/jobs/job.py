"""A training job: what the platform laid out below its root, as one object."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from tandem.errors import UserError
from tandem.jobs.channels import Channel
from tandem.runtime.devices import Decision

logger = logging.getLogger(__name__)

H = TypeVar("H")


@dataclass(frozen=True)
class JobConfig:
    """A job as the platform configures it; every path is below `base_dir` (`/opt/ml` on the platform)."""

    base_dir: Path
    #: the platform's name for the job; empty outside the platform
    name: str = ""
    channels: Mapping[str, Channel] = field(default_factory=dict)
    #: hyperparameters.json as it is: most often strings, with the platform's own keys among them
    raw_hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    hosts: tuple[str, ...] = ("algo-1",)
    current_host: str = "algo-1"
    #: the interface between the hosts as resourceconfig.json names it; it need not exist
    network_interface: str = ""
    #: where checkpoints go; None where the job keeps none
    checkpoint_dir: Path | None = None
    #: where TensorBoard's event files go; None: `output/tensorboard`
    tensorboard_dir: Path | None = None
    #: resourceconfig.json and inputdataconfig.json as they are, for programs that read them so
    resource_config: Mapping[str, Any] = field(default_factory=dict)
    input_data_config: Mapping[str, Any] = field(default_factory=dict)
    decision: Decision = field(default_factory=lambda: Decision(device="cpu", reason="not decided yet"))
    #: set when the platform wants the job to end: finish the step, save, return
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def model_dir(self) -> Path:
        """Where the model goes; the platform archives it as model.tar.gz."""
        return self.base_dir / "model"

    @property
    def output_dir(self) -> Path:
        """Where `failure` goes."""
        return self.base_dir / "output"

    @property
    def rank(self) -> int:
        """This host's index in `hosts`."""
        return self.hosts.index(self.current_host)

    @classmethod
    def load(cls, base_dir: Path) -> JobConfig:
        """Read `input/config` below `base_dir`; without its files, a job has one host and no parameters.

        Raises `UserError` naming the file that cannot be read.
        """
        config = base_dir / "input" / "config"
        resources = _read_object(config / "resourceconfig.json")
        inputs = _read_object(config / "inputdataconfig.json")
        hosts = resources.get("hosts") or ["algo-1"]
        if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
            raise UserError(f"resourceconfig.json: hosts is {hosts!r:.100}; expected a list of names.")
        current_host = str(resources.get("current_host", hosts[0]))
        if current_host not in hosts:
            raise UserError(
                f"resourceconfig.json names {current_host!r} as this host, but hosts are {hosts}."
            )
        return cls(
            base_dir=base_dir,
            network_interface=str(resources.get("network_interface_name") or ""),
            checkpoint_dir=_find_checkpoints(base_dir),
            tensorboard_dir=_find_named(base_dir, "tensorboardoutputconfig.json"),
            resource_config=resources,
            input_data_config=inputs,
            channels=_find_channels(base_dir / "input" / "data", inputs),
            raw_hyperparameters=_read_object(config / "hyperparameters.json"),
            hosts=tuple(hosts),
            current_host=current_host,
        )


@dataclass(frozen=True, kw_only=True)
class TrainingJob(JobConfig, Generic[H]):
    """What train() is called with: the job's configuration, and its hyperparameters.

    `hyperparameters` is an instance of the algorithm's declaration, or the raw mapping without one.
    """

    hyperparameters: H


def _read_object(path: Path) -> dict[str, Any]:
    """Return a file's JSON object, empty if the file is missing, as in a local tree."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}. Expected an object such as {{}}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}; expected an object such as {{}}.")
    return content


def _find_checkpoints(base_dir: Path) -> Path | None:
    """Return the folder that the platform copies to S3; None if the job does not ask for one.

    Raises `UserError` for a folder inside model/, all of which is uploaded as the model.
    """
    config, usual = "checkpointconfig.json", base_dir / "checkpoints"
    path = _find_named(base_dir, config)
    if path is None:
        is_wanted = usual.is_dir() or _read_object(base_dir / "input" / "config" / config)
        return usual if is_wanted else None
    if path.resolve().is_relative_to((base_dir / "model").resolve()):
        raise UserError(
            f"{config}: LocalPath is {path}, inside model/, which is uploaded as the model; expected a "
            "folder of its own, such as /opt/ml/checkpoints."
        )
    return path


def _find_named(base_dir: Path, config: str) -> Path | None:
    """Return the folder that a configuration file names; a path below /opt/ml counts from `base_dir`."""
    named = _read_object(base_dir / "input" / "config" / config).get("LocalPath")
    if not named:
        return None
    path = Path(str(named))
    return base_dir / path.relative_to("/opt/ml") if path.is_relative_to("/opt/ml") else path


def _find_channels(data: Path, configured: Mapping[str, Any]) -> dict[str, Channel]:
    """Return the channels that inputdataconfig.json lists, or without that file one for each folder."""
    if configured:
        return {
            name: Channel.from_config(name, data / name, entry if isinstance(entry, dict) else {})
            for name, entry in configured.items()
        }
    if not data.is_dir():
        return {}
    return {entry.name: Channel(entry.name, entry) for entry in sorted(data.iterdir()) if entry.is_dir()}


def warn_of_unlisted(job: JobConfig) -> None:
    """Log the folders of input/data that are not channels because inputdataconfig.json does not list them."""
    data = job.base_dir / "input" / "data"
    if not job.input_data_config or not data.is_dir():
        return
    names = sorted(entry.name for entry in data.iterdir() if entry.is_dir() and entry.name[0] != ".")
    if unlisted := [name for name in names if name not in job.channels]:
        logger.warning(
            "%s contains %s, which inputdataconfig.json does not list: not used. Add %s there to use it, or "
            "remove the file: then every folder is a channel",
            data,
            ", ".join(unlisted),
            json.dumps({unlisted[0]: {"TrainingInputMode": "File"}}),
        )


def warn_without_model(base_dir: Path) -> None:
    """Log a warning if a job left nothing in model/ and this host is the one that saves the model."""
    with contextlib.suppress(UserError, OSError):
        job = JobConfig.load(base_dir)
        if not job.rank and not any(job.model_dir.iterdir()):
            logger.warning(
                "the program succeeded, but left nothing in %s: the job will have no model. Save it there; "
                "SM_MODEL_DIR names the folder",
                job.model_dir,
            )
