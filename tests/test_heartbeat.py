"""At info the log has a line of figures each minute, as text and as objects."""

import asyncio
import json
from contextlib import suppress
from pathlib import Path

import pytest

from batchrank.cli.logs import log, log_to_stderr
from batchrank.output.receipt import Progress
from batchrank.session.monitor import HEARTBEAT_SECONDS, Monitor
from batchrank.state.history import Series

PROGRESS = Progress(
    rows=50_000,
    rows_done=12_500,
    requests=12_900,
    tokens=1_234_567,
    cost_usd=1.5,
    cost_is_real=True,
    seconds=140.0,
    requests_per_second=88.9,
    seconds_left=423.0,
    rows_failed=3,
    retries=400,
    throttled=21,
)
LINE = (
    "12,500 of 50,000 rows (25.0%), 3 failed, 400 sent again, 21 throttled, 88.9 requests/s, "
    "1,234,567 tokens, $1.50, 7 min 03 s left"
)


def beat(state: Path) -> None:
    """A monitor at work for some beats, of 50 ms each."""

    async def work() -> None:
        monitor = Monitor(
            lambda: PROGRESS,
            lambda progress: None,
            lambda seconds: None,
            state,
            Series(state, 0.0, 0.0),
            heartbeat_seconds=0.05,
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(1.2):
                await monitor.tick()

    try:
        asyncio.run(work())
    finally:
        log.handlers = []


def test_a_beat_is_a_minute() -> None:
    assert HEARTBEAT_SECONDS == 60


def test_the_line_has_rows_rate_cost_and_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_to_stderr("text", "info")
    beat(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2 and set(lines) == {f"batchrank: {LINE}"}


def test_an_object_has_the_figures_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr("json", "info")
    beat(tmp_path)
    shown = json.loads(capsys.readouterr().err.splitlines()[0])
    assert (shown["level"], shown["message"]) == ("info", LINE)
    assert shown["progress"]["rows_done"] == 12_500
    assert shown["progress"]["seconds_left"] == 423.0


def test_at_the_usual_level_nothing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_to_stderr("text", "warning")
    beat(tmp_path)
    assert capsys.readouterr().err == ""
