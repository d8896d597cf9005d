"""The reasons of failed jobs, as sentences for the platform's file `failure`."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tandem.errors import TandemError
from tandem.runtime import resources

logger = logging.getLogger(__name__)

#: The platform shows this many characters of output/failure.
FAILURE_CHARACTERS = 1024

LESS_MEMORY = (
    "Lower what the job keeps in memory, such as batch_size or image_size, or choose an instance with more "
    "memory."
)
FULL = (errno.ENOSPC, errno.EDQUOT)
#: The file name in the messages of libraries whose errors have no such attribute.
FILE_IN_MESSAGE = re.compile(r"filename = '([^']+)'|(/[^\s;]+); ")
#: What a framework adds to its messages: the operation's position in its graph.
GRAPH_POSITION = re.compile(r"^\{\{.*?\}\} *| *\[Op:\w+\].*$")
#: Where a job writes, below its root. These folders and the temporary ones may be full.
WRITTEN = ("model", "output", "checkpoints", "code")

#: What a signal means for the process that it ended.
SIGNALS: dict[int, str] = {
    signal.SIGKILL: "killed; according to the kernel's counters not because of its memory limit. "
    "It was sent kill -9, or the whole host was out of memory",
    signal.SIGSEGV: "a segmentation fault: native code accessed invalid memory",
    signal.SIGABRT: "native code aborted",
    signal.SIGBUS: "a bus error: most often /dev/shm or the file system of a mapped file is full",
    signal.SIGILL: "an unknown instruction: a library was built for a newer processor",
    signal.SIGFPE: "an arithmetic error in native code",
    signal.SIGTERM: "stopped before it saved anything. A program that handles SIGTERM has 120 s to save",
    signal.SIGINT: "interrupted (Ctrl-C)",
    signal.SIGPIPE: "the reader of its output closed the pipe",
    signal.SIGXCPU: "it reached its limit of processor time",
    signal.SIGXFSZ: "a file reached the maximum size (ulimit -f)",
}


def describe_failure(error: BaseException, base_dir: Path = Path("/opt/ml")) -> str:
    """Return an error's cause, with what to do if it is known, else with the end of the traceback."""
    if isinstance(error, TandemError):
        return str(error)[:FAILURE_CHARACTERS]
    for matches, describe in CAUSES:
        if matches(error):
            return describe(error, base_dir)[:FAILURE_CHARACTERS]
    cause = f"{type(error).__name__}: {error}"[: FAILURE_CHARACTERS // 2]
    trace = "".join(traceback.format_exception(error))
    space = FAILURE_CHARACTERS - len(cause) - len("\n…")
    return f"{cause}\n…{trace[-space:]}"


def describe_ending(code: int, errors: str, memory_kills: int = 0) -> str:
    """Return why a process ended that could not write the reason itself.

    `code` is its exit status or minus its signal, `errors` the end of its standard error, and `memory_kills`
    the number of processes that the kernel killed meanwhile because memory ran out.
    """
    if memory_kills or "std::bad_alloc" in errors[-2000:]:
        used = f"the job needed more than the {_gigabytes(resources.count_memory())} it may use"
        by = ", and the kernel killed the process" if memory_kills else ""
        return _with_end(f"out of memory: {used}{by}. {LESS_MEMORY}", errors)
    if code < 0 or code - 128 in SIGNALS:  # the status of a shell whose command ended so
        number = -code if code < 0 else code - 128
        meaning = SIGNALS.get(number, "the reason is unknown")
        return _with_end(f"the training process ended by {_name(number)}: {meaning}.", errors)
    last = errors.strip().splitlines()[-1:] or ["it wrote nothing to its standard error"]
    return _with_end(f"the program ended with exit status {code}: {last[0][:300]}", errors)


def describe_lost_process(failure: str) -> str:
    """Return a failure preceded by its cause, that the kernel killed a process of the job."""
    limit = _gigabytes(resources.count_memory())
    cause = f"out of memory: the kernel killed a process of this job, which may use {limit}. {LESS_MEMORY}"
    return f"{cause} What followed: {failure}"[:FAILURE_CHARACTERS]


def write_failure(output_dir: Path, text: str) -> None:
    """Write `output/failure`, once: the first failure is the cause of all later ones."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with (output_dir / "failure").open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        logger.error("the failure could not be written to %s: %s", output_dir, error)  # noqa: TRY400


def _walk(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is(*names: str) -> Callable[[BaseException], bool]:
    """Match errors by the name of their class, because frameworks cannot be imported here."""
    return lambda error: any(kind.__name__ in names for each in _walk(error) for kind in type(each).__mro__)


def _mentions(*words: str) -> Callable[[BaseException], bool]:
    return lambda error: any(word in str(each) for each in _walk(error) for word in words)


def _has_errno(*numbers: int) -> Callable[[BaseException], bool]:
    return lambda error: any(isinstance(each, OSError) and each.errno in numbers for each in _walk(error))


def _describe_disk_full(error: BaseException, base_dir: Path) -> str:
    named = [path for each in _walk(error) for path in _find_file(each)]
    usual = [base_dir / name for name in WRITTEN] + [Path(tempfile.gettempdir()), Path("/dev/shm")]  # noqa: S108
    measured = _measure(named[:1] or usual)
    what = f"while writing {named[0]}" if named else "while writing"
    if not measured:
        return f"the disk is full: no space was left {what}. Give the job a larger volume (VolumeSizeInGB)."
    free, size, files, folder = min(measured)
    which = "Its file system" if named else f"The fullest file system of the job, that of {folder},"
    left = "no inode is free" if files == 0 else f"{_gigabytes(free)} free now"
    return (
        f"the disk is full: no space was left {what}. {which} has {_gigabytes(size)}, {left}. Give the job a "
        "larger volume (VolumeSizeInGB; for /dev/shm a larger --shm-size), or write less, such as fewer "
        "checkpoints."
    )


def _find_file(error: BaseException) -> Iterator[Path]:
    """Yield the file that an error names, if any."""
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes):
        yield Path(os.fsdecode(error.filename))
    elif found := FILE_IN_MESSAGE.search(str(error)):
        yield Path(found[1] or found[2])


def _measure(paths: Sequence[Path]) -> list[tuple[int, int, int, Path]]:
    """Measure the file systems of `paths`: free bytes, size, free files, and the first path on each."""
    found: dict[int, tuple[int, int, int, Path]] = {}
    for path in paths:
        there = next((each for each in (path, *path.parents) if each.exists()), Path("/"))
        state, device = os.statvfs(there), there.stat().st_dev
        files = state.f_favail if state.f_files else -1  # some file systems do not count them
        full = 0 if files == 0 else state.f_bavail * state.f_frsize
        found.setdefault(device, (full, state.f_blocks * state.f_frsize, files, path))
    return list(found.values())


def _describe_memory(error: BaseException, _base_dir: Path) -> str:
    limit = _gigabytes(resources.count_memory())
    return f"out of memory{_detail(error)}. The job may use {limit}. {LESS_MEMORY}"


def _describe_gpu_memory(error: BaseException, _base_dir: Path) -> str:
    return (
        f"out of GPU memory{_detail(error)}. Lower batch_size or image_size, or choose an instance whose GPU "
        "has more memory."
    )


def _describe_lost_worker(error: BaseException, _base_dir: Path) -> str:
    return (
        f"a worker process of the job died{_detail(error)}. Its last output is in the log; without any, lack "
        "of memory is the most common reason: use fewer workers, or an instance with more memory."
    )


#: The known causes: what matches an error and what describes it, the specific ones first.
CAUSES: tuple[tuple[Callable[[BaseException], bool], Callable[[BaseException, Path], str]], ...] = (
    (_has_errno(*FULL), _describe_disk_full),
    (_mentions(*map(os.strerror, FULL)), _describe_disk_full),
    (_mentions("CUDA_ERROR_OUT_OF_MEMORY", "by allocator GPU"), _describe_gpu_memory),
    (_has_errno(errno.ENOMEM), _describe_memory),
    (_is("MemoryError", "ResourceExhaustedError"), _describe_memory),
    (_mentions("std::bad_alloc", "RESOURCE_EXHAUSTED: Out of memory"), _describe_memory),
    (_is("BrokenProcessPool"), _describe_lost_worker),
)


def _detail(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f": {GRAPH_POSITION.sub('', lines[0])[:300].rstrip('.')}" if lines else ""


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 50_000_000 or count == 0 else f"{count / 1e6:.1f} MB"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _with_end(cause: str, errors: str) -> str:
    """Add the end of a process's standard error, or the beginning of faulthandler's report."""
    space = FAILURE_CHARACTERS - len(cause) - len("\n…")
    text = errors.strip()
    fault = text.rfind("Fatal Python error: ")
    if fault >= 0:  # the calls come first, a list of all extension modules last
        start = max(0, text.rfind("\n", 0, max(0, fault - 1)))
        text = text[start:].strip()[:space]
    return f"{cause}\n…{text[-space:]}" if text else cause
