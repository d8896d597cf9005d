"""One stream of plain lines, as CloudWatch and metric regexes want it."""

from __future__ import annotations

import io
import logging
import sys


class _LineFormatter(logging.Formatter):
    """Leave information as it is; begin what needs attention with its level."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return line if record.levelno <= logging.INFO else f"{record.levelname}: {line}"


def configure_logging(level: int) -> None:
    """Send the log to standard output, a line a record; the platform adds the time."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_LineFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
