"""An algorithm of the user's own that leaves what it was given: the SDKs send it instead of the image's."""

import json
from dataclasses import asdict, dataclass

from tandem.hyperparameters import hyperparameter


@dataclass(frozen=True)
class Hyperparameters:
    """One of each kind, none with the default that the tests send."""

    shuffle: bool = hyperparameter(False, help="Yes or no.")
    limit: int | None = hyperparameter(3, help="A number or none.")
    rate: float = hyperparameter(0.5, help="A number.")
    sizes: list[int] = hyperparameter([1], help="Numbers.")
    name: str = hyperparameter("", help="Text.")


def train(job):
    given = {"hyperparameters": asdict(job.hyperparameters), "channels": sorted(job.channels)}
    (job.model_dir / "given.json").write_text(json.dumps(given))
