"""The user's own program: where it is, and whether it is an algorithm's module or a plain script."""

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

#: The name that AWS's SDK gives to the archive of a user's files.
ARCHIVE = "sourcedir.tar.gz"
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")


@dataclass(frozen=True)
class Submission:
    """The user's file `program` and the folder in which it runs."""

    folder: Path
    program: str

    @property
    def path(self) -> Path:
        """The program's file."""
        return self.folder / self.program


def find_submission(job: JobConfig, settings: Settings) -> Submission | None:
    """Return the program that the job, or else the environment, names; None if neither does.

    It may be in the submit directory (a folder or an archive), in the channel `code` or in `code/` below the
    root, where archives are unpacked. Raises `UserError` naming the folders that were searched.
    """
    parameters = job.raw_hyperparameters
    name = str(decode(str(parameters.get(reserved.PROGRAM, settings.program))))
    submitted = str(decode(str(parameters.get(reserved.SUBMIT_DIRECTORY, settings.submit_directory))))
    if not name:
        return None
    if Path(name).is_absolute() and Path(name).is_file():
        return Submission(Path(name).parent, Path(name).name)
    unpacked = job.base_dir / "code"
    folders = [*_list_folders(job, submitted, unpacked), unpacked]
    try:
        path = find_program(name, folders)
    except UserError as error:
        if submitted.startswith("s3://"):
            raise UserError(
                f"sagemaker_submit_directory is {submitted!r:.200}, but this container fetches nothing from "
                f"S3 itself; give the job a channel named code with {name} or {ARCHIVE} in it."
            ) from error
        raise
    return Submission(next(folder for folder in folders if folder / name == path), name)


def is_module(path: Path) -> bool:
    """Return whether a file is an algorithm's module, with a train() to be called, without running it.

    Scripts of AWS's examples often have a function train() too, but call it themselves, most often below
    `if __name__ == "__main__":`. Raises `UserError` if the file is not valid Python.
    """
    if path.suffix != ".py":
        return False
    try:
        tree = ast.parse(path.read_bytes(), filename=path.name)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid Python: {error}.") from error
    defined = {name for node in tree.body for name in _list_names(node)}
    return "train" in defined and not any(_calls_train(node) for node in tree.body)


def _list_names(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef):
        yield node.name
    elif isinstance(node, ast.ImportFrom | ast.Import):
        yield from (alias.asname or alias.name for alias in node.names)
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _calls_train(node: ast.stmt) -> bool:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return False
    names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    calls = {
        each.func.id
        for each in ast.walk(node)
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Name)
    }
    return (isinstance(node, ast.If) and "__name__" in names) or "train" in calls


def _list_folders(job: JobConfig, submitted: str, unpacked: Path) -> Iterator[Path]:
    """Yield the folders that may have the program, the submitted one first; archives are unpacked."""
    sources = [] if not submitted or submitted.startswith("s3://") else [Path(submitted)]
    sources += [job.channels["code"].directory] if "code" in job.channels else []
    for source in sources:
        archive = source if source.name.endswith(ARCHIVE_SUFFIXES) else source / ARCHIVE
        if archive.is_file():
            unpack(archive, unpacked)
        yield unpacked if archive is source else source
