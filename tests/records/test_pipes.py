"""Real FIFOs with real writers that are late, die, or are closed before their end."""

import gzip
import logging
import os
import signal
import subprocess
import sys
import threading

import pytest

from conftest import ROOT
from packed import Feeder
from processes import wait_for
from tandem.errors import TandemError, UserError
from tandem.records import pipes

#: Writes its argument and then waits, with the FIFO open.
HOLDS = "import sys, time; f = open(sys.argv[1], 'wb', 0); f.write(b'sixteen bytes at least'); time.sleep(60)"


@pytest.fixture
def stop():
    return threading.Event()


@pytest.fixture
def channel(tmp_path):
    return tmp_path / "training"


def read(channel, number, stop, **options):
    with pipes.open_pipe(channel, number, stop, **options) as stream:
        return stream.read()


def test_each_pass_has_its_own_fifo(channel, stop):
    """One larger than a FIFO's buffer, and an empty one: the writer decides where the end is."""
    passes = [os.urandom(3_000_000), b"", b"x"]
    with Feeder(channel, passes) as feeder:
        assert [read(channel, number, stop) for number in range(3)] == passes
        assert feeder.finish() == 3


def test_a_fifo_that_is_late_is_waited_for(channel, stop, caplog, monkeypatch):
    """The wait is logged."""
    monkeypatch.setattr(pipes, "LOG_INTERVAL", 0.0)
    caplog.set_level(logging.INFO, "tandem")
    found = []
    reader = threading.Thread(target=lambda: found.append(read(channel, 0, stop)))
    reader.start()
    wait_for(lambda: "training_0 to appear" in caplog.text, "the first line")
    with Feeder(channel, [b"late"]):
        reader.join(30)
    assert found == [b"late"]


def test_a_writer_that_is_late_is_waited_for(channel, stop, caplog, monkeypatch):
    """A FIFO without its writer is not an empty one."""
    monkeypatch.setattr(pipes, "LOG_INTERVAL", 0.0)
    caplog.set_level(logging.INFO, "tandem")
    path = channel.with_name("training_0")
    os.mkfifo(path)
    found = []
    reader = threading.Thread(target=lambda: found.append(read(channel, 0, stop)))
    reader.start()
    wait_for(lambda: "waiting for data in" in caplog.text, "the first line")
    path.write_bytes(b"late")
    reader.join(30)
    assert found == [b"late"]


@pytest.mark.parametrize("there", [True, False])
def test_a_wait_ends(channel, stop, there):
    if there:
        os.mkfifo(channel.with_name("training_0"))
    what = "data in" if there else "the FIFO"
    with pytest.raises(TandemError, match=f"waited 0 s in vain for {what} .*training_0"):
        read(channel, 0, stop, timeout=0.2)


@pytest.mark.parametrize("there", [True, False])
def test_a_stop_ends_a_wait(channel, stop, there):
    if there:
        os.mkfifo(channel.with_name("training_0"))
    ended = []

    def wait():
        with pytest.raises(pipes.PipeStopped):
            read(channel, 0, stop)
        ended.append(True)

    reader = threading.Thread(target=wait)
    reader.start()
    stop.set()
    reader.join(30)
    assert ended


def test_a_stop_ends_a_wait_for_a_silent_writer(channel, stop):
    path = channel.with_name("training_0")
    os.mkfifo(path)
    with subprocess.Popen([sys.executable, "-S", "-c", HOLDS, path]) as writer:
        with pipes.open_pipe(channel, 0, stop) as stream:
            assert stream.read(22) == b"sixteen bytes at least"
            stop.set()
            with pytest.raises(pipes.PipeStopped):
                stream.read(1)
        writer.kill()


def test_a_writer_that_dies_ends_the_pass(channel, stop):
    """Its data is there; the framing shows whether a record is cut off."""
    path = channel.with_name("training_0")
    os.mkfifo(path)
    with (
        subprocess.Popen([sys.executable, "-S", "-c", HOLDS, path]) as writer,
        pipes.open_pipe(channel, 0, stop) as stream,
    ):
        assert stream.read(22) == b"sixteen bytes at least"
        writer.kill()
        assert stream.read() == b""


def test_a_pass_may_be_closed_before_its_end(channel, stop):
    """The writer gets a broken pipe and continues with the next FIFO."""
    with Feeder(channel, [os.urandom(3_000_000), b"the next"]) as feeder:
        with pipes.open_pipe(channel, 0, stop) as stream:
            assert len(stream.read(10)) == 10
        assert read(channel, 1, stop) == b"the next"
        assert feeder.finish() == 2


def test_gzip_is_decompressed(channel, stop):
    """Several objects, each compressed separately."""
    with Feeder(channel, [gzip.compress(b"one") + gzip.compress(b"two")]):
        assert read(channel, 0, stop) == b"onetwo"


def test_the_format_of_a_stream_is_recognized_with_a_slow_writer(channel, stop):
    """The first read has enough bytes, even if they arrive in pieces."""
    path = channel.with_name("training_0")
    os.mkfifo(path)
    pieces = gzip.compress(b"0123456789abcdef")

    def write():
        with path.open("wb", 0) as file:
            for byte in pieces:
                file.write(bytes([byte]))

    writer = threading.Thread(target=write)
    writer.start()
    with pipes.open_pipe(channel, 0, stop) as stream:
        assert stream.peek(16)[:16] == b"0123456789abcdef"
    writer.join(30)


def test_a_regular_file_is_rejected(channel, stop):
    channel.with_name("training_0").write_bytes(b"data")
    with pytest.raises(UserError, match="training_0 is not a FIFO.*set it to File or FastFile"):
        read(channel, 0, stop)


def test_lines_of_a_csv_channel(channel, stop):
    with Feeder(channel, ["1,ä\r\n2,b\n3,c".encode(), b"1\n\xff\n"]):
        assert list(pipes.read_lines(channel, 0, stop)) == ["1,ä", "2,b", "3,c"]
        with pytest.raises(UserError, match="training_1: line 2 is not UTF-8"):
            list(pipes.read_lines(channel, 1, stop))


def test_a_signal_reaches_a_process_that_waits_for_its_writer(tmp_path):
    """A blocking open would delay all handlers of Python until a writer comes."""
    os.mkfifo(tmp_path / "training_0")
    program = (
        "import pathlib, signal, sys, threading\n"
        "from tandem.records import pipes\n"
        "stop = threading.Event()\n"
        "signal.signal(signal.SIGTERM, lambda *_: stop.set())\n"
        "print('waits', flush=True)\n"
        "try: pipes.open_pipe(pathlib.Path(sys.argv[1]), 0, stop)\n"
        "except pipes.PipeStopped: sys.exit(7)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "training"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "program")},
        stdout=subprocess.PIPE,
    ) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 7
