"""The real `train` under limits, signals and crashes that end a process before it can report them."""

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import ROOT
from processes import wait_for

TRAIN = [sys.executable, ROOT / "program/train"]


@pytest.fixture
def start(opt_ml):
    """`start("kill", prefix…)` starts the real `train` of ends_abruptly.py; returns it with its root."""
    started = []

    def make(how, *prefix, root=None, **options):
        root = root or opt_ml({"how": how})
        process = subprocess.Popen(
            [*prefix, *TRAIN],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT / "tests"),
                "ALGORITHM": "fixtures.ends_abruptly",
                "SAGEMAKER_BASE_DIR": str(root),
            },
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options},
        )
        started.append(process)
        return process, root

    yield make
    for process in started:
        process.kill()
        process.communicate()


def finish(process, root):
    """Return what a failed process left in output/failure."""
    output, errors = process.communicate(timeout=60)
    assert process.returncode != 0, output + errors
    failure = (root / "output/failure").read_text()
    assert len(failure) <= 1024
    return failure


@contextmanager
def limited_memory(megabytes):
    """Return the command prefix of a real cgroup with this limit; skip if none can be created."""
    own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for _, controllers, path in own:
        for above in (path, "/"):
            folder = Path("/sys/fs/cgroup", controllers, above.lstrip("/"), f"tandem-{os.getpid()}")
            limit = folder / ("memory.max" if controllers == "" else "memory.limit_in_bytes")
            if controllers not in {"", "memory"} or not folder.parent.is_dir():
                continue
            try:
                folder.mkdir()
            except OSError:
                continue
            try:
                limit.write_text(str(megabytes << 20))
            except OSError:
                folder.rmdir()
                continue
            try:
                yield ["bash", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(folder)]
            finally:
                wait_for(lambda: not (folder / "cgroup.procs").read_text(), "the cgroup to be empty")  # noqa: B023
                folder.rmdir()
            return
    pytest.skip(
        "no cgroup with a memory limit can be made here: that takes root and a writable /sys/fs/cgroup"
    )


def need_namespaces(*kinds):
    """Return the command prefix of new namespaces; skip if none can be created."""
    if not shutil.which("unshare") or subprocess.run(["unshare", *kinds, "true"], check=False).returncode:
        pytest.skip(f"unshare {' '.join(kinds)} is not allowed here")
    return ["unshare", *kinds]


def test_a_kill_for_lack_of_memory_is_reported_with_the_limit(start):
    with limited_memory(200) as prefix:
        process, root = start("eat", *prefix)
        failure = finish(process, root)
    assert process.returncode == 137
    assert failure.startswith(
        "out of memory: the job needed more than the 0.2 GB it may use, and the kernel killed"
    )
    assert "batch_size" in failure


def test_a_failed_allocation_is_reported_with_the_available_memory(start):
    failure = finish(*start("allocate"))
    assert failure.startswith("out of memory: OOM when allocating tensor with shape[1048576,1048576]")
    assert "The job may use " in failure


def test_a_worker_that_the_kernel_killed_is_reported_before_its_consequences(start):
    with limited_memory(200) as prefix:
        process, root = start("eat in a worker", *prefix)
        failure = finish(process, root)
    assert process.returncode == 1
    assert re.match("out of memory: the kernel killed a process of this job, which may use 0.2 GB", failure)
    assert "What followed: a worker process of the job died" in failure


def test_another_kill_is_not_taken_for_lack_of_memory(start):
    failure = finish(*start("kill"))
    assert failure.startswith(
        "the training process ended by SIGKILL: killed; according to the kernel's counters not because of "
        "its memory limit"
    )


def test_a_dead_worker_is_reported(start):
    assert finish(*start("die in a worker")).startswith("a worker process of the job died: A process in the")


@pytest.mark.parametrize("how", ["fill", pytest.param("save", marks=pytest.mark.slow)])
def test_a_full_disk_is_reported_with_the_file_and_the_size(start, opt_ml, how):
    """For errors of Python and of a framework."""
    root = opt_ml({"how": how})
    mount = 'mount -t tmpfs -o size=8m tmpfs "$0" && exec "$@"'
    process, _ = start(how, *need_namespaces("--mount"), "bash", "-c", mount, str(root / "model"), root=root)
    failure = finish(process, root)
    assert re.match(
        rf"the disk is full: no space was left while writing( {root}/model/model.data)?\. ", failure
    )
    assert "has 8.4 MB, " in failure
    assert "VolumeSizeInGB" in failure


@pytest.mark.parametrize(
    ("how", "status", "expected"),
    [
        ("segfault", 139, "SIGSEGV: a segmentation fault"),
        ("abort", 134, "SIGABRT: native code aborted"),
    ],
)
def test_a_crash_of_native_code_is_reported_with_its_position(start, how, status, expected):
    process, root = start(how)
    failure = finish(process, root)
    assert process.returncode == status
    assert failure.startswith(f"the training process ended by {expected}")
    assert "Fatal Python error" in failure
    assert "ends_abruptly.py" in failure
    assert (how != "abort") or "Check failed: rows == columns" in failure


def test_standard_error_still_reaches_the_log(start):
    process, _ = start("abort")
    _, errors = process.communicate(timeout=60)
    assert "Check failed: rows == columns" in errors


def test_as_the_first_process_of_a_container_it_stops_and_reaps(start, opt_ml):
    prefix = need_namespaces("--pid", "--fork", "--mount-proc")
    process, root = start("orphans", *prefix)
    output, errors = process.communicate(timeout=60)  # less than the orphan that holds standard error lives
    assert process.returncode == 0, output + errors
    assert (root / "model/model.txt").read_text() == "done"


def test_a_stop_is_forwarded_by_the_first_process_of_a_container(start):
    process, root = start("count interrupts", *need_namespaces("--pid", "--fork", "--mount-proc"))
    wait_for((root / "output/step").exists, "the first step")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGUSR1)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, output + errors


def test_a_kill_of_the_watching_process_kills_the_work(start):
    process, root = start("hang")
    wait_for((root / "output/step").exists, "the first step")
    worker = int((root / "output/pid").read_text())
    assert worker != process.pid
    process.kill()
    process.wait(60)
    wait_for(lambda: not Path(f"/proc/{worker}/task").exists() or is_zombie(worker), "the work to end")


def test_a_child_that_executes_itself_again_is_watched_once(start):
    process, root = start("start anew")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, output + errors
    assert (root / "model/model.txt").read_text() == f"{process.pid} 0"


def is_zombie(pid):
    with Path(f"/proc/{pid}/stat").open() as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"


@contextmanager
def terminal(start, how):
    """Start `train` at a terminal of its own; return the process, its root and the terminal."""
    master, slave = pty.openpty()
    process, root = start(how, "setsid", "--ctty", stdin=slave, stdout=slave, stderr=subprocess.DEVNULL)
    os.close(slave)
    wait_for((root / "output/step").exists, "the first step")
    try:
        yield process, root, master
    finally:
        os.close(master)


def test_ctrl_c_at_a_terminal_arrives_once(start):
    with terminal(start, "count interrupts") as (process, root, keys):
        os.write(keys, b"\x03")
        wait_for((root / "output/seen").exists, "the first SIGINT")
        process.send_signal(signal.SIGUSR1)
        wait_for((root / "model/model.txt").exists, "the end")
        assert (root / "model/model.txt").read_text() == "1 True"
        assert process.wait(60) == 0


def test_a_second_ctrl_c_ends_at_once(start):
    with terminal(start, "hang") as (process, root, keys):
        os.write(keys, b"\x03")
        shown = b""
        while b"finishing the step" not in shown:
            shown += os.read(keys, 4096)
        os.write(keys, b"\x03")
        assert process.wait(60) == 130
    assert (
        (root / "output/failure").read_text().startswith("the training process ended by SIGINT: interrupted")
    )


def test_another_program_starts_with_default_signals():
    """Python ignores SIGPIPE, which a shell script must not inherit."""
    code = (
        "import os; from tandem.jobs.supervision import restore_signals; "
        "environ = restore_signals(os.environ);"
        "os.execvpe('bash', ['bash', '-c', 'trap; grep -E \"Sig(Blk|Ign)\" /proc/$$/status'], environ)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "program"), "TANDEM_WATCHER": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    masks = [int(mask, 16) for mask in re.findall(r"\t(\w+)", done.stdout)]
    assert [mask & 0x7FFFFFFF for mask in masks] == [0, 0]  # above are the C library's own
