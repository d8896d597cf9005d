"""Gunicorn's master, which keeps time by a clock that nobody sets, and minds a proxy beside its processes."""

from __future__ import annotations

import queue
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

from gunicorn import sock
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

#: Seconds that processes have which are told to end at once.
QUICK_SECONDS = 2.0
#: Exit status where the proxy ended by itself.
PROXY_ENDED = 5


class Master(Arbiter):  # type: ignore[misc]  # gunicorn has no types
    """Starts and replaces serving processes, as gunicorn does; `proxy` is one that stands in front of them.

    A proxy that ends by itself ends the server. On the way out it ends first, when all that it took is
    answered, then the processes, both within `graceful_timeout`.
    """

    def __init__(self, app: Any, proxy: subprocess.Popen[bytes] | None = None) -> None:
        super().__init__(app)
        self._proxy = proxy
        self._stopping = False
        self._deadline = 0.0

    def reap_workers(self) -> None:
        """See who ended; raise `HaltServer`, once, where the server cannot go on."""
        try:
            super().reap_workers()
        except HaltServer:
            if not self._stopping:
                raise
        if self._proxy is not None and not self._stopping and self._proxy.poll() is not None:
            raise HaltServer("the proxy ended", PROXY_ENDED)

    def stop(self, graceful: bool = True) -> None:  # noqa: FBT001, FBT002  # gunicorn's signature
        """End the proxy and the processes, by force after `graceful_timeout` seconds or another signal."""
        self._stopping = True
        self._deadline = time.monotonic() + (self.cfg.graceful_timeout if graceful else QUICK_SECONDS)
        if self._proxy is not None:
            proxy = self._proxy
            proxy.send_signal(signal.SIGQUIT if graceful else signal.SIGTERM)
            self._wait_while(lambda: proxy.poll() is None)
            proxy.kill()
        sock.close_sockets(self.LISTENERS)
        self.LISTENERS: list[Any] = []
        self.kill_workers(signal.SIGTERM if graceful else signal.SIGQUIT)
        self._wait_while(lambda: bool(self.WORKERS))
        self.kill_workers(signal.SIGKILL)
        self.reap_workers()

    def _wait_while(self, busy: Callable[[], bool]) -> None:
        while busy() and time.monotonic() < self._deadline:
            try:
                number = self.SIG_QUEUE.get(timeout=0.1)
            except queue.Empty:
                number = None
            if number in {signal.SIGINT, signal.SIGQUIT}:
                self._deadline = min(self._deadline, time.monotonic() + QUICK_SECONDS)
                self.kill_workers(signal.SIGQUIT)
            self.reap_workers()
