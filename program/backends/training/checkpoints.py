"""A training's checkpoints in a folder: they survive a kill at any moment, a full disk and half an upload."""

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

#: How the name begins that a checkpoint has until it is whole.
INCOMPLETE = ".incomplete-"
_OWNER = r"(?P<host>.+)-(?P<epoch>\d{6,})-(?P<step>\d{6,})"
_WHOLE_NAME = re.compile(rf"checkpoint-{_OWNER}\.npz")
_INCOMPLETE_NAME = re.compile(re.escape(INCOMPLETE) + _OWNER)
_FULL = {errno.ENOSPC, errno.EDQUOT}

Step = tuple[int, int]
Fingerprint = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Checkpoint:
    """All that a training needs to go on as if nothing had happened.

    `step` counts the steps taken in `epoch`. `arrays` are lists by name, each array given back bit by bit in
    its shape and dtype; `state` is JSON: tuples come back as lists.
    """

    epoch: int
    step: int
    arrays: dict[str, list[npt.NDArray[Any]]] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)


class CheckpointStore:
    """The checkpoints in one folder, which a platform may mirror and several hosts may share.

    Each host writes files of its own name and reads everyone's: all of one (epoch, step) are worth the same.
    `fingerprint` says what is trained: `{"must": {…}, "should": {…}}`. Where a checkpoint differs in what
    must be the same, reading raises `UserError`; where it differs in what should be, it warns.
    """

    def __init__(self, directory: Path, host: str, fingerprint: Fingerprint, keep: int = 2) -> None:
        """Make `directory`, and remove what a killed save of this host left there."""
        if keep < 1 or not fingerprint.keys() <= {"must", "should"}:
            raise ValueError(f"got keep {keep} and a fingerprint of {sorted(fingerprint)}")
        self._directory = directory
        self._host = quote(host, safe="")
        self._fingerprint = json.loads(json.dumps({"must": {}, "should": {}, **fingerprint}))
        self._keep = keep
        self._damaged: set[Path] = set()
        self._told: set[str] = set()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for _, path, is_own in self._list(_INCOMPLETE_NAME):
                if is_own:
                    path.unlink()
        except OSError as error:
            raise self._refuse(error, 0) from error

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write `checkpoint`, then remove this host's older ones but `keep`, and what they have outlived.

        Raises `UserError` where it cannot be written, as on a full disk; the earlier ones are whole then.
        """
        head = {"format": FORMAT, "fingerprint": self._fingerprint, "state": checkpoint.state}
        members = checkpoint_file.pack(head, checkpoint.arrays)
        needed = checkpoint_file.count_bytes(members)
        name = f"{self._host}-{checkpoint.epoch:06}-{checkpoint.step:06}"
        path, aside = self._directory / f"checkpoint-{name}.npz", self._directory / f"{INCOMPLETE}{name}"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            try:
                checkpoint_file.write(aside, members)
                aside.replace(path)
            finally:
                aside.unlink(missing_ok=True)
        except OSError as error:
            raise self._refuse(error, needed) from error
        _sync_folder(self._directory)
        self._damaged.discard(path)
        self._prune((checkpoint.epoch, checkpoint.step))
        return path

    def steps(self) -> list[Step]:
        """List the (epoch, step) of which a readable checkpoint is there, the newest last."""
        return [step for step, paths in self._list_by_step() if any(map(self._is_whole, paths))]

    def load(self, step: Step) -> Checkpoint:
        """Read the checkpoint of (epoch, step), this host's own if it can be read, else another host's."""
        for path in dict(self._list_by_step()).get(step, []):
            if self._is_whole(path):
                state = checkpoint_file.read_head(path)["state"]
                return Checkpoint(*step, checkpoint_file.read_arrays(path), state)
        raise UserError(
            f"no readable checkpoint of epoch {step[0]}, step {step[1]} is in {self._directory}; empty the "
            "checkpoint location to start anew."
        )

    def _list(self, name: re.Pattern[str]) -> list[tuple[Step, Path, bool]]:
        """List (step, path, whether it is this host's) of each file of such a name, in no order."""
        return [
            ((int(match["epoch"]), int(match["step"])), path, match["host"] == self._host)
            for path in self._directory.iterdir()
            if (match := name.fullmatch(path.name))
        ]

    def _list_by_step(self) -> list[tuple[Step, list[Path]]]:
        """Give the files of each step, oldest step first, this host's own file before the others'."""
        found: dict[Step, list[Path]] = {}
        for step, path, _ in sorted(self._list(_WHOLE_NAME), key=lambda entry: (not entry[2], entry[1])):
            found.setdefault(step, []).append(path)
        return sorted(found.items())

    def _is_whole(self, path: Path) -> bool:
        """Check a file's hash before anything in it is parsed, then its fingerprint; warn once if damaged."""
        if path in self._damaged:
            return False
        try:
            checkpoint_file.verify(path)
            head = checkpoint_file.read_head(path)
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            logger.warning("%s is passed over, it is not a whole checkpoint: %s", path, error)
            self._damaged.add(path)
            return False
        self._compare(head, path)
        return True

    def _compare(self, head: Mapping[str, Any], path: Path) -> None:
        """Raise `UserError`, or warn, about what differs between a checkpoint's training and this one."""
        if head["format"] != FORMAT:
            raise UserError(
                f"{path} has format {head['format']!r}, this program reads format {FORMAT}: go on with the "
                "image that wrote it, or empty the checkpoint location to start anew."
            )
        stored = head["fingerprint"]
        if differences := _describe_differences(stored["must"], self._fingerprint["must"]):
            raise UserError(
                f"the checkpoint {path.name} in {self._directory} is of another training: {differences}. "
                "Restore that, or empty the checkpoint location (CheckpointConfig's S3Uri) to start anew."
            )
        differences = _describe_differences(stored["should"], self._fingerprint["should"])
        if differences and differences not in self._told:
            self._told.add(differences)
            logger.warning("the checkpoint was made under other conditions: %s.", differences)

    def _prune(self, now: Step) -> None:
        """Remove what the checkpoint just saved and those before it make superfluous; never fail by it.

        Own steps after `now` are of a course that was left. Other hosts' files go once `keep` newer ones are
        here: a host that is no more of the training cannot remove its own.
        """
        entries = self._list(_WHOLE_NAME)
        own = {step for step, path, is_own in entries if is_own and path not in self._damaged and step <= now}
        kept = sorted(own)[-self._keep :]
        for step, path, is_own in entries + self._list(_INCOMPLETE_NAME):
            newer = sum(step < other for other in kept)
            if (step not in kept or path in self._damaged) if is_own else newer == self._keep:
                with suppress(OSError):
                    path.unlink()
                    self._damaged.discard(path)

    def _refuse(self, error: OSError, needed: int) -> UserError:
        if error.errno not in _FULL:
            return UserError(
                f"checkpoints cannot be kept in {self._directory}: {error.strerror or error}; let "
                "CheckpointConfig name a folder that can be written to."
            )
        there = next(path for path in (self._directory, *self._directory.parents) if path.exists())
        return UserError(
            f"the disk is full: a checkpoint needs {needed} bytes in {self._directory}, which has "
            f"{shutil.disk_usage(there).free} bytes free; give the job a larger volume (VolumeSizeInGB)."
        )


def _describe_differences(stored: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Name each entry that differs, with both values, or give nothing."""
    return "; ".join(
        f"{name} was {_show(stored, name)} and is {_show(ours, name)} now"
        for name in sorted(stored.keys() | ours.keys())
        if name not in stored or name not in ours or stored[name] != ours[name]
    )


def _show(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "not stated"
    text = json.dumps(values[name], ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _sync_folder(folder: Path) -> None:
    """Let the renaming outlive a power cut, where the file system can promise it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
