"""Supervision: the job runs in a child process, and this one reports how it ended."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tandem.jobs.failures import describe_ending, describe_lost_process, write_failure
from tandem.logs import configure_logging
from tandem.runtime.resources import count_memory_kills

logger = logging.getLogger(__name__)

#: Typed at a terminal, these reach both processes at once.
TYPED = (signal.SIGINT, signal.SIGQUIT)
#: Forwarded to the child.
FORWARDED = (*TYPED, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
#: The number of the watching process, for a child that executes the program again.
WATCHER = "TANDEM_WATCHER"
#: Bytes to keep of the end of standard error.
KEPT = 65536
PR_SET_PDEATHSIG = 1


def supervise(work: Callable[[], int], output_dir: Path, on_success: Callable[[], None]) -> int:
    """Run `work` in a child process; return its exit status, and write `output/failure` if it failed.

    If it succeeded, `on_success` is called in this process. Signals are forwarded to the child, its orphans
    are reaped, and its standard error passes through this process, which can quote the end of it. The child
    returns from here too, with the status of `work`.
    """
    if os.environ.get(WATCHER) == str(os.getppid()):  # the child has executed the program again
        _prepare_work()
        return work()
    configure_logging(logging.INFO)
    with contextlib.suppress(OSError):
        (output_dir / "failure").unlink()  # of an earlier job in a local tree
    before = count_memory_kills() or 0
    signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _become_child(writer)
        return work()
    os.close(writer)
    echo = _Echo(reader)
    status = _wait(child)
    echo.finish()
    code = os.waitstatus_to_exitcode(status)
    kills = (count_memory_kills() or 0) - before
    if kills:
        logger.warning("the kernel killed %d process(es) of this job because memory ran out", kills)
    if code:
        _report_failure(output_dir, code, echo.end, kills)
    else:
        on_success()
    return code if code >= 0 else 128 - code


def _report_failure(output_dir: Path, code: int, errors: str, kills: int) -> None:
    """Write the failure unless the child did; a kill by the kernel precedes it as the cause."""
    path = output_dir / "failure"
    if path.exists():
        if not kills:
            return
        failure = describe_lost_process(path.read_text(encoding="utf-8", errors="replace"))
        path.unlink()
    elif code > 0 and not kills and not os.access(f"{output_dir}/.", os.W_OK):
        return  # the child could not write it either; the log has it
    else:
        failure = describe_ending(code, errors, kills)
    logger.error("training failed: %s", failure)
    write_failure(output_dir, failure)


def _wait(child: int) -> int:
    """Forward signals and reap orphans until the child has ended; return its status."""
    while True:
        received = signal.sigwaitinfo({*FORWARDED, signal.SIGCHLD})
        if received.si_signo != signal.SIGCHLD:
            is_typed = (
                received.si_code > 0 and received.si_signo in TYPED
            )  # above 0: from the terminal, not from a process
            if not is_typed:
                os.kill(child, received.si_signo)
            continue
        ended, status = os.waitpid(-1, os.WNOHANG)
        while ended not in {0, child}:
            ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == child:
            return status


def _become_child(errors: int) -> None:
    """Prepare the child: it dies with its parent, which reads its standard error."""
    watcher = os.getppid()
    os.environ[WATCHER] = str(watcher)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != watcher:
        os._exit(1)
    os.dup2(errors, 2)
    _prepare_work()


def _prepare_work() -> None:
    """Report crashes of native code, and exit on a stop until the work has its own handlers."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    faulthandler.enable()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*FORWARDED, signal.SIGCHLD})


def restore_signals(environ: Mapping[str, str]) -> dict[str, str]:
    """Reset the signals that Python and this module changed; return the environment for another program."""
    for number in (*FORWARDED, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    return {name: value for name, value in environ.items() if name != WATCHER}


class _Echo:
    """Copy `reader` to this process's standard error and keep the end of it."""

    def __init__(self, reader: int) -> None:
        self._reader = reader
        self._end = bytearray()
        self._stopped, self._stop = os.pipe()
        os.set_blocking(reader, False)
        self._thread = threading.Thread(target=self._run, name="echo", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Copy what has arrived and stop, even if the other end is still open."""
        os.close(self._stop)
        self._thread.join()
        os.close(self._stopped)
        os.close(self._reader)

    @property
    def end(self) -> str:
        """The last `KEPT` bytes that arrived."""
        return self._end.decode("utf-8", "replace")

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        poll.register(self._stopped, select.POLLIN)
        is_open = True
        while is_open:
            stopping = any(descriptor == self._stopped for descriptor, _ in poll.poll())
            is_open = self._copy() and not stopping

    def _copy(self) -> bool:
        """Copy the available data; return whether more may come."""
        for _ in range(64):  # an orphan may never stop writing
            try:
                data = os.read(self._reader, KEPT)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._end += data
            del self._end[:-KEPT]
            try:
                while data:
                    data = data[os.write(2, data) :]
            except OSError:  # standard error is closed
                continue
        return True
