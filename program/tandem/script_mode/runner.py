"""Running a user's script in place of this process, with the flags that AWS's images pass."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from tandem.errors import UserError
from tandem.jobs.supervision import restore_signals
from tandem.script_mode.submission import Submission

logger = logging.getLogger(__name__)

#: Calls `module:function`, its first argument.
CALL = (
    "import importlib, sys; module, function = sys.argv.pop(1).split(':'); "
    "sys.exit(getattr(importlib.import_module(module), function)())"
)


def make_command(submission: Submission, flags: Sequence[str]) -> list[str]:
    """Return the command that runs a program in its folder.

    A shell script is run by bash, a module of a package with setup.py by `python -m`, a Python file by
    python, and any other file directly. No shell interprets the flags.
    """
    program = submission.program
    if program.endswith(".sh"):
        return ["bash", program, *flags]
    if (submission.folder / "setup.py").is_file():
        return [sys.executable, "-m", program.removesuffix(".py").replace("/", "."), *flags]
    if program.endswith(".py"):
        return [sys.executable, program, *flags]
    if not os.access(submission.path, os.X_OK):
        raise UserError(
            f"the program {submission.path} is neither .py nor .sh, and it is not executable; make it so "
            "(chmod +x), or correct sagemaker_program."
        )
    return [str(submission.path.resolve()), *flags]


def make_call(entry_point: str, flags: Sequence[str]) -> list[str]:
    """Return the command that calls `module:function` without arguments."""
    return [sys.executable, "-c", CALL, entry_point, *flags]


def run_command(
    command: list[str], folder: Path, variables: Mapping[str, str], imports: Sequence[Path]
) -> NoReturn:
    """Replace this process by `command`, which runs in `folder` and can import from it and from `imports`.

    So it gets signals itself. Raises `UserError` if it cannot be started.
    """
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path]
    paths = [str(folder), *map(str, imports), *inherited, str(Path(__file__).resolve().parents[2])]
    scripts = [str(path.parents[2] / "bin") for path in imports]
    environment = {
        **restore_signals(os.environ),
        **variables,
        "PATH": ":".join([*dict.fromkeys(scripts), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": ":".join(dict.fromkeys(paths)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
    }
    logger.info("running %s in %s", " ".join(command[:2]), folder)
    sys.stdout.flush()
    try:
        os.chdir(folder)
        os.execvpe(command[0], command, environment)  # noqa: S606  # the user's program
    except OSError as error:
        hint = "; the hyperparameters are too long for a command line" if error.errno == errno.E2BIG else ""
        raise UserError(f"{command[0]} cannot be started in {folder}: {error.strerror}{hint}.") from error
    except ValueError as error:  # a NUL, or half of a surrogate pair
        raise UserError(f"a hyperparameter cannot be passed as a command-line flag: {error}.") from error
