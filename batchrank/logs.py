"""What goes to standard error: plain lines, or an object a line for whoever collects logs."""

import json
import logging
from datetime import UTC, datetime

log = logging.getLogger("batchrank")


def log_to_stderr(log_format: str, level: str) -> None:
    """Have everything from `level` on written, as "text" or as "json"."""
    handler = logging.StreamHandler()
    plain = logging.Formatter("batchrank: %(message)s")
    handler.setFormatter(_JsonLines() if log_format == "json" else plain)
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(level.upper())


class _JsonLines(logging.Formatter):
    """One object a line: time (UTC), level, logger, message."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        return json.dumps(line, ensure_ascii=False)
