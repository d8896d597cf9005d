"""Index files, which list a channel's images with their labels instead of folders."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import posixpath
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tandem.errors import UserError

logger = logging.getLogger(__name__)

COLUMNS = ("path", "label")

#: What spreadsheets write instead of commas.
SEPARATORS = {";": "semicolons", "\t": "tabs"}

#: Characters of a .csv's first line that are read.
HEADER_SIZE = 4096

#: Characters of a file's content that a message shows.
MAX_SHOWN = 60


class Entry(NamedTuple):
    """One image of an index: its line, its path below the channel, and its label."""

    line: int
    path: str
    label: str


def find_index(directory: Path) -> Path | None:
    """Return the index at a channel's top level: the file that ends in .lst, .manifest, .jsonl or .csv.

    A .csv file counts only if its first line names the columns path and label, in any case. Raises
    `UserError` if another separator than a comma is used, or if there are two indexes.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(directory) if not entry.name.startswith("."))
    except OSError:
        return None  # listing the images reports what is wrong with the folder
    found = [directory / name for name in names if Path(name).suffix.lower() in _READERS]
    indexes = [path for path in found if path.is_file() and _is_index(path)]
    if len(indexes) > 1:
        raise UserError(
            f"{directory} has more than one index: {', '.join(path.name for path in indexes[:5])}; "
            "expected one. Remove the others from the channel."
        )
    return indexes[0] if indexes else None


def read_index(path: Path) -> list[tuple[Path, str]]:
    """Return every image that an index lists and its label, sorted by label, then path.

    - `.lst`, as MXNet's im2rec writes it: number, label and path, separated by tabs.
    - `.manifest` and `.jsonl`: a JSON object per line with `source-ref`, the path, and one more attribute,
      the label. If `<attribute>-metadata` has a `class-name`, that is the label, as in manifests of SageMaker
      Ground Truth.
    - `.csv`: the columns `path` and `label`, named in the first line.

    Paths are relative to the folder of the index and must be below it. Each folder is listed once and no
    file is opened. Raises `UserError` with the number of the line that is wrong.
    """
    lines: dict[str, int] = {}
    folders: dict[str, set[str]] = {}
    items: list[tuple[Path, str]] = []
    for line, named, label in _read_entries(path):
        where = f"{path} line {line}"
        inside = posixpath.normpath(named)
        if "://" in named or posixpath.isabs(inside) or inside.split("/")[0] in {"..", "."}:
            raise UserError(
                f"{where}: the path is {named!r:.{MAX_SHOWN}}; expected one below the channel, such as "
                "cats/1.jpg."
            )
        if inside in lines:
            raise UserError(
                f"{where}: {named!r:.{MAX_SHOWN}} is in line {lines[inside]} already; name each image once."
            )
        lines[inside] = line
        folder, name = posixpath.split(inside)
        if folder not in folders:
            folders[folder] = _list_files(path.parent / folder)
        if name not in folders[folder]:
            raise UserError(
                f"{where}: there is no file {named!r:.{MAX_SHOWN}} in the channel; add it or remove the line."
            )
        items.append((path.parent / inside, label))
    if not items:
        raise UserError(f"{path} lists no images; expected one line per image.")
    logger.info("%s lists %s images; folders are not searched", path, len(items))
    return sorted(items, key=lambda item: (item[1], item[0]))


def _is_index(path: Path) -> bool:
    if path.suffix.lower() != ".csv":
        return True
    header = next(_lines(path), "")[:HEADER_SIZE]
    if set(COLUMNS) <= set(_split_header(header, ",")):
        return True
    for separator, name in SEPARATORS.items():
        if set(COLUMNS) <= set(_split_header(header, separator)):
            raise UserError(f"{path} line 1: {name} separate the columns; expected commas: path,label.")
    logger.warning(
        "%s is not an index: its first line is %.60r; expected the columns path and label",
        path,
        header.strip(),
    )
    return False


def _split_header(line: str, separator: str) -> list[str]:
    """Return the names of columns in lower case and stripped."""
    try:
        return [cell.strip().lower() for cell in next(csv.reader([line], delimiter=separator), [])]
    except csv.Error:  # older Pythons reject a NUL
        return []


def _read_entries(path: Path) -> Iterator[Entry]:
    for entry in _READERS[path.suffix.lower()](path):
        if not entry.path or not entry.label:
            missing = "path" if not entry.path else "label"
            raise UserError(f"{path} line {entry.line}: there is no {missing}; expected a path and a label.")
        for what, text in (("path", entry.path), ("label", entry.label)):
            if not _is_text(text):
                raise UserError(
                    f"{path} line {entry.line}: the {what} is {text!a:.{MAX_SHOWN}}, which contains a NUL or "
                    "half of a surrogate pair; expected text."
                )
        yield entry


def _read_lst(path: Path) -> Iterator[Entry]:
    for line, text in enumerate(_lines(path), 1):
        cells = text.rstrip("\r\n").split("\t")
        if not text.strip():
            continue
        if len(cells) != 3:
            raise UserError(
                f"{path} line {line}: {len(cells)} cells separated by tabs; expected three: number, label "
                "and path."
            )
        yield Entry(line, cells[2].strip(), _plain_number(cells[1].strip(), f"{path} line {line}"))


def _read_json_lines(path: Path) -> Iterator[Entry]:
    for line, text in enumerate(_lines(path), 1):
        if not text.strip():
            continue
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} line {line} is not JSON: {error}.") from error
        if not isinstance(content, dict):
            raise UserError(
                f"{path} line {line} is a JSON {type(content).__name__}; expected an object with a "
                "source-ref and a label."
            )
        yield Entry(line, str(content.pop("source-ref", "")), _find_label(content, f"{path} line {line}"))


def _find_label(content: dict[str, Any], where: str) -> str:
    """Return the label of one line: its only attribute, or the class name in its metadata."""
    names = [name for name in content if not name.endswith("-metadata")]
    if len(names) != 1:
        raise UserError(
            f"{where} has {len(names)} attributes besides source-ref ({', '.join(names)[:MAX_SHOWN]}); "
            "expected one, the label."
        )
    metadata = content.get(f"{names[0]}-metadata")
    value = metadata.get("class-name") if isinstance(metadata, dict) else None
    value = content[names[0]] if value is None else value
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise UserError(
            f"{where}: the label {names[0]!r} is {value!r:.{MAX_SHOWN}}; expected one text or number."
        )
    return value.strip() if isinstance(value, str) else _plain_number(str(value), where)


def _read_csv(path: Path) -> Iterator[Entry]:
    rows = csv.reader(_lines(path), strict=True)
    start = 1
    try:
        names = [name.strip().lower() for name in next(rows, [])]
        if twice := [name for name in COLUMNS if names.count(name) != 1]:
            raise UserError(f"{path} line 1: {names.count(twice[0])} columns {twice[0]}; expected one.")
        columns = [names.index(name) for name in COLUMNS]
        start = rows.line_num + 1
        for row in rows:
            if row:
                path_, label = ((row[column] if column < len(row) else "").strip() for column in columns)
                yield Entry(start, path_, label)
            start = rows.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path} line {start} is not CSV: {error}. Close its quotes, and double quotes inside of quotes."
        ) from error


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8."
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def _plain_number(text: str, where: str) -> str:
    """Return im2rec's 3.000000 as 3; leave words, and numbers that a float cannot represent, as they are."""
    try:
        number = float(text)
    except ValueError:
        return text
    if not math.isfinite(number) or "_" in text:
        raise UserError(
            f"{where}: the label is {text!r:.{MAX_SHOWN}}; expected a finite number such as 3, or a word."
        )
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else text


def _is_text(text: str) -> bool:
    """Return whether the text can be encoded as UTF-8 and be a part of a path."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _list_files(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not entry.is_dir()}
    except OSError:
        return set()


_READERS: dict[str, Callable[[Path], Iterator[Entry]]] = {
    ".lst": _read_lst,
    ".manifest": _read_json_lines,
    ".jsonl": _read_json_lines,
    ".csv": _read_csv,
}
