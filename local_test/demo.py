#!/usr/bin/env python3
"""Run everything on this computer: write sample data, train, serve, classify the held-out digits.

The exit status is 0 if at least 97 % of the digits are classified correctly and the server stops cleanly.
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
MIN_ACCURACY = 0.97
CALLERS = 4
TRAIN_SECONDS = 1800
START_SECONDS = 120
ANSWER_SECONDS = 60
STOP_SECONDS = 30
LOG_LINES = 15
ROWS_SHOWN = 12
IMAGES_DRAWN = 3
SHADES = " ░▒▓█"

Popen = subprocess.Popen[bytes]


class DemoError(Exception):
    """Raised if the demo cannot continue; the message gives the reason in one sentence."""


class Prediction(NamedTuple):
    """The server's prediction for one image."""

    path: Path
    predicted: str
    probability: float

    @property
    def label(self) -> str:
        """The true label: the name of the image's folder."""
        return self.path.parent.name

    @property
    def correct(self) -> bool:
        """Whether the predicted label is the true one."""
        return self.predicted == self.label


@contextmanager
def started(script: Path, env: Mapping[str, str], log: Path | None = None) -> Iterator[Popen]:
    """Run a script; at the end of the block, stop it and every process that it started.

    The script has a session of its own, so that Ctrl-C reaches only the demo, which then stops the script.
    """
    with log.open("wb") if log else nullcontext() as output:
        errors = output and subprocess.STDOUT
        process = Popen([script], env=env, stdout=output, stderr=errors, start_new_session=True)
    try:
        yield process
    finally:
        stop(process)


def stop(process: Popen) -> int:
    """Terminate a process, kill what is left of its session, and return the exit code."""
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
    """Train, with the log on the terminal; raise `DemoError` if training fails."""
    with started(HERE / "train.sh", env) as process:
        try:
            code = process.wait(TRAIN_SECONDS)
        except subprocess.TimeoutExpired:
            raise DemoError(f"train did not end within {TRAIN_SECONDS} seconds.") from None
    if code:
        raise DemoError(f"train ended with exit code {code}; see its output above.")


def find_free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until_healthy(process: Popen, port: int, log: Path) -> None:
    """Wait until `/ping` returns 200; raise `DemoError` with the end of the log if it does not."""
    deadline = monotonic() + START_SECONDS
    while not is_healthy(port):
        try:
            reason = f"serve ended with exit code {process.wait(0.05)}"
        except subprocess.TimeoutExpired:
            if monotonic() < deadline:
                continue
            reason = f"/ping did not return 200 within {START_SECONDS} seconds"
        tail = "\n".join(read_log(log).splitlines()[-LOG_LINES:])
        raise DemoError(f"{reason}; the end of {log}:\n{tail}")


def is_healthy(port: int) -> bool:
    """Return whether `/ping` returns 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def read_log(log: Path) -> str:
    """Return what the server has logged so far."""
    return log.read_text(encoding="utf-8", errors="replace")


def predict(port: int, paths: Sequence[Path]) -> list[Prediction]:
    """Send images one after another over one connection; raise `DemoError` if one is rejected."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    predictions = []
    try:
        for path in paths:
            connection.request("POST", "/invocations", path.read_bytes(), {"Content-Type": "image/png"})
            response = connection.getresponse()
            body = response.read()
            if response.status != http.HTTPStatus.OK:
                raise DemoError(f"the server answered {path} with status {response.status}: {body.decode()}")
            best = json.loads(body)["predictions"][0]
            predictions.append(Prediction(path, str(best["label"]), float(best["probability"])))
    except (OSError, http.client.HTTPException) as error:
        raise DemoError(f"the server did not answer {path}: {type(error).__name__} {error}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise DemoError(f"the response to {path} has no label and probability: {body.decode()}") from error
    finally:
        connection.close()
    return predictions


def predict_all(port: int, paths: Sequence[Path]) -> list[Prediction]:
    """Send images over several connections at the same time; return the predictions, sorted by path."""
    with ThreadPoolExecutor(CALLERS) as pool:
        parts = pool.map(lambda first: predict(port, paths[first::CALLERS]), range(CALLERS))
        return sorted((prediction for part in parts for prediction in part), key=lambda one: one.path)


def draw(predictions: Sequence[Prediction]) -> Iterator[str]:
    """Yield the lines of some images side by side, then a line with their predicted and true labels."""
    images = [digits.decode_png(prediction.path.read_bytes()) for prediction in predictions]
    for rows in zip(*images, strict=True):
        yield "  ".join("".join(SHADES[(grey * 4 + 127) // 255] * 2 for grey in row) for row in rows)
    yield "  ".join(f"{one.predicted} (label {one.label})".center(16) for one in predictions)


def report(predictions: Sequence[Prediction], seconds: Mapping[str, float], log: Path) -> float:
    """Print the table and return the accuracy over all predictions."""
    count = len(predictions)
    print(f"\n  {'image':<18}{'predicted':>10}{'probability':>13}{'label':>7}")
    for one in (shown := predictions[:: max(1, count // ROWS_SHOWN)][:ROWS_SHOWN]):
        verdict = "correct" if one.correct else "WRONG"
        print(f"  {one.label}/{one.path.name:<16}{one.predicted:>10}", end="")
        print(f"{one.probability:>13.4f}{one.label:>7}  {verdict}")
    wrong = [one for one in predictions if not one.correct]
    print(f"\n  {'Misclassified:' if wrong else 'None is misclassified; three of the images:'}\n")
    for line in draw((wrong or shown[:: ROWS_SHOWN // IMAGES_DRAWN])[:IMAGES_DRAWN]):
        print(f"    {line}")
    accuracy = (count - len(wrong)) / count
    print(f"\n  accuracy  {accuracy:.3f}: {count - len(wrong)} of {count} held-out images are correct")
    if backend := re.search(r"backend (\w+: .*)", read_log(log)):  # each process logs it; one is enough
        print(f"  backend   {backend[1]}")
    print("  seconds   " + "   ".join(f"{stage} {taken:.1f}" for stage, taken in seconds.items()), flush=True)
    return accuracy


def demonstrate(test_dir: Path) -> None:
    """Run all stages; raise `DemoError` if one fails or if the accuracy is too low."""
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
        predictions = predict_all(port, sorted(test_dir.glob(f"{digits.HELD_OUT}/*/digit-*.png")))
        times.append(monotonic())
        code = stop(server)
    stages = ("sample data", "train", "start", f"predict {len(predictions)}")
    spans = (end - begin for begin, end in itertools.pairwise(times))
    accuracy = report(predictions, dict(zip(stages, spans, strict=True)), log)
    if code:
        raise DemoError(f"serve ended with exit code {code} after SIGTERM, expected 0; see its log, {log}.")
    if accuracy < MIN_ACCURACY:
        raise DemoError(f"the accuracy is {accuracy:.3f}, expected at least {MIN_ACCURACY}.")


def main() -> str | None:
    """Run the command line; return an error message if the demo failed."""
    argparse.ArgumentParser(
        description=__doc__,
        epilog="TEST_DIR: the folder to use as /opt/ml (default: test_dir beside this script).",
    ).parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks the shades still shows the table
    try:
        demonstrate(Path(os.environ.get("TEST_DIR") or HERE / "test_dir").resolve())
    except DemoError as error:
        return f"demo: {error}"
    except KeyboardInterrupt:
        return "demo: stopped by a signal."
    return None


if __name__ == "__main__":
    sys.exit(main())
