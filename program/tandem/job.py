"""A training job: what the platform laid out under its root, as one object."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tandem.channels import Channel
from tandem.devices import Decision
from tandem.errors import UserError


@dataclass(frozen=True)
class TrainingJob:
    """One training job; every path hangs on `base_dir` (`/opt/ml` on the platform)."""

    base_dir: Path
    #: the platform's name for the job; a plain process has none
    name: str = ""
    channels: Mapping[str, Channel] = field(default_factory=dict)
    #: the strings of hyperparameters.json until the algorithm's declaration has typed them
    hyperparameters: Any = field(default_factory=dict)
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
    decision: Decision = field(default_factory=lambda: Decision(device="cpu", reason="not asked yet"))
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
        """This host's place among `hosts`, from 0."""
        return self.hosts.index(self.current_host)

    @classmethod
    def load(cls, base_dir: Path) -> TrainingJob:
        """Read `input/config` below `base_dir`; files that are not there mean one host and no parameters.

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
            hyperparameters=_read_object(config / "hyperparameters.json"),
            hosts=tuple(hosts),
            current_host=current_host,
        )


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing file is an empty one, as a plain local tree has it."""
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
    """Find the folder that the platform keeps copying to S3; None where the job did not ask for one."""
    usual = base_dir / "checkpoints"
    return _find_named(base_dir, "checkpointconfig.json") or (usual if usual.is_dir() else None)


def _find_named(base_dir: Path, config: str) -> Path | None:
    """Find the folder that one of the platform's files names; a path below /opt/ml counts from `base_dir`."""
    named = _read_object(base_dir / "input" / "config" / config).get("LocalPath")
    if not named:
        return None
    path = Path(str(named))
    return base_dir / path.relative_to("/opt/ml") if path.is_relative_to("/opt/ml") else path


def _find_channels(data: Path, configured: Mapping[str, Any]) -> dict[str, Channel]:
    """Give the channels that inputdataconfig.json lists, and without that file the folders that are there."""
    if configured:
        return {
            name: Channel.from_config(name, data / name, entry if isinstance(entry, dict) else {})
            for name, entry in configured.items()
        }
    if not data.is_dir():
        return {}
    return {entry.name: Channel(entry.name, entry) for entry in sorted(data.iterdir()) if entry.is_dir()}
