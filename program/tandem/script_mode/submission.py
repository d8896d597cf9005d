"""The user's own program: where it lies, and whether it is a module of the seam or a plain script."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tandem import reserved
from tandem.algorithm import find_program
from tandem.errors import UserError
from tandem.hyperparameters import decode
from tandem.jobs.job import JobConfig
from tandem.script_mode.archives import unpack
from tandem.settings import Settings

#: What AWS's SDK calls the archive of a user's files.
ARCHIVE = "sourcedir.tar.gz"
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")


@dataclass(frozen=True)
class Submission:
    """The user's file `program` and the folder that it belongs to, where it is to run."""

    folder: Path
    program: str

    @property
    def path(self) -> Path:
        """The program's file."""
        return self.folder / self.program


def find_submission(job: JobConfig, settings: Settings) -> Submission | None:
    """Find the program that the job, or else the environment, names; None where neither does.

    It may lie in the submit directory (a folder or an archive), in the channel `code` or in `code/` below
    the root; an archive is unpacked there if nobody else's files lie there. Raises `UserError` naming where
    it was searched.
    """
    given = job.raw_hyperparameters
    name = str(decode(str(given.get(reserved.PROGRAM, settings.program))))
    submitted = str(decode(str(given.get(reserved.SUBMIT_DIRECTORY, settings.submit_directory))))
    if not name:
        return None
    if Path(name).is_absolute() and Path(name).is_file():
        return Submission(Path(name).parent, Path(name).name)
    unpacked = job.base_dir / "code"
    folders = [*_list_places(job, submitted, unpacked), unpacked]
    try:
        path = find_program(name, folders)
    except UserError as error:
        if submitted.startswith("s3://"):
            raise UserError(
                f"sagemaker_submit_directory is {submitted!r:.200}, but this container fetches nothing from "
                f"S3 itself; give the job a channel named code with {name} in it, or with {ARCHIVE}."
            ) from error
        raise
    return Submission(next(folder for folder in folders if folder / name == path), name)


def is_module(path: Path) -> bool:
    """Say whether a file is a module of the seam, one with a train() for us to call, without running it.

    A script of AWS's examples often has a function train() too, but calls it itself, most often below
    `if __name__ == "__main__":`. Raises `UserError` if the file is no Python.
    """
    if path.suffix != ".py":
        return False
    try:
        tree = ast.parse(path.read_bytes(), filename=path.name)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not Python that can be read: {error}.") from error
    defined = {name for node in tree.body for name in _list_names(node)}
    return "train" in defined and not any(_starts_itself(node) for node in tree.body)


def _list_names(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef):
        yield node.name
    elif isinstance(node, ast.ImportFrom | ast.Import):
        yield from (alias.asname or alias.name for alias in node.names)
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _starts_itself(node: ast.stmt) -> bool:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return False
    names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    calls = {
        each.func.id
        for each in ast.walk(node)
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Name)
    }
    return (isinstance(node, ast.If) and "__name__" in names) or "train" in calls


def _list_places(job: JobConfig, submitted: str, unpacked: Path) -> Iterator[Path]:
    """Yield the folders that may hold the program, the submitted one first; archives are unpacked."""
    places = [] if not submitted or submitted.startswith("s3://") else [Path(submitted)]
    places += [job.channels["code"].directory] if "code" in job.channels else []
    for place in places:
        archive = place if place.name.endswith(ARCHIVE_SUFFIXES) else place / ARCHIVE
        if archive.is_file():
            unpack(archive, unpacked)
        yield unpacked if archive is place else place
