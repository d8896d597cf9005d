"""The server: gunicorn with one process per copy of the model, as many as cores, GPUs and memory allow."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from gunicorn.glogging import Logger

from tandem.algorithm import Algorithm, Context, find_program, load_algorithm
from tandem.errors import TandemError, UserError
from tandem.logs import configure_logging
from tandem.runtime.devices import Decision
from tandem.runtime.resources import find_resources
from tandem.serving.app import App
from tandem.serving.fleet import Fleet, Plan, make_plan
from tandem.serving.http import DRAIN_SECONDS, Worker
from tandem.serving.monitoring import SHARED_FOLDER, Monitor
from tandem.serving.proxy import find_socket, serve_behind, start_proxy
from tandem.serving.service import Limits, ScoringService
from tandem.settings import Settings, render_settings

logger = logging.getLogger(__name__)

#: Open files and connections of a process, where the system allows as many.
MAX_DESCRIPTORS = 65_536
#: Seconds after SIGTERM in which connections are accepted: their requests may have been sent before it.
ACCEPT_SECONDS = 0.1
#: Exit status of a serving process that cannot go on.
DIED = 1


class _Log(Logger):  # type: ignore[misc]
    """gunicorn's logger, which passes its lines on to the root logger."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn, configured in code. It imports no framework before it forks."""

    def __init__(self, settings: Settings, decision: Decision, plan: Plan, scratch: str, bind: str) -> None:
        self._settings = settings
        self._decision = decision
        self._plan = plan
        self._scratch = scratch
        self._bind = bind
        self._fleet = Fleet(plan.workers)
        self._slot = 0
        self._ended: list[int] = []
        self._service: ScoringService | None = None
        self._worker: Any = None
        self._heartbeat: asyncio.Task[None] | None = None
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn's options; none comes from a file or the command line."""
        options: dict[str, Any] = {
            "bind": self._bind,
            "workers": self._plan.workers,
            "worker_class": Worker,
            "backlog": 2048,
            "timeout": 60,
            "graceful_timeout": DRAIN_SECONDS + 2,  # the worker itself gives up after DRAIN_SECONDS
            "keepalive": 75,  # longer than the platform's proxy, which then never meets a closed connection
            "control_socket_disable": True,
            "worker_tmp_dir": self._scratch,
            "logger_class": _Log,
            "pre_fork": self._before_fork,
            "post_fork": self._after_fork,
            "child_exit": self._on_child_exit,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> App:
        """Build the app in a serving process, after the fork; the model begins to load."""
        try:
            algorithm = _find_algorithm(self._settings)
            monitor = Monitor(self._decision.device, self._settings.emf_seconds, self._ended)
            context = Context(
                model_dir=self._settings.base_dir / "model",
                decision=self._decision,
                backend=self._settings.backend,
                cores=self._plan.cores,
                precision=self._settings.precision,
            )
            self._service = ScoringService(
                algorithm,
                context,
                self._limits(algorithm),
                on_ready=lambda: self._fleet.mark_ready(self._slot),
                on_failure=self._end_process,
                observe=monitor.observe,
            )
            app = App(
                self._service,
                self._settings,
                monitor,
                is_complete=lambda: self._fleet.is_complete,
                max_body_bytes=self._plan.body_bytes,
                startup=self._start_up,
            )
            service = self._service
            monitor.count_queued = lambda: service.count_queued() + app.count_waiting()
        except (Exception, SystemExit) as error:
            logger.error("%s", error, exc_info=None if isinstance(error, TandemError) else error)  # noqa: TRY400
            self._end_process(error)
            raise
        self._service.start()
        return app

    async def _start_up(self) -> None:
        """Return when this process may take connections.

        One that replaces another waits for its model first, as the other processes can answer meanwhile.
        """
        loop = asyncio.get_running_loop()
        stop: Any = signal.getsignal(signal.SIGTERM)  # uvicorn's, after which it accepts no connections
        loop.add_signal_handler(signal.SIGTERM, loop.call_later, ACCEPT_SECONDS, stop, signal.SIGTERM, None)
        self._heartbeat = asyncio.create_task(self._notify())
        if self._plan.workers > 1 and self._fleet.is_complete and self._service is not None:
            await asyncio.to_thread(self._service.wait)

    async def _notify(self) -> None:
        """Tell gunicorn that the loop is alive, as uvicorn does, and also after the clock was set."""
        while True:
            self._worker.notify()
            await asyncio.sleep(10)

    def _before_fork(self, _master: Any, worker: Any) -> None:
        """Take a slot for a new process; end the server where another process would not help."""
        if self._fleet.end_reason:
            raise HaltServer(self._fleet.end_reason, Arbiter.WORKER_BOOT_ERROR)
        self._slot = self._fleet.take(worker.age)

    def _after_fork(self, _master: Any, worker: Any) -> None:
        self._worker = worker
        os.environ.update(self._environment())

    def _on_child_exit(self, _master: Any, worker: Any) -> None:
        """Free what a process had."""
        self._fleet.free(worker.age)
        self._ended.append(worker.pid)

    def _limits(self, algorithm: Algorithm) -> Limits:
        return Limits(
            batch_rows=self._settings.max_batch_rows or algorithm.max_batch_rows,
            batch_wait=self._settings.batch_wait_ms / 1000,
            queue_rows=self._settings.queue_rows,
            timeout=self._settings.timeout,
            readers=self._plan.cores,
        )

    def _environment(self) -> dict[str, str]:
        gpus = self._decision.gpus
        return self._decision.environment(self._slot % len(gpus) if gpus else None)

    def _end_process(self, _error: BaseException) -> None:
        """End this process; gunicorn replaces it if its model was ready, and else ends the server."""
        if self._service is None or not self._service.loaded:
            self._fleet.mark_failed(self._slot)
        logging.shutdown()
        os._exit(DIED)


def _find_algorithm(settings: Settings) -> Algorithm:
    """Load the user's own program if there is one, else the algorithm that ALGORITHM names."""
    code = settings.base_dir / "model" / "code"
    folders = [Path(settings.submit_directory)] if settings.submit_directory else []
    program = find_program(settings.program, [*folders, code, settings.base_dir / "code"])
    if program is None and (code / "inference.py").is_file():
        program = code / "inference.py"
    return load_algorithm(settings.algorithm, program)


def _find_scratch() -> str:
    """Return a folder for a few small files, in memory if possible."""
    if os.access("/dev/shm", os.W_OK):  # noqa: S108
        return "/dev/shm"  # noqa: S108
    try:
        return tempfile.gettempdir()
    except OSError as error:
        raise UserError(
            "neither /dev/shm nor a temporary folder can be written; make one of them writable, as "
            "`docker run --tmpfs /tmp` does."
        ) from error


@contextlib.contextmanager
def _make_folder(parent: str) -> Iterator[Path]:
    """Make a temporary folder in `parent`; only this process removes it, not those forked from it."""
    owner = os.getpid()
    folder = Path(tempfile.mkdtemp(prefix="tandem-", dir=parent))
    try:
        yield folder
    finally:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)


def main(arguments: Sequence[str], choose_device: Callable[[str, str | None], Decision]) -> int:
    """Serve until SIGTERM, then raise `SystemExit` with gunicorn's status; return 1 if it cannot start.

    `choose_device(wanted, visible)` decides where the model computes without importing a framework.
    """
    parser = argparse.ArgumentParser(
        "serve",
        description="Serve the model below SAGEMAKER_BASE_DIR. Settings come from the environment:",
        epilog=render_settings(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(list(arguments))
    configure_logging(logging.INFO)
    try:
        settings = Settings.load(os.environ)
        configure_logging(settings.log_level)
        scratch = _find_scratch()
        _serve(settings, choose_device(settings.device, settings.visible_devices), scratch)
    except TandemError as error:
        logger.error("%s", error)  # noqa: TRY400  # the message says it all
    return 1


def _raise_descriptor_limit() -> None:
    """Allow as many connections as the system does: an idle one takes a descriptor and little else."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _serve(settings: Settings, decision: Decision, scratch: str) -> None:
    logger.info("device: %s: %s", decision.device, decision.reason)
    model_bytes = sum(
        path.stat().st_size for path in (settings.base_dir / "model").rglob("*") if path.is_file()
    )
    plan = make_plan(find_resources(), len(decision.gpus), model_bytes, settings.workers)
    logger.info("plan: %s; port %d", plan, settings.port)
    _raise_descriptor_limit()
    with contextlib.ExitStack() as stack:
        if plan.workers > 1:
            os.environ[SHARED_FOLDER] = str(stack.enter_context(_make_folder(scratch)))
        if not settings.nginx:
            Server(settings, decision, plan, scratch, f"0.0.0.0:{settings.port}").run()  # which exits
        # Not in memory: long bodies wait in files there.
        folder = stack.enter_context(_make_folder(tempfile.gettempdir()))
        server = Server(settings, decision, plan, scratch, f"unix:{find_socket(folder)}")
        nginx = start_proxy(folder, settings.port, settings.max_payload_mb, settings.timeout)
        serve_behind(nginx, server.run, DRAIN_SECONDS)
