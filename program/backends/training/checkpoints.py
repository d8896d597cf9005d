"""Checkpoints in a folder that stay usable after a kill, a full disk or a partial upload."""

import errno
import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy.typing as npt

from backends.training import checkpoint_file
from tandem.errors import UserError

logger = logging.getLogger(__name__)

FORMAT = 1

#: The prefix of a checkpoint's file name until it is complete.
INCOMPLETE = ".incomplete-"
_SUFFIX = r"(?P<host>.+)-(?P<epoch>\d{6,})-(?P<step>\d{6,})"
_COMPLETE_NAME = re.compile(rf"checkpoint-{_SUFFIX}\.npz")
_INCOMPLETE_NAME = re.compile(re.escape(INCOMPLETE) + _SUFFIX)
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}

Step = tuple[int, int]
Fingerprint = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Checkpoint:
    """All the state that a training needs to resume exactly where it was.

    `step` is the number of steps taken in `epoch`. `arrays` are lists of arrays by name, restored bit for
    bit; `state` is stored as JSON, so tuples come back as lists.
    """

    epoch: int
    step: int
    arrays: dict[str, list[npt.NDArray[Any]]] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)


class CheckpointStore:
    """The checkpoints in one folder, which the platform may mirror and several hosts may share.

    Each host writes files under its own name and reads those of all hosts; files of the same (epoch, step)
    are interchangeable. `fingerprint` describes the training as `{"must": {…}, "should": {…}}`: if a
    checkpoint differs in a `must` entry, reading it raises `UserError`; in a `should` entry, it is logged.
    """

    def __init__(self, directory: Path, host: str, fingerprint: Fingerprint, keep: int = 2) -> None:
        """Create `directory`, and remove incomplete files of this host."""
        if keep < 1 or not fingerprint.keys() <= {"must", "should"}:
            raise ValueError(
                f"keep is {keep}, expected at least 1; the fingerprint has {sorted(fingerprint)}."
            )
        self._directory = directory
        self._host = quote(host, safe="")
        self._fingerprint = json.loads(json.dumps({"must": {}, "should": {}, **fingerprint}))
        self._keep = keep
        self._damaged: set[Path] = set()
        self._warned: set[str] = set()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for _, path, is_own in self._list(_INCOMPLETE_NAME):
                if is_own:
                    path.unlink()
        except OSError as error:
            raise self._describe_error(error, 0) from error

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write `checkpoint`, keep this host's newest `keep` ones and remove obsolete files.

        Raises `UserError` if it cannot be written, as on a full disk; earlier checkpoints remain intact.
        """
        head = {"format": FORMAT, "fingerprint": self._fingerprint, "state": checkpoint.state}
        members = checkpoint_file.pack(head, checkpoint.arrays)
        needed = checkpoint_file.count_bytes(members)
        name = f"{self._host}-{checkpoint.epoch:06}-{checkpoint.step:06}"
        path, incomplete = self._directory / f"checkpoint-{name}.npz", self._directory / f"{INCOMPLETE}{name}"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            try:
                checkpoint_file.write(incomplete, members)
                incomplete.replace(path)
            finally:
                incomplete.unlink(missing_ok=True)
        except OSError as error:
            raise self._describe_error(error, needed) from error
        _sync_folder(self._directory)
        self._damaged.discard(path)
        self._prune((checkpoint.epoch, checkpoint.step))
        return path

    def steps(self) -> list[Step]:
        """Return the (epoch, step) of each readable checkpoint, the newest last."""
        return [step for step, paths in self._list_by_step() if any(map(self._is_readable, paths))]

    def load(self, step: Step) -> Checkpoint:
        """Return the checkpoint of (epoch, step), from this host's own file if that is readable."""
        for path in dict(self._list_by_step()).get(step, []):
            if self._is_readable(path):
                state = checkpoint_file.read_head(path)["state"]
                return Checkpoint(*step, checkpoint_file.read_arrays(path), state)
        raise UserError(
            f"there is no readable checkpoint of epoch {step[0]}, step {step[1]} in {self._directory}; empty "
            "the checkpoint location to start over."
        )

    def _list(self, name: re.Pattern[str]) -> list[tuple[Step, Path, bool]]:
        """Return (step, path, whether it is this host's) of each file with such a name, unordered."""
        return [
            ((int(match["epoch"]), int(match["step"])), path, match["host"] == self._host)
            for path in self._directory.iterdir()
            if (match := name.fullmatch(path.name))
        ]

    def _list_by_step(self) -> list[tuple[Step, list[Path]]]:
        """Return each step's files, the oldest step first and this host's own file before the others'."""
        found: dict[Step, list[Path]] = {}
        for step, path, _ in sorted(self._list(_COMPLETE_NAME), key=lambda entry: (not entry[2], entry[1])):
            found.setdefault(step, []).append(path)
        return sorted(found.items())

    def _is_readable(self, path: Path) -> bool:
        """Check a file's hash, then its fingerprint; log a warning once if the file is damaged."""
        if path in self._damaged:
            return False
        try:
            checkpoint_file.verify(path)
            head = checkpoint_file.read_head(path)
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            logger.warning("%s is skipped, as it is not a complete checkpoint: %s", path, error)
            self._damaged.add(path)
            return False
        self._compare(head, path)
        return True

    def _compare(self, head: Mapping[str, Any], path: Path) -> None:
        """Raise `UserError` or log a warning if a checkpoint's training differs from this one."""
        if head["format"] != FORMAT:
            raise UserError(
                f"{path} has format {head['format']!r}, but this image reads format {FORMAT}: resume with "
                "the image that wrote it, or empty the checkpoint location to start over."
            )
        stored = head["fingerprint"]
        if differences := _describe_differences(stored["must"], self._fingerprint["must"]):
            raise UserError(
                f"the checkpoint {path.name} in {self._directory} is of another training: {differences}. "
                "Restore those values, or empty the checkpoint location (CheckpointConfig's S3Uri) to "
                "start over."
            )
        differences = _describe_differences(stored["should"], self._fingerprint["should"])
        if differences and differences not in self._warned:
            self._warned.add(differences)
            logger.warning("the checkpoint was made with other settings: %s.", differences)

    def _prune(self, now: Step) -> None:
        """Remove files that the checkpoint just saved makes obsolete, ignoring errors.

        This host's files of steps after `now` belong to an abandoned run. Other hosts' files are removed once
        this host has `keep` newer ones, as a host that left the training cannot remove its own.
        """
        entries = self._list(_COMPLETE_NAME)
        own = {step for step, path, is_own in entries if is_own and path not in self._damaged and step <= now}
        kept = sorted(own)[-self._keep :]
        for step, path, is_own in entries + self._list(_INCOMPLETE_NAME):
            newer = sum(step < other for other in kept)
            if (step not in kept or path in self._damaged) if is_own else newer == self._keep:
                with suppress(OSError):
                    path.unlink()
                    self._damaged.discard(path)

    def _describe_error(self, error: OSError, needed: int) -> UserError:
        if error.errno not in _DISK_FULL:
            return UserError(
                f"checkpoints cannot be written to {self._directory}: {error.strerror or error}; set "
                "CheckpointConfig's LocalPath to a writable folder."
            )
        existing = next(path for path in (self._directory, *self._directory.parents) if path.exists())
        return UserError(
            f"the disk is full: a checkpoint needs {needed} bytes in {self._directory}, which has "
            f"{shutil.disk_usage(existing).free} bytes free; give the job a larger volume (VolumeSizeInGB)."
        )


def _describe_differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """Return each entry that differs with both values, or the empty string."""
    return "; ".join(
        f"{name} was {_show(stored, name)} and is now {_show(current, name)}"
        for name in sorted(stored.keys() | current.keys())
        if name not in stored or name not in current or stored[name] != current[name]
    )


def _show(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "not set"
    text = json.dumps(values[name], ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _sync_folder(folder: Path) -> None:
    """Make the renaming survive a power failure, where the file system supports it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
