"""A session's figures while it lasts: what was spent, how fast it goes, and the receipt at its end.

Nothing is decided here. Counts come from what the run records anyway; the clock is read for times
alone.
"""

import time
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version

from batchrank.config.settings import JobConfig
from batchrank.errors import BatchrankError
from batchrank.input.parquet_rows import FileIdentity
from batchrank.output.parts import PartRecord
from batchrank.output.receipt import LIMITED_BY, Left, Progress, Receipt, total
from batchrank.output.standstill import Standstill
from batchrank.pacing.time_left import WINDOW_TICKS, Pacing, TimeLeft
from batchrank.records import Spent
from batchrank.version import __version__

TICK_SECONDS = 0.25


class Figures:
    """What one session has spent on top of those before it, over so many rows."""

    def __init__(
        self, config: JobConfig, rows: int, spent: Spent, finish_by: str | None = None
    ) -> None:
        self._config = config
        self._finish_by = finish_by
        self._rows = rows
        self._before = self.spent = spent
        self._began = time.monotonic()
        self._started = datetime.now(UTC)
        self._recent: deque[tuple[float, int]] = deque(maxlen=WINDOW_TICKS)
        self._time_left = TimeLeft()

    def add(self, spent: Spent) -> None:
        """A plan is settled, or dropped."""
        self.spent = self.spent + spent

    def progress(
        self,
        rows_done: int,
        *,
        requests: int,
        retries: int,
        throttled: int,
        rows_failed: int,
        rows_partial: int,
        standstill: Standstill | None,
        in_flight: int,
        pacing: Pacing | None,
    ) -> Progress:
        """Return the figures of this instant, to be asked for every `TICK_SECONDS`. `requests` and
        `retries` are those of this session, of rows that are not done yet included.
        """
        now = time.monotonic()
        sent = self._before.requests + requests
        self._recent.append((now, sent))
        since, sent_then = self._recent[0]
        seconds = max(now - since, 1e-9)
        return Progress(
            rows=self._rows,
            rows_done=rows_done,
            requests=sent,
            tokens=self.spent.tokens,
            cost_usd=self._cost,
            cost_is_real=self._config.bills,
            seconds=now - self._began,
            requests_per_second=(sent - sent_then) / seconds,
            seconds_left=self._time_left.look(now, self._rows, rows_done, in_flight, pacing),
            finish_by=self._finish_by,
            provider=self._config.endpoint.provider,
            scorer=self._config.scorer,
            rows_failed=rows_failed,
            rows_partial=rows_partial,
            retries=self._before.retries + retries,
            throttled=throttled,
            standstill=standstill,
        )

    def limited_by(self, waited_seconds: Mapping[str, float]) -> str | None:
        """In words, what held the session up longest; None where nothing was sent."""
        if self.spent.requests == self._before.requests:
            return None
        waited = dict(waited_seconds)
        waited["endpoint"] = time.monotonic() - self._began - sum(waited.values())
        return LIMITED_BY[max(waited, key=lambda what: waited[what])]

    def left(self, rows: int, settled: int, settled_now: int) -> Left:
        """What so many rows come to, after these were settled, some of them in this session."""
        share = rows / settled if settled and self.spent.requests else None
        seconds = time.monotonic() - self._began
        return Left(
            rows,
            None if share is None else round(self.spent.requests * share),
            None if share is None else round(self.spent.tokens * share),
            None if share is None or self._config.is_embedded else round(self._cost * share, 6),
            round(seconds * rows / settled_now, 1) if settled_now > 0 else None,
        )

    def receipt(
        self,
        error: BatchrankError | None,
        files: Iterable[FileIdentity],
        published: Mapping[int, PartRecord],
        limited_by: str | None,
        *,
        priority_column: str | None = None,
        rows_kept: int = 0,
        left: Left | None = None,
    ) -> Receipt:
        """What the run came to so far, and what ended this session early, if anything did."""
        parts = [record for _, record in sorted(published.items())]
        return Receipt(
            status="finished" if error is None else "stopped",
            exit_code=0 if error is None else int(error.code),
            message=None if error is None else str(error),
            batchrank=__version__,
            libraries={name: version(name) for name in ("aiohttp", "pyarrow", "gigatoken")},
            config=self._config.shown(),
            input=list(files),
            rows=self._rows,
            rows_scored=total(parts, "scored"),
            rows_partial=total(parts, "partial"),
            rows_failed=total(parts, "failed"),
            rows_skipped=total(parts, "skipped"),
            rows_open=self._rows - total(parts, "rows"),
            documents_truncated=total(parts, "truncated"),
            requests=self.spent.requests,
            retries=self.spent.retries,
            possibly_paid=self.spent.possibly_paid,
            implausible_usage=self.spent.implausible,
            requests_this_session=self.spent.requests - self._before.requests,
            pairs_reused=total(parts, "pairs_reused"),
            rows_reused=total(parts, "rows_reused"),
            tokens_estimated=self.spent.estimate,
            estimate_is_exact=self._config.counts_tokens_as_billed
            and self.spent.counted == self.spent.estimate,
            tokens_billed=self.spent.tokens,
            cost_usd=round(self._cost, 6),
            cost_is_real=self._config.bills,
            started=self._started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - self._began, 3),
            limited_by=limited_by,
            parts=parts,
            finish_by=self._finish_by,
            priority_column=priority_column,
            rows_kept=rows_kept,
            left=left,
            provider=self._config.endpoint.provider,
            scorer=self._config.scorer,
        )

    @property
    def _cost(self) -> float:
        return self._config.price.cost(self.spent.units)
