"""A run's figures in Prometheus' text format, for node_exporter's textfile collector.

The file is replaced while the run is at work, whole at any moment. When a run last succeeded is
read from the file that is there, so that a run that fails, also before it begins, keeps it: alert
on `time() - batchrank_last_success_timestamp_seconds`.
Format: prometheus.io/docs/instrumenting/exposition_formats.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from batchrank.errors import BatchrankError, ExitCode, StorageFailed, escape
from batchrank.files.atomic import open_target
from batchrank.output.receipt import Progress, Receipt

_EVERY_SECONDS = 1.0
_MOST_BYTES = 1 << 20
"""A hundred times what a run writes."""

_LAST_UPDATE = "batchrank_last_update_timestamp_seconds"
_LAST_SUCCESS = "batchrank_last_success_timestamp_seconds"
_STALLED_SINCE = "batchrank_stalled_since_timestamp_seconds"
_STALLED_UNTIL = "batchrank_stalled_until_timestamp_seconds"
_HELP = {
    "batchrank_running": "1 while the run is at work, then 0.",
    "batchrank_exit_code": "How the latest run ended; absent while it is at work.",
    "batchrank_rows": "Rows of the input.",
    "batchrank_rows_done": "Rows that are settled, those of earlier sessions included.",
    "batchrank_rows_failed": "Rows that lack scores.",
    "batchrank_rows_partial": "Rows that lack some of their scores.",
    "batchrank_requests_total": "Requests sent, those of earlier sessions included.",
    "batchrank_requests_per_second": "Requests over the last moments.",
    "batchrank_tokens_billed_total": "Tokens that the endpoint reported.",
    "batchrank_cost_usd_total": "What these cost (local: at the hosted price).",
    "batchrank_retries_total": "Requests sent again.",
    "batchrank_throttled_total": "Answers that asked for less; absent when the run has ended.",
    "batchrank_stalled": "1 while nothing succeeds; absent when the run has ended.",
    _STALLED_SINCE: "Since when nothing succeeds, with the reason; absent while all is well.",
    _STALLED_UNTIL: "When the run gives up, with the reason; absent where it does not.",
    "batchrank_seconds_left": "Time left at the latest rate; absent where it is unknown.",
    _LAST_UPDATE: "When this file was written.",
    _LAST_SUCCESS: "When a run into this output last ended with 0; absent before the first.",
}


class Metrics:
    """The metrics of a run into `out`, or of its shard, in a file or nowhere."""

    def __init__(self, path: Path | None, out: Path | str, shard: object = None) -> None:
        self._path = path
        which = "" if shard is None else f',shard="{shard}"'
        self._label = '{output="' + _escaped(escape(str(out), keep="\n")) + f'"{which}}}'
        self._last_success = self._read_last_success()
        self._figures: dict[str, float | None] = {}
        self._written = float("-inf")
        self._reason = ""
        self.code = int(ExitCode.DONE)

    def progress(self, progress: Progress) -> None:
        """The run is at work: write its figures, once a second."""
        if progress.seconds - self._written < _EVERY_SECONDS:
            return
        self._written = progress.seconds
        self._figures = {
            "batchrank_rows": progress.rows,
            "batchrank_rows_done": progress.rows_done,
            "batchrank_requests_total": progress.requests,
            "batchrank_tokens_billed_total": progress.tokens,
            "batchrank_cost_usd_total": progress.cost_usd,
            "batchrank_rows_failed": progress.rows_failed,
            "batchrank_rows_partial": progress.rows_partial,
            "batchrank_retries_total": progress.retries,
        }
        why = progress.standstill
        self._reason = "" if why is None else why.reason
        moment = {
            "batchrank_throttled_total": progress.throttled,
            "batchrank_stalled": int(why is not None),
            _STALLED_SINCE: None if why is None else _timestamp(why.since),
            _STALLED_UNTIL: None if why is None else _timestamp(why.until),
            "batchrank_requests_per_second": progress.requests_per_second,
            "batchrank_seconds_left": progress.seconds_left,
        }
        with suppress(OSError):  # no reason to stop a run that is being paid for
            self._write({"batchrank_running": 1, **self._figures, **moment})

    def receipt(self, receipt: Receipt) -> None:
        """The run's figures at its end, and how it ended."""
        self.code = receipt.exit_code
        self._figures = {
            "batchrank_rows": receipt.rows,
            "batchrank_rows_done": receipt.rows - receipt.rows_open,
            "batchrank_rows_failed": receipt.rows_failed,
            "batchrank_rows_partial": receipt.rows_partial,
            "batchrank_requests_total": receipt.requests,
            "batchrank_retries_total": receipt.retries,
            "batchrank_tokens_billed_total": receipt.tokens_billed,
            "batchrank_cost_usd_total": receipt.cost_usd,
        }

    def begun(self) -> None:
        """The run begins. Raises `StorageFailed` where the file cannot be written."""
        try:
            self._write({"batchrank_running": 1})
        except OSError as error:
            raise StorageFailed(f"{self._path}: cannot be written: {error.strerror}.") from error

    def ended(self, code: int) -> None:
        """The run has ended with this code."""
        if code == ExitCode.DONE:
            self._last_success = time.time()
        with suppress(OSError):  # the run's own code matters more
            self._write({"batchrank_running": 0, "batchrank_exit_code": code, **self._figures})

    def _write(self, figures: dict[str, float | None]) -> None:
        if self._path is None:
            return
        told = {**figures, _LAST_UPDATE: time.time(), _LAST_SUCCESS: self._last_success}
        lines = []
        for name, value in told.items():
            if value is not None:
                kind = "counter" if name.endswith("_total") else "gauge"
                lines += [f"# HELP {name} {_HELP[name]}", f"# TYPE {name} {kind}"]
                lines.append(f"{name}{self._labels(name)} {value}")
        with open_target(self._path, mode=0o644, sync=False, wait=False) as file:
            file.write("\n".join([*lines, ""]).encode())

    def _labels(self, name: str) -> str:
        if name not in (_STALLED_SINCE, _STALLED_UNTIL):
            return self._label
        return self._label[:-1] + f',reason="{_escaped(self._reason)}"}}'

    def _read_last_success(self) -> float | None:
        if self._path is None or not self._path.is_file():  # a device may be read without end
            return None
        try:
            with self._path.open("rb") as file:
                content = file.read(_MOST_BYTES).decode()
        except (OSError, UnicodeDecodeError):
            return None
        line = re.escape(_LAST_SUCCESS + self._label) + r" ([0-9.e+]+)$"
        found = re.search(f"^{line}", content, re.MULTILINE)
        return float(found[1]) if found else None


@contextmanager
def measured(path: Path | None, out: Path | str, shard: object = None) -> Iterator[Metrics]:
    """Metrics of the run that the block is, to its end, whatever that is."""
    metrics = Metrics(path, out, shard)
    metrics.begun()
    code = int(ExitCode.BUG)
    try:
        yield metrics
        code = metrics.code
    except BatchrankError as error:
        code = int(error.code)
        raise
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else code
        raise
    except KeyboardInterrupt:
        code = int(ExitCode.INTERRUPTED)
        raise
    finally:
        metrics.ended(code)


def _timestamp(moment: str | None) -> float | None:
    return datetime.fromisoformat(moment).timestamp() if moment else None


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
