"""What goes to standard error: plain lines, or an object a line for whoever collects logs."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TextIO

from batchrank.errors import escape

log = logging.getLogger("batchrank")


def log_to_stderr(log_format: str, level: str) -> None:
    """Have everything from `level` on written, as "text" or as "json"."""
    log.handlers = [_to_stderr(_JsonLines() if log_format == "json" else _PlainLines())]
    log.propagate = False
    log.setLevel(level.upper())


@contextmanager
def warnings_to_stderr() -> Iterator[None]:
    """Show warnings as the command does, for a program that has arranged no logging of its own."""
    handler = _to_stderr(_PlainLines())
    if log.hasHandlers():
        yield
        return
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _to_stderr(form: logging.Formatter) -> logging.Handler:
    handler = _StandardError()
    handler.setFormatter(form)
    return handler


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to standard error as it is now: a bar that is drawn puts lines above itself."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        raise AttributeError("it is always standard error")


class _PlainLines(logging.Formatter):
    """The message after the program's name; one line, whatever it quotes."""

    def format(self, record: logging.LogRecord) -> str:
        return f"batchrank: {escape(record.getMessage())}"


class _JsonLines(logging.Formatter):
    """One object a line: time (UTC), level, logger, message, and a record's `figures`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": escape(record.getMessage()),
            **getattr(record, "figures", {}),
        }
        return json.dumps(line, ensure_ascii=False)
