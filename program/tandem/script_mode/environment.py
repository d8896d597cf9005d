"""The environment variables that AWS's training toolkits set for a user's program."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tandem import reserved
from tandem.jobs.job import JobConfig
from tandem.settings import Settings

MASTER_PORT = 7777


def decode_parameters(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Decode hyperparameters as AWS's toolkit does, as JSON or else text, without the reserved ones."""
    return {name: _decode(value) for name, value in raw.items() if not reserved.is_reserved(name)}


def make_flags(parameters: Mapping[str, Any]) -> list[str]:
    """Return hyperparameters as sorted flags: `--key value`, `-k value`, a dict as `a=1,b=2`."""
    flags = []
    for name, value in sorted(parameters.items()):
        if isinstance(value, dict):
            text = ",".join(f"{key}={item}" for key, item in sorted(value.items()))
        else:
            text = "" if value is None else str(value)
        flags += [f"--{name}" if len(name) > 1 else f"-{name}", text]
    return flags


def describe_environment(
    job: JobConfig,
    settings: Settings,
    cores: int,
    program: str = "",
    folder: Path | None = None,
) -> dict[str, str]:
    """Return the SM_ variables of a job.

    `program` is the user's file, relative to `folder`. Values other than text are compact sorted JSON, None
    is empty. If version 3 of AWS's SDK and the toolkit use different names, both are set.
    """
    parameters = decode_parameters(job.raw_hyperparameters)
    resources = job.resource_config
    framework = {
        name: _decode(value)
        for name, value in job.raw_hyperparameters.items()
        if reserved.is_for_frameworks(name)
    }
    job_name = job.name or _text(_decode(job.raw_hyperparameters.get(reserved.JOB_NAME)))
    root = job.base_dir
    values: dict[str, Any] = {
        **_describe_groups(resources, framework),
        "channel_input_dirs": {name: str(channel.directory) for name, channel in job.channels.items()},
        "current_host": job.current_host,
        "current_instance_type": resources.get("current_instance_type") or "local",
        "framework_module": settings.training_module or None,
        "hosts": sorted(job.hosts),
        "input_config_dir": str(root / "input/config"),
        "input_data_config": job.input_data_config,
        "input_data_dir": str(root / "input/data"),
        "input_dir": str(root / "input"),
        "log_level": settings.log_level,
        "model_dir": str(job.model_dir),
        "module_dir": str(folder) if folder else None,
        "module_name": program.removesuffix(".py") or None,
        "network_interface_name": job.network_interface or "eth0",
        "num_cpus": cores,
        "num_gpus": len(job.decision.gpus),
        "num_neurons": 0,
        "output_data_dir": str(job.output_dir / "data"),
        "output_dir": str(job.output_dir),
        "output_intermediate_dir": str(job.output_dir / "intermediate"),
        "resource_config": resources,
        "user_entry_point": program or None,
    }
    training = {
        **values,
        "additional_framework_parameters": framework,
        "distribution_hosts": sorted(job.hosts),
        "hyperparameters": parameters,
        "is_master": job.rank == 0,
        "job_name": job_name,
        "master_addr": job.hosts[0],
        "master_hostname": job.hosts[0],
        "master_port": MASTER_PORT,
    }
    channels = values.pop("channel_input_dirs")
    named = {
        **values,
        "channels": sorted(channels),
        "current_host_rank": job.rank,
        "entry_script": program or None,
        "framework_params": framework,
        "host_count": len(job.hosts),
        "hps": parameters,
        "master_addr": job.hosts[0],
        "master_port": MASTER_PORT,
        "output_failure": str(job.output_dir / "failure"),
        "source_dir": str(folder) if folder else None,
        "training_env": training,
        "user_args": make_flags(parameters),
    }
    if resources.get("topology") is not None:
        named["topology"] = resources["topology"]
    variables = {f"SM_{name.upper()}": _text(value) for name, value in named.items()}
    for prefix, each in (("SM_CHANNEL_", channels), ("SM_HP_", parameters)):
        for name, value in each.items():
            # The toolkit keeps hyphens, which shells cannot read; the SDK replaces them by underscores.
            for spelling in (name, re.sub(r"\W", "_", name)):
                variables[prefix + spelling.upper()] = _text(value)
    variables |= {"SAGEMAKER_JOB_NAME": job_name, "CURRENT_HOST": job.current_host}
    if region := _decode(job.raw_hyperparameters.get(reserved.REGION)):
        variables["SAGEMAKER_REGION"] = _text(region)
    return {name: value for name, value in variables.items() if _is_valid(name, value)}


def _describe_groups(resources: Mapping[str, Any], framework: Mapping[str, Any]) -> dict[str, Any]:
    listed = resources.get("instance_groups") or []
    groups = {str(group.get("instance_group_name")): group for group in listed if isinstance(group, dict)}
    current = resources.get("current_group_name") or "homogeneousCluster"
    distributed = framework.get(reserved.DISTRIBUTION_GROUPS)
    if not distributed:
        # Each kind of distribution has such a key, as sagemaker_mpi_enabled.
        enabled = any(value is True for name, value in framework.items() if name.endswith("_enabled"))
        distributed = [current] if enabled else []
    return {
        "current_instance_group": current,
        "current_instance_group_hosts": groups.get(current, {}).get("hosts", []),
        "distribution_instance_groups": distributed,
        "instance_groups": list(groups),
        "instance_groups_dict": groups,
        "is_hetero": len(groups) > 1,
    }


def _decode(value: Any) -> Any:
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _is_valid(name: str, value: str) -> bool:
    """Return whether an environment can have the variable: no "=" in the name, no NUL, only text."""
    try:
        (name + value).encode()
    except UnicodeEncodeError:
        return False
    return "=" not in name and "\0" not in name + value
