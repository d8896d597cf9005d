"""Input channels, and the labelled files of a channel in a fixed order."""

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.errors import UserError

logger = logging.getLogger(__name__)

MAX_NAMES = 5  # in a message

#: How the platform delivers a channel: copied, mounted for streaming, or as one FIFO per epoch.
INPUT_MODES = ("File", "FastFile", "Pipe")


@dataclass(frozen=True)
class Channel:
    """One input channel as inputdataconfig.json describes it.

    `directory` has the files of a File or FastFile channel. A Pipe channel has one FIFO per epoch beside it,
    `<directory>_<epoch>`. `sharded`: this host has only its part of the objects (ShardedByS3Key).
    """

    name: str
    directory: Path
    input_mode: str = "File"
    content_type: str = ""
    record_wrapper: str = "None"
    sharded: bool = False

    @property
    def is_pipe(self) -> bool:
        """Whether the data comes through FIFOs."""
        return self.input_mode == "Pipe"

    @classmethod
    def from_config(cls, name: str, directory: Path, config: Mapping[str, Any]) -> "Channel":
        """Read one entry of inputdataconfig.json; missing values have SageMaker's defaults.

        Raises `UserError` for an unknown input mode.
        """
        mode = str(config.get("TrainingInputMode") or "File")
        if mode not in INPUT_MODES:
            raise UserError(
                f"inputdataconfig.json: channel '{name}' has TrainingInputMode {mode!r:.40}; expected "
                f"{_join_names(INPUT_MODES, 'or')}"
            )
        return cls(
            name,
            directory,
            mode,
            str(config.get("ContentType") or "").split(";")[0].strip().lower(),
            str(config.get("RecordWrapperType") or "None"),
            config.get("S3DistributionType") == "ShardedByS3Key",
        )


def check_content_type(channel: Channel, allowed: Sequence[str]) -> None:
    """Raise `UserError` if a channel declares a content type that is not allowed."""
    if channel.content_type and allowed and channel.content_type not in allowed:
        raise UserError(
            f"the channel '{channel.name}' has ContentType {channel.content_type!r:.60}; expected "
            f"{', '.join(allowed)}, or none"
        )


def list_labelled_files(
    directory: Path, suffixes: Collection[str], channel: str, *, minimum_classes: int = 2
) -> list[tuple[Path, str]]:
    """Return every file with one of the suffixes (in any case) and its label, sorted by label, then path.

    The label is the first folder below the channel; deeper folders belong to it. Hidden files and folders
    and macOS's `__MACOSX` are ignored. Links are followed, except back into a parent. Raises UserError,
    which names what was found, unless there are files of `minimum_classes` labels.
    """
    wanted = tuple(sorted({suffix.lower() for suffix in suffixes}))
    expected = f"expected one folder per class with {_join_names(wanted, 'or')} files"
    folders, loose = _list_top_level(directory, channel, expected)
    where = f"the channel '{channel}' at {directory}"

    found: list[tuple[str, str]] = []
    others: Counter[str] = Counter()
    for label in folders:
        before = len(found)
        for path in _walk_label(directory, label, channel):
            if path.lower().endswith(wanted):
                found.append((label, path))
            else:
                others[os.path.splitext(path)[1].lower() or "no suffix"] += 1  # noqa: PTH122 - called a million times
        if len(found) == before:
            logger.warning(
                "%s has no %s file in its folder %s", where, _join_names(wanted, "or"), _printable(label)
            )
    if not found:
        raise UserError(
            f"{where} holds {_format_count(folders, 'folder')} with {_describe_suffixes(others)} in them; "
            f"{expected}"
        )
    if strange := [label for label in folders if _printable(label) != label]:
        raise UserError(
            f"{where} has class folders whose names are not UTF-8: {_join_names(strange)}; rename them"
        )
    if loose:
        logger.warning(
            "%s holds %s beside the folders of the classes; ignored", where, _format_count(loose, "file")
        )
    labels = sorted({label for label, _ in found})
    if len(labels) < minimum_classes:
        raise UserError(
            f"{where} holds {_format_count(labels, 'class', 'classes')}; {expected}, "
            f"and at least {minimum_classes} of them{_hint_at_nesting(directory, labels, found)}"
        )
    return [(Path(path), label) for label, path in sorted(found)]


def _list_top_level(directory: Path, channel: str, expected: str) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files at the top of the channel."""
    where = f"the channel '{channel}'"
    if not directory.exists():
        raise UserError(f"{where} is missing: there is no folder {directory}; {expected}")
    if not directory.is_dir():
        raise UserError(f"{where} at {directory} is not a folder; {expected}")
    folders: list[str] = []
    files: list[str] = []
    for entry in sorted(_scan(str(directory), channel), key=lambda entry: entry.name):
        (folders if entry.is_dir() else files).append(entry.name)
    if not folders and not files:
        raise UserError(f"{where} at {directory} is empty; {expected}")
    if not folders:
        raise UserError(
            f"{where} at {directory} holds {_format_count(files, 'file')} and no folders; {expected}"
        )
    return folders, files


def _walk_label(directory: Path, label: str, channel: str) -> Iterator[str]:
    """Yield the paths of all files below one class's folder."""
    root = os.stat(directory)  # noqa: PTH116 - as in the loop below
    pending = [(os.path.join(directory, label), frozenset({(root.st_dev, root.st_ino)}))]  # noqa: PTH118
    while pending:
        folder, parents = pending.pop()
        status = os.stat(folder)  # noqa: PTH116
        identity = (status.st_dev, status.st_ino)
        if identity in parents:
            continue  # a link back to a parent
        for entry in _scan(folder, channel):
            if entry.is_dir():
                pending.append((entry.path, parents | {identity}))
            elif entry.is_file():
                yield entry.path
            else:
                logger.warning("%s is neither a file nor a link to one; skipped", _printable(entry.path))


def _scan(folder: str, channel: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.name[0] != "." and entry.name != "__MACOSX"]
    except OSError as error:
        raise UserError(f"the channel '{channel}' cannot be read at {folder}: {error.strerror}") from error


def _hint_at_nesting(directory: Path, labels: Sequence[str], found: Sequence[tuple[str, str]]) -> str:
    """Return a hint if the folders of the classes are one level too deep."""
    if len(labels) != 1:
        return ""
    inside = {Path(path).relative_to(directory / labels[0]).parts for _, path in found}
    deeper = sorted({parts[0] for parts in inside if len(parts) > 1})
    if len(deeper) < 2:
        return ""
    return (
        f"; the folder {_printable(labels[0])} holds {_format_count(deeper, 'folder')}: "
        "if these are the classes, put them directly into the channel"
    )


def _format_count(names: Sequence[str], one: str, many: str = "") -> str:
    number = f"{len(names)} {one if len(names) == 1 else many or one + 's'}"
    return f"{number} ({_join_names(names)})" if names else number


def _describe_suffixes(others: Counter[str]) -> str:
    kinds = [f"{count} {kind}" for kind, count in sorted(others.items())]
    return f"{sum(others.values())} other files ({_join_names(kinds)})" if kinds else "no files"


def _join_names(names: Sequence[str], word: str = "") -> str:
    shown = [_printable(name) for name in names[:MAX_NAMES]]
    if len(names) > MAX_NAMES and not word:
        return f"{', '.join(shown)} and {len(names) - MAX_NAMES} more"
    if word and len(names) > 1:
        return f"{', '.join(names[:-1])} {word} {names[-1]}"
    return ", ".join(shown)


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
