#!/usr/bin/env python3
"""Shows all of it on this machine: sample data, train, serve, every held-out digit asked, one table.

Ends with 0 if the model said at least 97 of 100 digits right and the server stopped cleanly.
"""

from __future__ import annotations

import argparse
import http.client
import io
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import digits

HERE = Path(__file__).resolve().parent
WANTED_ACCURACY = 0.97
CALLERS = 4
TRAIN_SECONDS = 1800
START_SECONDS = 120
ANSWER_SECONDS = 60
STOP_SECONDS = 30
LOG_LINES = 15
ROWS_SHOWN = 12
PICTURES_SHOWN = 3
SHADES = " ░▒▓█"

Popen = subprocess.Popen[bytes]


class DemoError(Exception):
    """The demo cannot go on; the message says why in a sentence."""


class Answer(NamedTuple):
    """What the server said of one picture, beside what it is."""

    path: Path
    said: str
    probability: float

    @property
    def true(self) -> str:
        """The label: the folder that the picture lies in."""
        return self.path.parent.name

    @property
    def right(self) -> bool:
        """Whether the server said what it is."""
        return self.said == self.true


@contextmanager
def started(script: Path, env: Mapping[str, str], log: Path | None = None) -> Iterator[Popen]:
    """Run a script that is gone, with all it started, when the block is left.

    It has a session of its own, so that a Ctrl-C reaches the demo alone, which then ends it in order.
    """
    with log.open("wb") if log else nullcontext() as output:
        errors = output and subprocess.STDOUT
        process = Popen([script], env=env, stdout=output, stderr=errors, start_new_session=True)
    try:
        yield process
    finally:
        stop(process)


def stop(process: Popen) -> int:
    """Ask a process to end and give its exit code; kill what is left of its session after that."""
    try:
        if process.poll() is None:
            process.terminate()
            process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode


def train(env: Mapping[str, str]) -> None:
    """Train to the end, with the log on the terminal; raise `DemoError` if that fails."""
    with started(HERE / "train.sh", env) as process:
        try:
            code = process.wait(TRAIN_SECONDS)
        except subprocess.TimeoutExpired:
            raise DemoError(f"train had not ended after {TRAIN_SECONDS} seconds.") from None
    if code:
        raise DemoError(f"train ended with exit code {code}; the reason stands above.")


def find_free_port() -> int:
    """Give a port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until_healthy(process: Popen, port: int, log: Path) -> None:
    """Return when `/ping` answers 200; raise `DemoError` with the log's end if it never will."""
    deadline = monotonic() + START_SECONDS
    while not answers_ping(port):
        try:
            reason = f"serve ended with exit code {process.wait(0.05)}"
        except subprocess.TimeoutExpired:
            if monotonic() < deadline:
                continue
            reason = f"/ping was not 200 after {START_SECONDS} seconds"
        tail = "\n".join(read_log(log).splitlines()[-LOG_LINES:])
        raise DemoError(f"{reason}; the end of {log}:\n{tail}")


def answers_ping(port: int) -> bool:
    """Tell whether the server says that it is healthy."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def read_log(log: Path) -> str:
    """Give what the server has logged so far."""
    return log.read_text(encoding="utf-8", errors="replace")


def ask(port: int, paths: Sequence[Path]) -> list[Answer]:
    """Send pictures one after another over one connection; raise `DemoError` if one is refused."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    answers = []
    try:
        for path in paths:
            connection.request("POST", "/invocations", path.read_bytes(), {"Content-Type": "image/png"})
            response = connection.getresponse()
            body = response.read()
            if response.status != http.HTTPStatus.OK:
                raise DemoError(f"the server answered {path} with {response.status}: {body.decode()}")
            prediction = json.loads(body)["predictions"][0]
            answers.append(Answer(path, str(prediction["label"]), float(prediction["probability"])))
    except (OSError, http.client.HTTPException) as error:
        raise DemoError(f"the server did not answer {path}: {type(error).__name__} {error}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise DemoError(f"the answer to {path} has no label and probability: {body.decode()}") from error
    finally:
        connection.close()
    return answers


def ask_all(port: int, paths: Sequence[Path]) -> list[Answer]:
    """Send pictures from several callers at once; the answers come in the order of `paths`."""
    with ThreadPoolExecutor(CALLERS) as pool:
        parts = pool.map(lambda first: ask(port, paths[first::CALLERS]), range(CALLERS))
        return sorted((answer for part in parts for answer in part), key=lambda answer: answer.path)


def draw(answers: Sequence[Answer]) -> Iterator[str]:
    """Give the lines of some pictures side by side, with what they were taken for below."""
    pictures = [digits.decode_png(answer.path.read_bytes()) for answer in answers]
    for rows in zip(*pictures, strict=True):
        yield "  ".join("".join(SHADES[(grey * 4 + 127) // 255] * 2 for grey in row) for row in rows)
    yield "  ".join(f"said {answer.said}, is {answer.true}".center(16) for answer in answers)


def report(answers: Sequence[Answer], seconds: Mapping[str, float], log: Path) -> float:
    """Print the table and give the accuracy over all answers."""
    print(f"\n  {'picture':<18}{'said':>6}{'probability':>13}{'is':>4}")
    for answer in (shown := answers[:: max(1, len(answers) // ROWS_SHOWN)][:ROWS_SHOWN]):
        verdict = "right" if answer.right else "WRONG"
        print(f"  {answer.true}/{answer.path.name:<16}{answer.said:>6}", end="")
        print(f"{answer.probability:>13.4f}{answer.true:>4}  {verdict}")
    wrong = [answer for answer in answers if not answer.right]
    print(f"\n  {'Misread:' if wrong else 'None was misread; three of them:'}\n")
    for line in draw((wrong or shown[:: ROWS_SHOWN // PICTURES_SHOWN])[:PICTURES_SHOWN]):
        print(f"    {line}")
    right = len(answers) - len(wrong)
    print(f"\n  accuracy  {right / len(answers):.3f}: {right} right of {len(answers)} it was not trained on")
    if backend := re.search(r"backend (\w+: .*)", read_log(log)):  # each process says it
        print(f"  backend   {backend[1]}")
    print("  seconds   " + "   ".join(f"{stage} {taken:.1f}" for stage, taken in seconds.items()), flush=True)
    return right / len(answers)


def demonstrate(test_dir: Path) -> None:
    """Go through all stages; raise `DemoError` where one fails or the model is not good enough."""
    port = find_free_port()
    env = {**os.environ, "TEST_DIR": str(test_dir), "PORT": str(port)}
    log = test_dir / "output" / "serve.log"
    times = [monotonic()]
    try:
        digits.write_digits(test_dir)
    except (ImportError, OSError) as error:
        raise DemoError(f"the sample data could not be written: {error}.") from error
    times.append(monotonic())
    train(env)
    times.append(monotonic())
    with started(HERE / "serve.sh", env, log) as server:
        wait_until_healthy(server, port, log)
        times.append(monotonic())
        answers = ask_all(port, sorted(test_dir.glob(f"{digits.HELD_OUT}/*/digit-*.png")))
        times.append(monotonic())
        code = stop(server)
    stages = ("sample data", "train", "start", f"predict {len(answers)}")
    spans = (end - begin for begin, end in itertools.pairwise(times))
    accuracy = report(answers, dict(zip(stages, spans, strict=True)), log)
    if code:
        raise DemoError(f"serve ended with exit code {code} on SIGTERM, expected 0; its log is {log}.")
    if accuracy < WANTED_ACCURACY:
        raise DemoError(f"the accuracy is {accuracy:.3f}, expected at least {WANTED_ACCURACY}.")


def main() -> str | None:
    """Run the command line; give a sentence if the demo failed."""
    argparse.ArgumentParser(
        description=__doc__,
        epilog="TEST_DIR: the miniature /opt/ml to use (default: test_dir beside this script).",
    ).parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without the shades still gets the table
    try:
        demonstrate(Path(os.environ.get("TEST_DIR") or HERE / "test_dir").resolve())
    except DemoError as error:
        return f"demo: {error}"
    except KeyboardInterrupt:
        return "demo: stopped before its end."
    return None


if __name__ == "__main__":
    sys.exit(main())
