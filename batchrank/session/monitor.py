"""Look at the clock while a run is at work: tell its figures, log a heartbeat, say why it waits.

Telling is a thread's: on a disk that is busy a rename takes seconds (12 of them without a request
were seen), and sending must not wait for it. The bar has a thread of its own, and says that the
disk is slow. The end waits for both: nothing else writes what they write.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import msgspec

from batchrank.output.receipt import Progress, clock, money, write_live
from batchrank.output.standstill import StandstillLog
from batchrank.sending.http_client import STANDSTILL_SECONDS
from batchrank.session.totals import TICK_SECONDS
from batchrank.state.history import Series

HEARTBEAT_SECONDS = 60.0

_log = logging.getLogger(__name__)


class Monitor:
    """Tells a session's figures. `look` gives those of the instant, and may stop the run;
    `resume_after` is told for how long the process was stopped.
    """

    def __init__(
        self,
        look: Callable[[], Progress],
        watch: Callable[[Progress], None],
        resume_after: Callable[[float], None],
        state: Path,
        series: Series,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._look = look
        self._watch = watch
        self._resume_after = resume_after
        self._state = state
        self._series = series
        self._standstills = StandstillLog()
        self._heartbeat_seconds = heartbeat_seconds
        self._heartbeat_at = time.monotonic() + heartbeat_seconds

    async def tick(self) -> None:
        """Look every `TICK_SECONDS`, until cancelled."""
        telling: dict[str, Future[None]] = {}
        try:
            with ExitStack() as stack:
                threads = {
                    name: stack.enter_context(ThreadPoolExecutor(1, name))
                    for name in ("watching", "noting")
                }
                while True:
                    progress, now = self._look(), time.monotonic()
                    self._series.tick(now)
                    self._log(progress, now)
                    for name, thread in threads.items():
                        if name not in telling or telling[name].done():
                            _raise_of(telling.get(name))
                            step = self._watch if name == "watching" else self._note(now)
                            telling[name] = thread.submit(step, progress)
                    await asyncio.sleep(TICK_SECONDS)
                    late = time.monotonic() - now - TICK_SECONDS
                    if late > STANDSTILL_SECONDS:
                        self._resume_after(late)
        finally:
            self._series.end(time.monotonic())
            for told in telling.values():
                _raise_of(told)

    def _note(self, now: float) -> Callable[[Progress], None]:
        course = self._series.due(now)

        def note(progress: Progress) -> None:
            write_live(self._state, progress)
            if course is not None:
                self._series.write(course)

        return note

    def _log(self, progress: Progress, now: float) -> None:
        line = self._standstills.line(now, progress.standstill)
        if line is not None:
            _log.warning(line, extra={"figures": {"standstill": _builtin(progress.standstill)}})
        if now >= self._heartbeat_at:
            self._heartbeat_at = now + self._heartbeat_seconds
            figures = {"progress": _builtin(progress)}
            _log.info(describe_progress(progress), extra={"figures": figures})


def describe_progress(progress: Progress) -> str:
    """Say a run's figures in one line."""
    share = f" ({progress.rows_done / progress.rows:.1%})" if progress.rows else ""
    left = progress.seconds_left
    words = [
        f"{progress.rows_done:,} of {progress.rows:,} rows{share}",
        *count_troubles(progress),
        f"{progress.requests_per_second:,.1f} requests/s",
        f"{progress.tokens:,} tokens",
        money(progress.cost_usd, progress.cost_is_real),
        "time left unknown" if left is None else f"{clock(left)} left",
    ]
    return ", ".join(words)


def count_troubles(progress: Progress) -> list[str]:
    """Say what did not go well so far, each in a few words; nothing where all did."""
    counts = {
        "failed": progress.rows_failed,
        "partial": progress.rows_partial,
        "sent again": progress.retries,
        "throttled": progress.throttled,
    }
    return [f"{count:,} {what}" for what, count in counts.items() if count]


def _builtin(value: object) -> object:
    return msgspec.to_builtins(value)


def _raise_of(told: "Future[None] | None") -> None:
    """Raise what was raised while telling."""
    if told is not None:
        told.result()
