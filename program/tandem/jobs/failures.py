"""Why a job ended: each cause as a sentence that says what to do, written once for the platform."""

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
    "Lower what the job holds at once, such as batch_size or image_size, or choose an instance with more "
    "memory."
)
FULL = {errno.ENOSPC, errno.EDQUOT}
FULL_WORDS = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
#: How libraries that give no file name with their error write it in their words.
FILE_IN_WORDS = re.compile(r"filename = '([^']+)'|(/[^\s;]+); ")
#: What a framework puts around its words: where the operation stood in its graph.
AROUND_WORDS = re.compile(r"^\{\{.*?\}\} *| *\[Op:\w+\].*$")
#: Where a job writes, below its root; with the temporary folders, those that may have become full.
WRITTEN = ("model", "output", "checkpoints", "code")

#: What a signal says of a process that ended by it.
SIGNALS = {
    signal.SIGKILL: "killed; its memory limit was not the reason, as far as the kernel's counters tell. "
    "Somebody sent kill -9, or the whole machine was out of memory",
    signal.SIGSEGV: "a segmentation fault: native code reached for memory that is not its own",
    signal.SIGABRT: "native code found something it could not go on with",
    signal.SIGBUS: "a bus error: most often /dev/shm, or the file system of a mapped file, is full",
    signal.SIGILL: "an instruction that this processor lacks: a library was built for a newer one",
    signal.SIGFPE: "an arithmetic fault in native code",
    signal.SIGTERM: "stopped before it had saved anything. A program that handles SIGTERM has 120 s to save",
    signal.SIGINT: "interrupted (Ctrl-C)",
    signal.SIGPIPE: "whoever read its output has gone",
    signal.SIGXCPU: "its limit of processor time is reached",
    signal.SIGXFSZ: "a file reached the largest size that is allowed (ulimit -f)",
}


def describe_failure(error: BaseException, base_dir: Path = Path("/opt/ml")) -> str:
    """Put the cause first; only where nobody has a sentence for it, the end of the trace follows."""
    if isinstance(error, TandemError):
        return str(error)[:FAILURE_CHARACTERS]
    for recognise, tell in CAUSES:
        if recognise(error):
            return tell(error, base_dir)[:FAILURE_CHARACTERS]
    cause = f"{type(error).__name__}: {error}"[: FAILURE_CHARACTERS // 2]
    trace = "".join(traceback.format_exception(error))
    room = FAILURE_CHARACTERS - len(cause) - len("\n…")
    return f"{cause}\n…{trace[-room:]}"


def describe_ending(code: int, errors: str, memory_kills: int = 0) -> str:
    """Say why a process ended that could not say so itself.

    `code` is its exit status, or minus its signal, `errors` the end of its standard error, and
    `memory_kills` how many processes the kernel killed meanwhile for want of memory.
    """
    if memory_kills or "std::bad_alloc" in errors[-2000:]:
        used = f"the job needed more than the {_gigabytes(resources.count_memory())} it may use"
        by = ", and the kernel killed the process" if memory_kills else ""
        return _with_end(f"out of memory: {used}{by}. {LESS_MEMORY}", errors)
    if code < 0 or code - 128 in SIGNALS:  # a shell's way to tell how its command ended
        number = -code if code < 0 else code - 128
        return _with_end(f"the training process ended by {_name(number)}: {_meaning(number)}.", errors)
    last = errors.strip().splitlines()[-1:] or ["it wrote nothing to its standard error"]
    return _with_end(f"the program ended with exit status {code}: {last[0][:300]}", errors)


def describe_lost_process(failure: str) -> str:
    """Put before a failure that the kernel killed a process of the job: that came first."""
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
    """Yield an error and what led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is(*names: str) -> Callable[[BaseException], bool]:
    """Recognise an error by the name of its class, since its framework cannot be imported here."""
    return lambda error: any(kind.__name__ in names for each in _walk(error) for kind in type(each).__mro__)


def _says(*words: str) -> Callable[[BaseException], bool]:
    return lambda error: any(word in str(each) for each in _walk(error) for word in words)


def _is_disk_full(error: BaseException) -> bool:
    numbers = {each.errno for each in _walk(error) if isinstance(each, OSError)}
    return bool(numbers & FULL) or _says(*FULL_WORDS)(error)


def _is_memory_error(error: BaseException) -> bool:
    numbers = {each.errno for each in _walk(error) if isinstance(each, OSError)}
    return errno.ENOMEM in numbers or _is("MemoryError", "ResourceExhaustedError")(error)


def _tell_disk_full(error: BaseException, base_dir: Path) -> str:
    named = [path for each in _walk(error) for path in _find_file(each)]
    usual = [base_dir / name for name in WRITTEN] + [Path(tempfile.gettempdir()), Path("/dev/shm")]  # noqa: S108
    measured = _measure(named[:1] or usual)
    what = f"while writing {named[0]}" if named else "while writing"
    if not measured:
        return f"the disk is full: no space was left {what}. Give the job a larger volume (VolumeSizeInGB)."
    free, size, files, folder = min(measured)
    which = "Its file system" if named else f"The fullest file system of the job, that of {folder},"
    left = "no room for one more file" if files == 0 else f"{_gigabytes(free)} free now"
    return (
        f"the disk is full: no space was left {what}. {which} has {_gigabytes(size)}, {left}. Give the job a "
        "larger volume (VolumeSizeInGB; for /dev/shm a larger --shm-size), or write less, such as fewer "
        "checkpoints."
    )


def _find_file(error: BaseException) -> Iterator[Path]:
    """Yield the file that an error is about, if it says so."""
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes):
        yield Path(os.fsdecode(error.filename))
    elif found := FILE_IN_WORDS.search(str(error)):
        yield Path(found[1] or found[2])


def _measure(paths: Sequence[Path]) -> list[tuple[int, int, int, Path]]:
    """Measure the file systems of `paths`: free bytes, size, free files, and the first path on each."""
    found: dict[int, tuple[int, int, int, Path]] = {}
    for path in paths:
        there = next((each for each in (path, *path.parents) if each.exists()), Path("/"))
        state, device = os.statvfs(there), there.stat().st_dev
        files = state.f_favail if state.f_files else -1  # some file systems count none
        full = 0 if files == 0 else state.f_bavail * state.f_frsize
        found.setdefault(device, (full, state.f_blocks * state.f_frsize, files, path))
    return list(found.values())


def _tell_memory(error: BaseException, _base_dir: Path) -> str:
    limit = _gigabytes(resources.count_memory())
    return f"out of memory{_detail(error)}. The job may use {limit}. {LESS_MEMORY}"


def _tell_gpu_memory(error: BaseException, _base_dir: Path) -> str:
    return (
        f"out of GPU memory{_detail(error)}. Lower batch_size or image_size, or choose an instance whose GPU "
        "has more memory."
    )


def _tell_lost_worker(error: BaseException, _base_dir: Path) -> str:
    return (
        f"a worker process of the job died{_detail(error)}. What it wrote last stands in the log; where "
        "nothing does, want of memory is the most common reason: use fewer workers, or an instance with more "
        "memory."
    )


#: Causes by what tells them, the particular before the general.
CAUSES: tuple[tuple[Callable[[BaseException], bool], Callable[[BaseException, Path], str]], ...] = (
    (_is_disk_full, _tell_disk_full),
    (_says("CUDA_ERROR_OUT_OF_MEMORY", "by allocator GPU"), _tell_gpu_memory),
    (_is_memory_error, _tell_memory),
    (_says("std::bad_alloc", "RESOURCE_EXHAUSTED: Out of memory"), _tell_memory),
    (_is("BrokenProcessPool"), _tell_lost_worker),
)


def _detail(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f": {AROUND_WORDS.sub('', lines[0])[:300].rstrip('.')}" if lines else ""


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 50_000_000 or count == 0 else f"{count / 1e6:.1f} MB"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _meaning(number: int) -> str:
    return next((words for each, words in SIGNALS.items() if each == number), "nothing more is known")


def _with_end(cause: str, errors: str) -> str:
    """Add the end of what a process wrote to its standard error, or the beginning of what a fault wrote."""
    room = FAILURE_CHARACTERS - len(cause) - len("\n…")
    text = errors.strip()
    fault = text.rfind("Fatal Python error: ")
    if fault >= 0:  # who was called stands first, and the list of all extension modules last
        start = max(0, text.rfind("\n", 0, max(0, fault - 1)))
        text = text[start:].strip()[:room]
    return f"{cause}\n…{text[-room:]}" if text else cause
