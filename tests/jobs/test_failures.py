"""The sentences for causes of failures; test_supervision.py exhausts real memory and disks."""

import errno
import re
import signal
from concurrent.futures.process import BrokenProcessPool

import pytest

from tandem.errors import UserError
from tandem.jobs.failures import (
    FAILURE_CHARACTERS,
    describe_ending,
    describe_failure,
    describe_lost_process,
    write_failure,
)


def test_a_user_error_is_its_message_alone():
    assert describe_failure(UserError("turn the pictures")) == "turn the pictures"


def test_any_other_error_is_its_cause_and_the_end_of_the_traceback():
    try:
        raise ZeroDivisionError("by zero " * 1000)
    except ZeroDivisionError as error:
        text = describe_failure(error)
    assert text.startswith("ZeroDivisionError: by zero")
    assert len(text) <= FAILURE_CHARACTERS
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError as error:
        text = describe_failure(error)
    assert text.splitlines()[0] == "ZeroDivisionError: by zero"
    assert "test_failures.py" in text


def test_the_first_failure_is_kept(tmp_path):
    write_failure(tmp_path / "output", "the cause")
    write_failure(tmp_path / "output", "what followed")
    assert (tmp_path / "output/failure").read_text() == "the cause"


def test_a_failure_that_cannot_be_written_is_logged(tmp_path, caplog):
    (tmp_path / "output").write_text("a file where the folder should be")
    write_failure(tmp_path / "output", "the cause")
    assert "could not be written" in caplog.text


def test_a_failure_with_an_undecodable_file_name_is_written(tmp_path):
    write_failure(tmp_path / "output", "unreadable: \udcff.png")
    assert (tmp_path / "output/failure").read_text() == "unreadable: \\udcff.png"


class ResourceExhaustedError(Exception):
    """Has the name of a framework's class, by which the error is matched."""


def chain(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/"),
            "the disk is full: .* while writing /. Its file",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: .* The fullest file system"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", b"/tmp"), "the disk is full"),
        (
            ResourceExhaustedError("{{a}} /x/m; No space left on device [Op:W]"),
            "the disk is full: .* writing /x/m",
        ),
        (
            OSError(28, "Can't write (time = 1\n, filename = '/x/m.h5', errno = 28"),
            "the disk is full: .* /x/m.h5. ",
        ),
        (chain(RuntimeError("saving failed"), OSError(errno.ENOSPC, "No space")), "the disk is full"),
        (
            MemoryError("Unable to allocate 3. GiB"),
            "out of memory: Unable to allocate 3. GiB. The job may use",
        ),
        (MemoryError(), "out of memory. The job may use .* Lower"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory: .*Cannot allocate memory"),
        (RuntimeError("std::bad_alloc"), "out of memory: std::bad_alloc"),
        (
            ResourceExhaustedError("{{a}} OOM when by cpu [Op:B] name: \nmore"),
            "out of memory: OOM when by cpu. The",
        ),
        (
            ResourceExhaustedError("OOM when allocating by allocator GPU_0_bfc"),
            "out of GPU memory: .*Lower batch_",
        ),
        (RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"), "out of GPU memory"),
        (
            BrokenProcessPool("A process was terminated abruptly"),
            "a worker process of the job died: A process",
        ),
    ],
)
def test_a_known_cause_is_described_with_what_to_do(tmp_path, error, expected):
    text = describe_failure(error, tmp_path)
    assert re.match(expected, text), text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("code", "errors", "expected"),
    [
        (-signal.SIGSEGV, "", "the training process ended by SIGSEGV: a segmentation fault"),
        (-signal.SIGABRT, "Check failed: a", "ended by SIGABRT: .*\n…Check failed: a"),
        (-signal.SIGKILL, "", "ended by SIGKILL: killed; according to the kernel's counters not because of"),
        (-signal.SIGABRT, "terminate called\n  what():  std::bad_alloc\n", "^out of memory: "),
        (-(signal.SIGRTMIN + 3), "", "ended by signal 37: the reason is unknown"),
        (143, "", "ended by SIGTERM: stopped before"),
        (137, "", "ended by SIGKILL: killed"),
        (
            3,
            "Traceback\nValueError: no rows\n",
            "^the program ended with exit status 3: ValueError: no rows\n…Trace",
        ),
        (3, "", "exit status 3: it wrote nothing to its standard error"),
    ],
)
def test_an_ending_is_described_by_its_signal_or_its_last_line(code, errors, expected):
    assert re.search(expected, describe_ending(code, errors))


def test_a_kill_by_the_kernel_means_lack_of_memory():
    assert describe_ending(-9, "", memory_kills=1).startswith("out of memory: the job needed more than the ")
    text = describe_lost_process("a worker process died" + "x" * 2000)
    assert text.startswith("out of memory: the kernel killed a process of this job")
    assert "What followed: a worker process died" in text
    assert len(text) == FAILURE_CHARACTERS


def test_a_crash_report_keeps_its_beginning_and_other_output_its_end():
    modules = "Extension modules: " + "numpy, " * 1000
    text = describe_ending(
        -11, f"noise\n{'y' * 3000}\nwhy\nFatal Python error: Segmentation fault\n{modules}"
    )
    assert "…why\nFatal Python error: Segmentation fault" in text
    assert len(text) == FAILURE_CHARACTERS
    assert describe_ending(1, "x" * 3000 + "the end").endswith("the end")
