"""`--finish-by`: gone by the time said, all that came is kept, and the same command goes on."""

import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from helpers import (
    Server,
    fast,
    inside,
    part_bytes,
    score,
    settings,
    table,
    written,
)
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from batchrank.analysis.status import Status, status_words
from batchrank.output.receipt import Progress, Receipt
from batchrank.session import job
from batchrank.session.deadline import ENDING_SECONDS, Deadline, deadline

BERLIN = ZoneInfo("Europe/Berlin")
SLOW = '[[fault]]\nkind = "slow"\nseconds = 0.1\n'
DOWN = '[[fault]]\nkind = "status"\nstatus = 503\ncode = "ModelUnavailable"\n'
PAUSE = '[[fault]]\nkind = "status"\nstatus = 429\ncode = "Throttling"\nretry_after = 200\n'


class Clock:
    """A wall clock that stands at 0 until it is set, as one does while the machine is suspended."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def deadline(self) -> Deadline:
        return Deadline(datetime.fromtimestamp(1000, UTC), "06:00", self)


def run_until(
    clock: Clock,
    server: Server,
    source: Path,
    out: Path,
    passed: Callable[[Progress], bool],
) -> Receipt:
    """A run whose deadline is over as soon as `passed` says so of its figures."""

    def watch(progress: Progress) -> None:
        if passed(progress):
            clock.now = 2000.0

    config = settings(
        server.base_url,
        rate={"max_in_flight": 8},
        output={"rows_per_part": 50},
        endpoint={"max_outage_seconds": 300},
    )
    request = job.Request(inputs=[str(source)], out=out, finish_by=clock.deadline())
    return job.run(config, request, watch)


def test_what_came_is_kept_and_nothing_of_it_is_sent_again(
    serve: Callable[..., Server], server: Server, tmp_path: Path
) -> None:
    """The clock jumps past the deadline in the middle of the run."""
    own, rows = serve(SLOW), 300
    source = written(tmp_path / "in.parquet", table(rows, tag="deadline"))
    out, config = tmp_path / "out", {"rows_per_part": 50}
    receipt = run_until(Clock(), own, source, out, lambda seen: seen.requests >= 60)
    ledger = own.ledger()
    done = receipt.rows - receipt.rows_open + receipt.rows_kept
    assert (receipt.exit_code, receipt.status, receipt.finish_by) == (4, "stopped", "06:00")
    assert 60 <= done == ledger["requests"] == receipt.requests < rows
    assert receipt.left is not None and receipt.left.rows == rows - done
    assert receipt.left.requests == rows - done
    assert receipt.left.tokens == round(receipt.tokens_billed * (rows - done) / done)
    assert receipt.message == (
        f"stopped by --finish-by 06:00; left: {rows - done} rows, about {rows - done} requests, "
        f"{receipt.left.tokens:,} tokens, ${receipt.left.cost_usd:.4f}, "
        f"{receipt.left.seconds:.1f} s at this pace; the same command goes on from here."
    )
    assert not (out / "_SUCCESS").exists()
    again = score(own, source, out, output=config)
    assert (again.exit_code, again.left, again.rows_kept) == (0, None, 0)
    assert (own.ledger()["requests"], own.ledger()["unique"]) == (rows, rows)
    score(server, source, tmp_path / "oracle", output=config)
    assert part_bytes(out) == part_bytes(tmp_path / "oracle")


@pytest.mark.parametrize("weather", [DOWN, PAUSE], ids=["outage", "pause"])
def test_neither_an_outage_nor_a_pause_is_waited_for_beyond_it(
    serve: Callable[..., Server], tmp_path: Path, weather: str
) -> None:
    """Both would last for minutes yet; the code is not that of an outage."""
    own = serve(weather)
    source = written(tmp_path / "in.parquet", table(100, tag="weather"))
    began = time.monotonic()
    receipt = run_until(Clock(), own, source, tmp_path / "out", lambda seen: seen.seconds > 1.5)
    assert time.monotonic() - began < 60
    assert own.received > 0
    assert (receipt.exit_code, receipt.rows_open, receipt.rows_kept) == (4, 100, 0)
    assert receipt.left is not None
    assert (receipt.left.rows, receipt.left.tokens, receipt.left.seconds) == (100, None, None)
    assert receipt.message == (
        "stopped by --finish-by 06:00; left: 100 rows; the same command goes on from here."
    )


def test_a_run_that_is_done_before_ends_as_ever(server: Server, tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(20, tag="early"))
    receipt = run_until(Clock(), server, source, tmp_path / "out", lambda seen: False)
    assert (receipt.exit_code, receipt.status, receipt.finish_by) == (0, "finished", "06:00")
    assert (receipt.message, receipt.left) == (None, None)


def test_a_deadline_that_is_over_sends_nothing(server: Server, tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(20, tag="late"))
    clock, before = Clock(), server.received
    clock.now = 1000 - ENDING_SECONDS
    receipt = run_until(clock, server, source, tmp_path / "out", lambda seen: False)
    assert (receipt.exit_code, server.received - before) == (4, 0)


def test_the_command_is_gone_by_the_time_said_and_says_what_is_left(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    """Its time may be another one, or none, when it goes on."""
    own = serve()
    source, out = written(tmp_path / "in.parquet", table(120, tag="told")), tmp_path / "out"
    instant = datetime.now(UTC) + timedelta(seconds=ENDING_SECONDS + 5)
    run: list[object] = ["run", source, "-o", out, "--base-url", own.base_url]
    limited = ["--requests-per-minute", 300, "--summary", "json"]
    done = inside(*run, *limited, "--finish-by", instant.isoformat())
    assert datetime.now(UTC) < instant
    assert done.returncode == 4, done.stderr
    told = json.loads(done.stdout)
    assert told["finish_by"] == instant.isoformat()
    assert 0 < told["left"]["rows"] == 120 - told["rows_kept"] == 120 - own.ledger()["requests"]
    assert re.search(
        r"stopped by --finish-by \S+; left: \d+ rows, about \d+ requests, [\d,]+ tokens, \$[\d.]+, "
        r"[\d.]+ s at this pace; the same command with a later time goes on from here\.\n",
        done.stderr,
    )
    assert inside("status", out).stdout.startswith("state      stopped")
    assert inside(*fast(own, out, source)).returncode == 0
    assert own.ledger()["requests"] == own.ledger()["unique"] == 120


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2020-01-01T06:00", "2020-01-01T06:00 is past."),
        ("2020-01-01T06:00+09:00", "2020-01-01T06:00+09:00 is past."),
        ("24:00", "24:00 is no time of day."),
        ("tomorrow", "tomorrow is no time; write HH:MM, or"),
        ("2099-01-01", "2099-01-01 is no time; write HH:MM, or"),
    ],
)
def test_no_time_to_come_is_bad_usage(server: Server, tmp_path: Path, text: str, said: str) -> None:
    source, before = written(tmp_path / "in.parquet", table(2)), server.received
    done = inside(*fast(server, tmp_path / "out", source), "--finish-by", text)
    assert (done.returncode, server.received) == (2, before)
    assert said in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("now", "text", "instant"),
    [
        ("2026-11-24T22:00+01:00", "06:00", "2026-11-25T06:00+01:00"),
        ("2026-11-24T05:59:59+01:00", "6:00", "2026-11-24T06:00+01:00"),
        ("2026-11-24T06:00+01:00", "06:00", "2026-11-25T06:00+01:00"),
        # The clock goes from 2:00 to 3:00 on 28 March: 2:30 is the moment when it does.
        ("2027-03-27T22:00+01:00", "02:30", "2027-03-28T03:00+02:00"),
        ("2027-03-28T03:00+02:00", "02:30", "2027-03-29T02:30+02:00"),
        ("2027-03-27T22:00+01:00", "06:00", "2027-03-28T06:00+02:00"),
        # And from 3:00 to 2:00 on 25 October: 2:30 comes twice, and the next is meant.
        ("2026-10-24T22:00+02:00", "02:30", "2026-10-25T02:30+02:00"),
        ("2026-10-25T02:45+02:00", "02:30", "2026-10-25T02:30+01:00"),
        ("2026-10-25T02:30+01:00", "02:30", "2026-10-26T02:30+01:00"),
        ("2026-10-24T22:00+02:00", "06:00", "2026-10-25T06:00+01:00"),
        ("2026-11-24T22:00+01:00", "2026-11-26T06:00", "2026-11-26T06:00+01:00"),
        ("2026-11-24T22:00+01:00", "2026-11-25 06:00:30Z", "2026-11-25T06:00:30+00:00"),
        ("2026-10-25T02:45+02:00", "2026-10-25T02:30", "2026-10-25T02:30+01:00"),
        ("2027-03-27T22:00+01:00", "2027-03-28T02:30", "2027-03-28T03:00+02:00"),
    ],
)
def test_the_next_such_time_is_meant(now: str, text: str, instant: str) -> None:
    clock = datetime.fromisoformat(now).timestamp()
    found = deadline(text, zone=BERLIN, clock=lambda: clock)
    assert found.instant == datetime.fromisoformat(instant)


def test_a_time_of_day_is_the_machines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        monkeypatch.setenv("TZ", "America/New_York")
        time.tzset()
        noon = datetime(2026, 11, 24, 17, tzinfo=UTC).timestamp()
        assert deadline("06:00", clock=lambda: noon).instant == datetime(
            2026, 11, 25, 11, tzinfo=UTC
        )
        summer = deadline("2027-07-01T06:00", clock=lambda: noon).instant
        assert summer == datetime(2027, 7, 1, 10, tzinfo=UTC)
    finally:
        monkeypatch.undo()
        time.tzset()


@given(
    now=st.datetimes(datetime(2026, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC)),
    minute=st.integers(0, 24 * 60 - 1),
    zone=st.sampled_from(
        ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia"]
    ),
)
@hypothesis_settings(max_examples=60, deadline=None, derandomize=True)
def test_no_earlier_instant_would_have_done(now: datetime, minute: int, zone: str) -> None:
    """Looked for minute by minute: until then no local clock shows it, or jumps over it."""
    hour, rest = divmod(minute, 60)
    found = deadline(f"{hour:02}:{rest:02}", zone=ZoneInfo(zone), clock=now.timestamp).instant
    at = now.replace(second=0, microsecond=0) + timedelta(minutes=1)
    before = now.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    while at <= found:
        shown = at.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
        wanted = shown.replace(hour=hour, minute=rest)
        is_it = before < wanted <= shown or shown == wanted
        assert is_it == (at == found), f"at {shown}"
        before, at = shown, at + timedelta(minutes=1)
    assert found > now


def test_a_running_run_says_until_when(tmp_path: Path) -> None:
    progress = Progress(
        rows=10,
        rows_done=5,
        requests=5,
        tokens=100,
        cost_usd=0.0,
        cost_is_real=False,
        seconds=1.0,
        requests_per_second=5.0,
        seconds_left=1.0,
        finish_by="06:00",
    )
    words = status_words(Status(state="running", progress=progress, receipt=None))
    assert words.endswith("time left  1.0 s; stops by 06:00")
