"""Fixtures for all tests: a small /opt/ml, services in process, and the real servers as processes."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import uvicorn

from processes import HttpClient, LiveServer, find_free_port, wait_for
from tandem.algorithm import Context, load_algorithm
from tandem.runtime.devices import Decision
from tandem.serving.app import App
from tandem.serving.http import Worker
from tandem.serving.monitoring import Monitor
from tandem.serving.service import Limits, ScoringService
from tandem.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
CPU = Decision(device="cpu", reason="a test")


@pytest.fixture(autouse=True, scope="session")
def _interruptible():
    """Make Ctrl-C reach the processes that tests start, even if a shell started pytest in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _process():
    """Restore the environment variables, the current folder and the signal handlers after each test."""
    before, folder = dict(os.environ), Path.cwd()
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield
    os.environ.clear()
    os.environ.update(before)
    os.chdir(folder)
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler and handler is not None:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def make_once(tmp_path_factory):
    """`make_once("sample data", fill)` calls `fill(folder)` once per run and returns the folder.

    All workers of pytest-xdist share it, so tests must not change what is in it.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # the workers' folders are below that of the run

    def make(name, fill):
        folder = root / f"shared-{name}"
        with (root / f"shared-{name}.lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.seek(0)
            if not lock.read():
                shutil.rmtree(folder, ignore_errors=True)  # a worker that failed may have left part of it
                folder.mkdir()
                fill(folder)
                lock.write("made")
        return folder

    return make


@pytest.fixture(scope="session")
def digits(make_once):
    """The root of a copy of local_test's sample data, the handwritten digits."""

    def fill(folder):
        command = [sys.executable, ROOT / "local_test" / "digits.py", folder]
        subprocess.run(command, check=True, timeout=120, capture_output=True)

    return make_once("sample data", fill)


@pytest.fixture
def opt_ml(tmp_path):
    """`opt_ml(hyperparameters={…}, channels=["training"])` makes a small /opt/ml and returns its root."""

    def make(hyperparameters=None, channels=("training",), **config):
        root = tmp_path / "ml"
        folder = root / "input" / "config"
        folder.mkdir(parents=True)
        (root / "model").mkdir()
        config = {
            "hyperparameters": hyperparameters or {},
            "inputdataconfig": {name: {"TrainingInputMode": "File"} for name in channels},
            "resourceconfig": {"current_host": "algo-1", "hosts": ["algo-1"]},
            **config,
        }
        for name, content in config.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        for name in channels:
            (root / "input" / "data" / name).mkdir(parents=True)
        return root

    return make


@pytest.fixture
def service(tmp_path):
    """`service("echo")` starts a scoring service for a fixture algorithm and stops it after the test."""
    services = []

    def make(name, on_failure=lambda error: None, **limits):
        algorithm = load_algorithm(f"fixtures.{name}")
        context = Context(model_dir=tmp_path, decision=CPU, backend="auto", cores=1)
        limits = {"batch_rows": 64, "timeout": 20, **limits}
        made = ScoringService(
            algorithm,
            context,
            Limits(**limits),
            on_ready=lambda: None,
            on_failure=on_failure,
            observe=lambda what, value: None,
        )
        services.append(made)
        made.start()
        return made

    yield make
    for made in services:
        made.stop()


@pytest.fixture
def client(service, settings):
    """`client("echo")` serves the app with a fixture algorithm in this process; it returns an HTTP client."""
    with contextlib.ExitStack() as stack:

        def make(name, *, ready=True, **changed):
            app = App(
                service(name),
                dataclasses.replace(settings, **changed),
                Monitor("cpu"),
                is_complete=lambda: True,
                max_body_bytes=1 << 28,
            )
            made = HttpClient(stack.enter_context(serve_in_thread(app)))
            if ready:
                wait_for(lambda: made.get("/ping").status_code == 200, f"{name} to load")
            return made

        yield make


@contextlib.contextmanager
def serve_in_thread(app):
    """Serve an ASGI app with the settings of our worker; yield the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, **Worker.CONFIG_KWARGS))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(30)


@pytest.fixture
def live_server(tmp_path):
    """`live_server("echo", BACKEND="openvino")` runs the real `serve`; after the test it must exit with 0."""
    servers = []

    def start(name, *, base_dir=tmp_path, ready=True, executable=ROOT / "program" / "serve", **env):
        port = find_free_port()
        log_path = tmp_path / f"serve-{port}.log"
        algorithm = name if "." in name else f"fixtures.{name}"
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT / 'program'}",
            "ALGORITHM": algorithm,
            "SAGEMAKER_BASE_DIR": str(base_dir),
            "SAGEMAKER_BIND_TO_PORT": str(port),
            "SAGEMAKER_MODEL_SERVER_WORKERS": "1",
            **env,
        }
        with log_path.open("wb") as log:
            process = subprocess.Popen([sys.executable, executable], env=environment, stdout=log, stderr=log)
        server = LiveServer(process, port, log_path)
        servers.append(server)
        if ready:
            server.wait_until(200)
        return server

    yield start
    for server in servers:
        if server.process.poll() is None:
            assert server.stop() == 0, server.log


@pytest.fixture
def run_train():
    """`run_train(root, "echo")` runs the real `train` and returns the finished process."""

    def run(base_dir, name, *arguments, seconds=120, **env):
        return subprocess.run(
            [sys.executable, ROOT / "program" / "train", *arguments],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT / "tests"),
                "ALGORITHM": name if "." in name else f"fixtures.{name}",
                "SAGEMAKER_BASE_DIR": str(base_dir),
                **env,
            },
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    return run


@pytest.fixture
def settings():
    return Settings.load({})
