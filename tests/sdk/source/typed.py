"""A user's algorithm that stores its hyperparameters; the SDKs send it to replace the image's algorithm."""

import json
from dataclasses import asdict, dataclass

from tandem.hyperparameters import hyperparameter


@dataclass(frozen=True)
class Hyperparameters:
    """One of each type, with defaults that differ from the values in the tests."""

    shuffle: bool = hyperparameter(False, help="Yes or no.")
    limit: int | None = hyperparameter(3, help="A number or none.")
    rate: float = hyperparameter(0.5, help="A number.")
    sizes: list[int] = hyperparameter([1], help="Numbers.")
    name: str = hyperparameter("", help="Text.")


def train(job):
    received = {"hyperparameters": asdict(job.hyperparameters), "channels": sorted(job.channels)}
    (job.model_dir / "received.json").write_text(json.dumps(received))
