"""Unpacking of a user's tar archive, completely or not at all, and again if another archive replaces it."""

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

#: The file, beside the unpacked ones, that records the archive and the names of its files.
RECORD = ".unpacked.json"
NEW_RECORD = ".unpacked.json.new"
#: Where an archive is unpacked before its files are moved to the folder.
TEMPORARY = ".unpacking"
CHUNK = 1 << 20


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive into `folder`, replacing the files that an earlier archive left there.

    Other files stay: a folder with files and without a record of an archive is not changed, and neither is
    one with this archive's record. After a failure or a kill in between, the next call does it again.

    Raises `UserError`, and changes nothing, for an archive that cannot be read or that has anything but
    files and folders below its top.
    """
    temporary = folder / TEMPORARY
    _clear(folder)
    earlier = _read_record(folder)
    if earlier is None and folder.is_dir() and any(folder.iterdir()):
        logger.info("%s has files that are not from an archive, so %s is not unpacked", folder, archive)
        return
    digest = _digest(archive)
    if earlier and earlier[0] == digest:
        logger.info("%s is unpacked in %s already", archive, folder)
        return
    is_new = not folder.exists()
    try:
        names = set(_extract(archive, temporary))
        before = set(earlier[1]) if earlier else set()
        for name in [name for name in names - before if os.path.lexists(folder / name)]:
            logger.warning("%s is not from an archive, so it is not replaced", folder / name)
            names.remove(name)
        _write_record(folder, "", before | names)  # no archive's digest until every file is there
        _remove(folder, before)
        _move(temporary, folder, names)
        _write_record(folder, digest, names)
    finally:
        _clear(folder)
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _clear(folder: Path) -> None:
    """Remove the files that a failed or killed start left unfinished."""
    shutil.rmtree(folder / TEMPORARY, ignore_errors=True)
    with contextlib.suppress(OSError):
        (folder / NEW_RECORD).unlink()


def _read_record(folder: Path) -> tuple[str, list[str]] | None:
    """Return the digest of the unpacked archive and the names of its files; None without one."""
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


def _extract(archive: Path, temporary: Path) -> list[str]:
    """Unpack an archive; return the names of its files."""
    try:
        with tarfile.open(archive) as tar:
            members = tar.getmembers()
            while tar.fileobj and tar.fileobj.read(CHUNK):
                pass  # to the end, where a checksum may be
            _check(members, archive)
            temporary.mkdir(parents=True)
            for member in members:
                _write(tar, member, temporary / member.name)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise _refuse(archive, error) from error
    except OSError as error:
        if error.errno is not None:  # an error of the file system
            raise
        raise _refuse(archive, error) from error
    files = {str(PurePosixPath(member.name)) for member in members if member.isfile()}
    return sorted(files - {RECORD, NEW_RECORD})


def _refuse(archive: Path, error: Exception) -> UserError:
    return UserError(f"{archive} is not a complete tar archive: {error}. Pack it again.")


def _check(members: Sequence[tarfile.TarInfo], archive: Path) -> None:
    files: set[PurePosixPath] = set()
    folders: set[PurePosixPath] = set()
    for member in members:
        name = PurePosixPath(member.name)
        is_plain = (member.isfile() and name.parts) or member.isdir()
        if name.is_absolute() or ".." in name.parts or "\0" in member.name or not is_plain:
            raise UserError(
                f"{archive} has {member.name!r:.100}, which is not a plain file below its top; pack it "
                "without links and without paths that lead outside."
            )
        (files if member.isfile() else folders).add(name)
        folders.update(name.parents)
    if both := files & folders:
        raise UserError(
            f"{archive} has {str(min(both))!r:.100} both as a file and as a folder; pack it again with one "
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
    """Remove files, and the folders that are empty then."""
    for name in names:
        path = folder / name
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            path.unlink()
        for parent in path.relative_to(folder).parents[:-1]:
            with contextlib.suppress(OSError):
                (folder / parent).rmdir()


def _move(temporary: Path, folder: Path, names: Iterable[str]) -> None:
    """Create the unpacked folders and move the files into them."""
    try:
        for path in temporary.rglob("*"):
            if path.is_dir():
                (folder / path.relative_to(temporary)).mkdir(parents=True, exist_ok=True)
        for name in names:
            (temporary / name).rename(folder / name)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(
            f"the archive cannot be unpacked into {folder}: {error.filename} is in the way. Move it."
        ) from error
