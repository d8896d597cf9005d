"""The tutorials' `serve`: nginx in front of gunicorn with a synchronous worker per core."""

from __future__ import annotations

import os
import shutil
import signal
import string
import subprocess
import sys
from pathlib import Path
from types import FrameType

HERE = Path(__file__).resolve().parent
TIMEOUT = 60


def main() -> None:
    """Serve on port $PORT until SIGTERM or until one of the two ends, with files in the folder $RUN_DIR."""
    run, port = Path(os.environ["RUN_DIR"]), os.environ["PORT"]
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    bind = f"unix:{run}/gunicorn.sock" if nginx else f"127.0.0.1:{port}"
    workers = str(len(os.sched_getaffinity(0)))
    gunicorn = f"gunicorn --timeout {TIMEOUT} -k sync -b {bind} -w {workers} predictor:app".split()
    started = [subprocess.Popen([sys.executable, "-m", *gunicorn], cwd=HERE)]
    if nginx:
        text = string.Template((HERE / "nginx.conf").read_text())
        (run / "nginx.conf").write_text(text.substitute(run=run, port=port, mark="$"))
        started.append(subprocess.Popen([nginx, "-p", run, "-c", run / "nginx.conf"]))

    def stop(_number: int, _frame: FrameType | None) -> None:
        for process in started:
            process.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    os.wait()
    stop(signal.SIGTERM, None)
    for process in started:
        process.wait(TIMEOUT)


if __name__ == "__main__":
    main()
