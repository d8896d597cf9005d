"""Logging as plain lines on standard output, for CloudWatch and metric regexes."""

from __future__ import annotations

import io
import logging
import sys


class _LineFormatter(logging.Formatter):
    """Prefix records above INFO with their level."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return line if record.levelno <= logging.INFO else f"{record.levelname}: {line}"


def configure_logging(level: int) -> None:
    """Log to standard output, one line per record; the platform adds the time."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be valid text
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_LineFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
