"""The initial weights of a network: random, from a published file, or from an earlier job's model."""

from __future__ import annotations

import logging
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from algorithms.image_classifier.networks import find_backbone
from backends.bundle.manifest import MANIFEST, MODEL, read_manifest
from backends.engines import tensorflow_engine
from tandem.errors import UserError
from tandem.jobs.channels import Channel

logger = logging.getLogger(__name__)


@contextmanager
def find_initial_weights(
    channels: Mapping[str, Channel], weights: str, architecture: str, labels: Sequence[str]
) -> Iterator[Path | None]:
    """Provide the path of the Keras file with the initial weights; None for random ones.

    The channel `pretrained` has the file that the hyperparameter `weights` names. The channel `model` has an
    earlier job's model.tar.gz or its content, and needs no hyperparameter. Raises `UserError` if they do not
    fit each other or this job.
    """
    if "model" not in channels:
        yield find_pretrained(channels, weights)
        return
    if weights != "random" or "pretrained" in channels:
        raise UserError(
            "the job continues from the weights in its channel model, so the hyperparameter weights and the "
            "channel pretrained must be left out."
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = _unpack(channels["model"].directory, Path(temporary))
        _check_compatible(folder, architecture, labels)
        yield folder / MODEL


def _unpack(folder: Path, target: Path) -> Path:
    """Return the folder that has model.h5: the channel itself, or `target` after unpacking the archive."""
    archive = folder / "model.tar.gz"
    if not archive.is_file():
        if (folder / MODEL).is_file():
            return folder
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) if folder.is_dir() else ""
        raise UserError(
            f"channel model has {found or 'no files'}; expected the model.tar.gz of an earlier job, or its "
            f"{MODEL}."
        )
    try:
        with tarfile.open(archive) as opened:
            for name in (MODEL, MANIFEST):
                # Only the bytes of these two files are read: names and links in the archive have no effect.
                member = next(
                    (entry for entry in opened if entry.isfile() and entry.name.lstrip("./") == name), None
                )
                content = opened.extractfile(member) if member else None
                if content is not None:
                    with content, (target / name).open("wb") as file:
                        shutil.copyfileobj(content, file)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"channel model: model.tar.gz cannot be read ({error}); copy it again.") from error
    if not (target / MODEL).is_file():
        raise UserError(f"channel model: model.tar.gz has no {MODEL}; expected the model of an earlier job.")
    return target


def _check_compatible(folder: Path, architecture: str, labels: Sequence[str]) -> None:
    """Raise `UserError` unless the earlier job's network and labels are those of this job."""
    manifest = read_manifest(folder)
    if manifest is None:
        return  # a bare model.h5: only the shapes of its weights can be checked
    stored = manifest.hyperparameters.get("architecture")
    if stored != architecture:
        raise UserError(
            f"channel model has a {stored}, but hyperparameter architecture is {architecture}; set it to "
            f"{stored}."
        )
    if manifest.labels != tuple(labels):
        raise UserError(
            f"channel model has the labels {', '.join(manifest.labels[:10])}, but channel training has "
            f"{', '.join(labels[:10])}; to learn other labels, provide its {MODEL} in a channel pretrained."
        )


def find_pretrained(channels: Mapping[str, Channel], weights: str) -> Path | None:
    """Return the path of the file `weights` in the channel `pretrained`; None for random weights.

    Raises `UserError` if only one of the two was given, or the file does not exist.
    """
    folder = channels["pretrained"].directory if "pretrained" in channels else None
    found = (
        sorted(path.name for path in folder.iterdir() if path.is_file()) if folder and folder.is_dir() else []
    )
    listed = ", ".join(found[:10]) or "no file"
    if weights == "random":
        if found:
            raise UserError(
                f"channel pretrained has {listed}, but hyperparameter weights is 'random'; set weights to "
                "the file's name, or leave the channel out."
            )
        return None
    if folder is None:
        raise UserError(
            f"hyperparameter weights is {weights!r}, but there is no channel pretrained with that file; "
            "add the channel, or use 'random'."
        )
    if weights not in found:
        raise UserError(f"hyperparameter weights is {weights!r}; channel pretrained has: {listed}.")
    return folder / weights


def load_weights(network: Any, path: Path) -> None:
    """Load the weights of `network` from the Keras file at `path`: all, or all but the last layer's.

    The file may have a whole model (.keras, .h5) or weights only (.weights.h5, or Keras's published
    `…_no_top.h5`). Raises `UserError` with the reason if it does not fit.
    """
    import h5py  # a dependency of Keras

    try:
        whole = path.suffix == ".keras"
        if not whole:
            with h5py.File(path) as file:
                whole = "model_config" in file.attrs
        if whole:
            _set_weights(network, tensorflow_engine.read_model(path).get_weights(), path)
        else:
            _load_weights_file(network, path)
    except UserError:
        raise
    except Exception as error:  # Keras raises many types for an invalid file
        raise UserError(
            f"{path.name} cannot be read as a Keras file: {_first_line(error)}. "
            "Expected a model or weights saved by Keras 3 (.keras, .h5, .weights.h5)."
        ) from error


def _set_weights(network: Any, weights: Sequence[Any], path: Path) -> None:
    backbone = find_backbone(network)
    wanted = [tuple(weight.shape) for weight in network.get_weights()]
    body = [tuple(weight.shape) for weight in backbone.get_weights()]
    found = [tuple(weight.shape) for weight in weights]
    if found == wanted:
        network.set_weights(weights)
        logger.info("All weights are loaded from %s.", path.name)
    elif found[: len(body)] == body:
        backbone.set_weights(weights[: len(body)])
        logger.info("The weights are loaded from %s, except the last layer's, which are random.", path.name)
    else:
        pairs = enumerate(zip(found, body, strict=False))
        first = next((i for i, (got, expected) in pairs if got != expected), len(found))
        got_first = f"shape {found[first]}" if first < len(found) else "no such weight"
        raise UserError(
            f"{path.name} does not fit {network.name}: weight {first + 1} should have "
            f"shape {body[first]}, and the file has {got_first}. Use weights of the same architecture and "
            "color."
        )


def _load_weights_file(network: Any, path: Path) -> None:
    """Load a file of weights into the whole network, or else into all but its last layer."""
    before = network.get_weights()
    backbone = find_backbone(network)
    try:
        network.load_weights(path)
    except Exception:  # noqa: BLE001  # Keras raises many types; the next attempt reports what is wrong
        network.set_weights(before)
    else:
        logger.info("All weights are loaded from %s.", path.name)
        return
    try:
        backbone.load_weights(path)
    except Exception as error:
        network.set_weights(before)
        raise UserError(
            f"{path.name} does not fit {network.name}: {_first_line(error)}. "
            "Use weights of the same architecture and color."
        ) from error
    logger.info("The weights are loaded from %s, except the last layer's, which are random.", path.name)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(". ")
