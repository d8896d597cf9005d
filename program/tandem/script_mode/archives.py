"""A user's files in a tar archive, unpacked wholly or not at all, and anew where another takes its place."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from tandem.errors import UserError

logger = logging.getLogger(__name__)

#: Stands in the folder beside what an archive left: which archive it was, and the names of its files.
RECORD = ".unpacked.json"
NEW_RECORD = ".unpacked.json.new"
#: Where an archive is unpacked before its files are moved to where they belong.
ASIDE = ".unpacking"
CHUNK = 1 << 20


def unpack(archive: Path, folder: Path) -> None:
    """Make the files of a tar archive lie in `folder`, in place of those that an earlier archive left there.

    What else lies there stays: a folder with files and without a record of an archive is left as it is, and
    so is one that has this archive's. If it fails or is killed in the middle, the next call does it again.

    Raises `UserError`, and changes nothing, for an archive that cannot be read or that holds anything but
    files and folders with names below its top.
    """
    aside = folder / ASIDE
    _clear(folder)
    earlier = _read_record(folder)
    if earlier is None and folder.is_dir() and any(folder.iterdir()):
        logger.info("%s holds files that no archive left, so %s is not unpacked", folder, archive)
        return
    digest = _digest(archive)
    if earlier and earlier[0] == digest:
        logger.info("%s is unpacked in %s already", archive, folder)
        return
    is_new = not folder.exists()
    try:
        names = set(_extract(archive, aside))
        before = set(earlier[1]) if earlier else set()
        for name in [name for name in names - before if os.path.lexists(folder / name)]:
            logger.warning("%s is none that an archive left, so it stays as it is", folder / name)
            names.remove(name)
        _write_record(folder, "", before | names)  # until all is in place, it is that of no archive
        _remove(folder, before)
        _move(aside, folder, names)
        _write_record(folder, digest, names)
    finally:
        _clear(folder)
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _clear(folder: Path) -> None:
    """Remove what a start that failed or was killed was still writing."""
    shutil.rmtree(folder / ASIDE, ignore_errors=True)
    with contextlib.suppress(OSError):
        (folder / NEW_RECORD).unlink()


def _read_record(folder: Path) -> tuple[str, list[str]] | None:
    """Give the digest of the archive that was unpacked and the names of its files; None where none was."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return str(record["sha256"]), [str(name) for name in record["files"]]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _write_record(folder: Path, digest: str, names: Iterable[str]) -> None:
    written = folder / NEW_RECORD
    written.write_text(json.dumps({"sha256": digest, "files": sorted(names)}), encoding="utf-8")
    written.replace(folder / RECORD)


def _digest(archive: Path) -> str:
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _extract(archive: Path, aside: Path) -> list[str]:
    """Unpack an archive; give the names of its files."""
    try:
        with tarfile.open(archive) as tar:
            members = tar.getmembers()
            while tar.fileobj and tar.fileobj.read(CHUNK):
                pass  # to the end, where a checksum may stand
            _check(members, archive)
            aside.mkdir(parents=True)
            for member in members:
                _write(tar, member, aside / member.name)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise _refuse(archive, error) from error
    except OSError as error:
        if error.errno is not None:  # the file system's
            raise
        raise _refuse(archive, error) from error
    files = {str(PurePosixPath(member.name)) for member in members if member.isfile()}
    return sorted(files - {RECORD, NEW_RECORD})


def _refuse(archive: Path, error: Exception) -> UserError:
    return UserError(f"{archive} is not a whole tar archive: {error}. Pack it again.")


def _check(members: Sequence[tarfile.TarInfo], archive: Path) -> None:
    files: set[PurePosixPath] = set()
    folders: set[PurePosixPath] = set()
    for member in members:
        name = PurePosixPath(member.name)
        is_plain = (member.isfile() and name.parts) or member.isdir()
        if name.is_absolute() or ".." in name.parts or "\0" in member.name or not is_plain:
            raise UserError(
                f"{archive} holds {member.name!r:.100}, which is not a plain file below its top; pack it "
                "without links and without names that lead elsewhere."
            )
        (files if member.isfile() else folders).add(name)
        folders.update(name.parents)
    if both := files & folders:
        raise UserError(
            f"{archive} holds {str(min(both))!r:.100} both as a file and as a folder; pack it again with one "
            "of them."
        )


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    content = tar.extractfile(member)
    assert content is not None  # noqa: S101  # it is a file
    with content, path.open("wb") as file:
        shutil.copyfileobj(content, file)
    path.chmod(0o755 if member.mode & 0o100 else 0o644)


def _remove(folder: Path, names: Iterable[str]) -> None:
    """Remove files, and the folders that become empty by that."""
    for name in names:
        path = folder / name
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            path.unlink()
        for parent in path.relative_to(folder).parents[:-1]:
            with contextlib.suppress(OSError):
                (folder / parent).rmdir()


def _move(aside: Path, folder: Path, names: Iterable[str]) -> None:
    """Make the folders that were unpacked, and move those files to where they belong."""
    try:
        for path in aside.rglob("*"):
            if path.is_dir():
                (folder / path.relative_to(aside)).mkdir(parents=True, exist_ok=True)
        for name in names:
            (aside / name).rename(folder / name)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(
            f"the archive cannot be unpacked into {folder}: {error.filename} is in its way there. Move it."
        ) from error
