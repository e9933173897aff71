"""When nothing succeeds is noticed, and what of it is logged: once, at each change, at its end."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from batchrank.output.standstill import Cause, Standstill, StandstillLog, StandstillWatch
from batchrank.session.causes import DiskProbe

START = datetime(2026, 11, 30, 20, 0, tzinfo=UTC)


def look(watch: StandstillWatch, now: float, marker: int, cause: Cause | None) -> Standstill | None:
    return watch.look(now, START + timedelta(seconds=now), marker, lambda: cause)


def test_a_standstill_is_told_within_ten_seconds_with_its_times() -> None:
    watch, cause = StandstillWatch(0.0), Cause("endpoint", "refused", 890.0)
    assert look(watch, 0.0, 0, cause) is None
    assert look(watch, 4.9, 0, cause) is None
    found = look(watch, 5.1, 0, cause)
    assert found is not None
    assert found.since == "2026-11-30T20:00:00+00:00"
    assert found.until == "2026-11-30T20:14:55+00:00"


def test_a_success_ends_it_and_the_next_begins_there() -> None:
    watch, cause = StandstillWatch(0.0), Cause("endpoint", "refused")
    look(watch, 0.0, 0, cause)
    assert look(watch, 8.0, 1, cause) is None
    assert look(watch, 12.9, 1, cause) is None
    found = look(watch, 13.1, 1, cause)
    assert found is not None and found.since == "2026-11-30T20:00:08+00:00"


def test_the_time_in_which_the_process_was_stopped_does_not_count() -> None:
    watch, cause = StandstillWatch(0.0), Cause("endpoint", "refused")
    look(watch, 0.0, 0, cause)
    watch.exclude(100.0)
    assert look(watch, 103.0, 0, cause) is None


def test_a_slow_answer_is_told_later() -> None:
    watch = StandstillWatch(0.0)
    cause = Cause("unanswered", "no answer", say_after_seconds=8.0)
    look(watch, 0.0, 0, cause)
    assert look(watch, 7.9, 0, cause) is None
    assert look(watch, 8.1, 0, cause) is not None


def lines_of(*looks: tuple[float, str | None]) -> list[str]:
    """What is logged of standstills with these reasons at these instants."""
    logged = StandstillLog()
    lines = []
    for now, reason in looks:
        still = None
        if reason is not None:
            since = START.isoformat()
            still = Standstill(kind="endpoint", reason=reason, since=since, seconds=now)
        lines.append(logged.line(now, still))
    return [line for line in lines if line is not None]


def test_a_reason_is_logged_once_and_its_end() -> None:
    lines = lines_of((5, "refused"), (6, "refused"), (40, "refused"), (41, None), (42, None))
    assert len(lines) == 2
    assert "refused" in lines[0] and lines[1] == "goes on after 40 s"


def test_another_reason_is_logged_when_it_lasts() -> None:
    lines = lines_of((5, "refused"), (6, "503"), (7, "refused"), (11, "503"), (12, "503"))
    assert ["refused" in lines[0], "503" in lines[1], len(lines)] == [True, True, 2]


def test_waiting_for_limits_of_ones_own_is_no_reason_to_warn() -> None:
    still = Standstill(
        kind="limit", reason="its turn", since=START.isoformat(), seconds=9, trouble=False
    )
    logged = StandstillLog()
    assert logged.line(9, still) is None
    assert logged.line(10, None) is None


def test_a_sync_that_takes_long_is_the_disk_s() -> None:
    waiting: list[Callable[[], object]] = []
    probe = DiskProbe(waiting.append)
    assert probe.cause(5.0) is None
    assert len(waiting) == 1, "a commit is asked for"
    assert probe.cause(6.9) is None
    found = probe.cause(7.1)
    assert found is not None and found.kind == "disk"
    waiting.pop()()
    assert probe.cause(7.2) is None


def test_a_part_that_takes_long_is_the_disk_s() -> None:
    probe = DiskProbe(lambda committed: committed())
    probe.begin_part("part 3", 10.0)
    found = probe.cause(12.1)
    assert found is not None and "part 3 is not written yet" in found.reason
    probe.end_part()
    assert probe.cause(13.0) is None
