"""A run keeps its course over time in a few hundred points, session after session."""

import json
from pathlib import Path
from random import Random

import pytest

from batchrank.state.history import BOUNDS, POINTS, SERIES, Kept, Series, percentile, read_series


def kept(state: Path) -> Kept:
    found = read_series(state)
    assert found is not None
    return found


def test_a_second_is_a_point_with_what_came_in_it(tmp_path: Path) -> None:
    series = Series(tmp_path, 5400.0, now=100.0)
    for _ in range(3):
        series.sent()
    series.answered(0.2, tokens=50)
    series.tick(100.5)
    series.unanswered("503", throttled=False)
    series.tick(101.0)
    series.unanswered("429", throttled=True)
    series.end(102.0)
    first, second = kept(tmp_path).points
    assert (first.session, first.seconds, first.limit) == (1, 1.0, 5400.0)
    assert (first.sent, first.answered, first.failed, first.throttled) == (3, 1, 1, 0)
    assert (first.tokens, sum(first.latency.values())) == (50, 1)
    assert (second.sent, second.throttled, second.seconds) == (0, 1, 1.0)
    assert kept(tmp_path).reasons == {"503": 1, "429": 1}


def test_a_long_run_has_no_more_points_and_loses_nothing(tmp_path: Path) -> None:
    """A day of seconds: neighbours are joined, evenly, and all sums stay."""
    series = Series(tmp_path, 60.0, now=0.0)
    for second in range(1, 20_001):
        series.sent()
        series.answered(0.1, tokens=second)
        series.tick(float(second))
    series.end(20_000.0)
    points = kept(tmp_path).points
    assert len(points) <= POINTS
    assert sum(point.seconds for point in points) == pytest.approx(20_000)
    assert sum(point.sent for point in points) == 20_000
    assert sum(point.tokens for point in points) == 20_000 * 20_001 // 2
    assert sum(sum(point.latency.values()) for point in points) == 20_000
    assert max(point.seconds for point in points) <= 2 * 20_000 / POINTS * 2
    assert (tmp_path / SERIES).stat().st_size < 200_000


def test_sessions_follow_one_another(tmp_path: Path) -> None:
    for session, limit in enumerate((60.0, 120.0), 1):
        series = Series(tmp_path, limit, now=0.0)
        series.unanswered("503", throttled=False)
        series.end(float(session))
    points = kept(tmp_path).points
    assert [(point.session, point.limit, point.seconds) for point in points] == [
        (1, 60.0, 1.0),
        (2, 120.0, 2.0),
    ]
    assert kept(tmp_path).reasons == {"503": 2}


def test_the_last_moment_is_no_point_of_its_own(tmp_path: Path) -> None:
    series = Series(tmp_path, 60.0, now=0.0)
    series.tick(1.0)
    series.sent()
    series.end(1.1)
    (point,) = kept(tmp_path).points
    assert (point.seconds, point.sent) == (1.1, 1)
    Series(tmp_path, 60.0, now=0.0).end(0.1)
    assert [one.session for one in kept(tmp_path).points] == [1, 2], "never one of two sessions"


def test_what_is_written_while_running_is_at_most_seconds_old(tmp_path: Path) -> None:
    series = Series(tmp_path, 60.0, now=0.0)
    for quarter in range(1, 57):
        series.sent()
        series.tick(quarter / 4)
        course = series.due(quarter / 4)
        if course is not None:
            series.write(course)
        if quarter in (40, 56):
            assert sum(point.sent for point in kept(tmp_path).points) == 40


@pytest.mark.parametrize("content", [b"", b"{", b'{"points": [{"session": "x"}]}', b"\xff"])
def test_a_series_that_cannot_be_read_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SERIES).write_bytes(content)
    assert read_series(tmp_path) is None
    Series(tmp_path, 60.0, now=0.0).end(1.0)
    assert [point.session for point in kept(tmp_path).points] == [1]


def test_reasons_are_few_however_many_there_are(tmp_path: Path) -> None:
    series = Series(tmp_path, 60.0, now=0.0)
    for number in range(100):
        series.unanswered(f"reason {number}", throttled=False)
    series.unanswered("reason 3", throttled=False)
    series.end(1.0)
    reasons = kept(tmp_path).reasons
    assert len(reasons) == 31
    assert (reasons["reason 3"], reasons["other reasons"]) == (2, 70)


def test_a_disk_that_refuses_harms_nothing(tmp_path: Path) -> None:
    series = Series(tmp_path / "not there", 60.0, now=0.0)
    series.tick(10.0)
    course = series.due(10.0)
    assert course is not None
    series.write(course)
    series.end(20.0)


def test_a_percentile_is_right_to_a_tenth(tmp_path: Path) -> None:
    random = Random(3)
    seconds = sorted(random.lognormvariate(-2, 1) for _ in range(5000))
    series = Series(tmp_path, 0.0, now=0.0)
    for one in seconds:
        series.answered(one, tokens=0)
    series.end(1.0)
    (point,) = kept(tmp_path).points
    for share in (0.5, 0.9, 0.99, 1.0):
        exact = seconds[min(int(share * 5000), 4999)]
        assert percentile(point.latency, share) == pytest.approx(exact, rel=0.1)
    assert percentile({}, 0.5) is None


def test_the_fastest_and_the_slowest_have_their_buckets(tmp_path: Path) -> None:
    series = Series(tmp_path, 0.0, now=0.0)
    series.answered(0.0, tokens=0)
    series.answered(1e6, tokens=0)
    series.end(1.0)
    latency = kept(tmp_path).points[0].latency
    assert latency == {0: 1, len(BOUNDS): 1}
    assert percentile(latency, 0.5) == BOUNDS[0]
    assert percentile(latency, 1.0) == BOUNDS[-1]
    assert json.loads((tmp_path / SERIES).read_bytes())["points"][0]["answered"] == 2
