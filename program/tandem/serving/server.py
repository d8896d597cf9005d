"""Serve: gunicorn with one process a model copy, planned from what the machine has."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
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
from tandem.serving.app import create_app
from tandem.serving.fleet import Fleet, Plan, make_plan
from tandem.serving.master import Master
from tandem.serving.monitoring import SHARED_FOLDER, Monitor, forget_process
from tandem.serving.proxy import Proxy, start_proxy
from tandem.serving.service import Limits, ScoringService
from tandem.serving.worker import ReadAheadWorker
from tandem.settings import Settings, render_settings

logger = logging.getLogger(__name__)

#: Seconds between SIGTERM and the end, for what is in flight; SageMaker kills after 30.
DRAIN_SECONDS = 25
#: Exit status of a serving process that died after it was ready: gunicorn starts another one.
DIED = 1


class _Log(Logger):  # type: ignore[misc]
    """Gunicorn's log, whose lines go where all others go."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn, configured in code; it imports no framework before it forks."""

    def __init__(
        self, settings: Settings, decision: Decision, plan: Plan, scratch: str, proxy: Proxy | None
    ) -> None:
        self._settings = settings
        self._decision = decision
        self._plan = plan
        self._scratch = scratch
        self._proxy = proxy
        self._fleet = Fleet(plan.workers)
        self._slot = 0
        self._service: ScoringService | None = None
        self._worker: Any = None
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn's options; none comes from a file or the command line."""
        options: dict[str, Any] = {
            "bind": f"unix:{self._proxy.socket}" if self._proxy else f"0.0.0.0:{self._settings.port}",
            "workers": self._plan.workers,
            "worker_class": ReadAheadWorker,
            "threads": self._plan.threads,
            "worker_connections": 1000 + self._plan.threads,  # gunicorn keeps the difference alive
            "backlog": 2048,
            "timeout": 60,
            "graceful_timeout": DRAIN_SECONDS,
            "keepalive": 75,  # longer than the platform's proxy, which then never meets a closed connection
            "control_socket_disable": True,
            "worker_tmp_dir": self._scratch,
            "logger_class": _Log,
            "pre_fork": lambda _server, worker: setattr(self, "_slot", self._fleet.take(worker.age)),
            "post_fork": self._enter,
            "child_exit": self._bury,
            "worker_exit": lambda _server, _worker: self._service.stop() if self._service else None,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def run(self) -> None:
        """Serve until a signal; raises `SystemExit` with the exit status."""
        Master(self, self._proxy.process if self._proxy else None).run()

    def load(self) -> Any:
        """Build the app in a serving process, after the fork; the model begins to load."""
        try:
            algorithm = _find_algorithm(self._settings)
            monitor = Monitor(self._decision.device, self._settings.emf_seconds)
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
            service, worker = self._service, self._worker
            monitor.count_queued = lambda: service.count_queued() + worker.count_waiting()
        except (Exception, SystemExit) as error:
            logger.error("%s", error, exc_info=None if isinstance(error, TandemError) else error)  # noqa: TRY400
            self._end_process(error)
            raise
        self._service.start()
        return create_app(self._service, self._settings, monitor, lambda: self._fleet.is_complete)

    def is_open(self) -> bool:
        """Whether this process may take connections.

        One that follows a dead one leaves them to the others until its model is loaded.
        """
        alone = self._plan.workers == 1 or not self._fleet.is_complete
        return alone or (self._service is not None and self._service.loaded)

    def count_lanes(self) -> int:
        """Count the requests that this process should handle at once; 0: any number, or not known yet."""
        return self._service.lanes if self._service is not None else 0

    @property
    def patience(self) -> float:
        """Seconds that a request may wait for its answer."""
        return self._settings.timeout

    def _enter(self, _master: Any, worker: Any) -> None:
        self._worker = worker
        os.environ.update(self._environment())

    def _bury(self, _master: Any, worker: Any) -> None:
        """See to what a process leaves that ended; end the container where one after the other does."""
        self._fleet.free(worker.age)
        forget_process(worker.pid)
        if self._fleet.is_hopeless:
            raise HaltServer(
                "process after process ended before its model was loaded; is there memory enough for it?",
                Arbiter.WORKER_BOOT_ERROR,
            )

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
        """End this process: one that was never ready ends the container with it, another one is replaced."""
        ready = self._service is not None and self._service.loaded
        logging.shutdown()
        os._exit(DIED if ready else Arbiter.WORKER_BOOT_ERROR)


def _find_algorithm(settings: Settings) -> Algorithm:
    """Load the user's own program if there is one, else the algorithm that ALGORITHM names."""
    code = settings.base_dir / "model" / "code"
    folders = [Path(settings.submit_directory)] if settings.submit_directory else []
    program = find_program(settings.program, [*folders, code, settings.base_dir / "code"])
    if program is None and (code / "inference.py").is_file():
        program = code / "inference.py"
    return load_algorithm(settings.algorithm, program)


def _find_scratch() -> str:
    """Give a folder for a few small files that go with the server; in memory, if one is."""
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
def _make_folder(place: str) -> Iterator[Path]:
    """Make a folder in `place` that goes with this process; those forked from it leave it alone."""
    owner = os.getpid()
    folder = Path(tempfile.mkdtemp(prefix="tandem-", dir=place))
    try:
        yield folder
    finally:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)


def main(arguments: Sequence[str], choose_device: Callable[[str, str | None], Decision]) -> int:
    """Serve until SIGTERM, then raise `SystemExit` with gunicorn's status; give 1 where it cannot start.

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
        logger.error("%s", error)  # noqa: TRY400  # the sentence is the whole story
    return 1


def _serve(settings: Settings, decision: Decision, scratch: str) -> None:
    logger.info("device: %s: %s", decision.device, decision.reason)
    model_bytes = sum(
        path.stat().st_size for path in (settings.base_dir / "model").rglob("*") if path.is_file()
    )
    plan = make_plan(find_resources(), len(decision.gpus), model_bytes, settings.threads, settings.workers)
    logger.info("plan: %s; port %d", plan, settings.port)
    with contextlib.ExitStack() as stack:
        if plan.workers > 1:
            os.environ[SHARED_FOLDER] = str(stack.enter_context(_make_folder(scratch)))
        proxy = None
        if settings.nginx:
            # Not in memory: long bodies wait in files there.
            folder = stack.enter_context(_make_folder(tempfile.gettempdir()))
            proxy = start_proxy(folder, settings.port, settings.max_payload_mb, settings.timeout)
        Server(settings, decision, plan, scratch, proxy).run()
