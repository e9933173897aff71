"""What a run's exchanges came to over time, for the report: a few hundred points, however long.

Each exchange adds to the open point and nothing else. A point is closed after a second; when there
are too many, the two neighbours that are shortest together become one, so that all of a run stays
in sight. Points of earlier sessions are kept; a session that is killed loses its last seconds.
"""

from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from math import sqrt
from pathlib import Path

import msgspec

from batchrank.files.atomic import write_unsynced

SERIES = "series.json"
POINTS = 600
_POINT_SECONDS = 1.0
_WRITE_SECONDS = 5.0
_REASONS = 30

BOUNDS = [0.001 * 2 ** (step / 4) for step in range(81)]
"""Seconds where one bucket of latencies ends and another begins: four an octave, 1 ms to 17 min."""


class Point(msgspec.Struct, kw_only=True):
    """What was sent, and what came, within so many `seconds` of a session, counted from 1. `limit`
    is that of requests per minute (0: none), `latency` answered requests by index of `BOUNDS`.
    """

    session: int
    seconds: float
    limit: float
    sent: int = 0
    answered: int = 0
    throttled: int = 0
    failed: int = 0
    tokens: int = 0
    latency: dict[int, int] = {}


class Kept(msgspec.Struct, kw_only=True):
    """All sessions' points, and why requests were sent again or given up, with how many."""

    points: list[Point] = []
    reasons: dict[str, int] = {}


class Series:
    """The series of a running session, after those of earlier ones. `now` is any steady clock's."""

    def __init__(self, state: Path, requests_per_minute: float, now: float) -> None:
        self._path = state / SERIES
        self._kept = read_series(state) or Kept()
        points = self._kept.points
        self._session = points[-1].session + 1 if points else 1
        self._limit = requests_per_minute
        self._open = self._new()
        self.throttled = sum(point.throttled for point in points)
        self._since = self._written = now

    def sent(self) -> None:
        """A request is on its way."""
        self._open.sent += 1

    def answered(self, seconds: float, tokens: int) -> None:
        """A request was answered so long after its permission, for so many tokens."""
        bucket = bisect(BOUNDS, seconds)
        point = self._open
        point.answered += 1
        point.tokens += tokens
        point.latency[bucket] = point.latency.get(bucket, 0) + 1

    def unanswered(self, reason: str, *, throttled: bool) -> None:
        """A request got no scores, and why."""
        if throttled:
            self._open.throttled += 1
            self.throttled += 1
        else:
            self._open.failed += 1
        reasons = self._kept.reasons
        if reason not in reasons and len(reasons) >= _REASONS:
            reason = "other reasons"
        reasons[reason] = reasons.get(reason, 0) + 1

    def tick(self, now: float) -> None:
        """Close the point that is open when its time is up."""
        if now - self._since >= _POINT_SECONDS:
            self._close(now)

    def due(self, now: float) -> bytes | None:
        """The series as it is to be written, every few seconds."""
        if now - self._written < _WRITE_SECONDS:
            return None
        self._written = now
        return msgspec.json.encode(self._kept)

    def write(self, content: bytes) -> None:
        """Keep the series; this one call may be made from a thread."""
        with suppress(OSError):  # a full disk ends the run where it matters
            write_unsynced(self._path, content)

    def end(self, now: float) -> None:
        """The session ends. Its last moment is no point of its own: a rate of it says little."""
        self._close(now)
        points = self._kept.points
        is_short = points[-1].seconds < _POINT_SECONDS / 2
        if is_short and len(points) > 1 and points[-2].session == self._session:
            points[-2:] = [joined(*points[-2:])]
        self.write(msgspec.json.encode(self._kept))

    def _new(self) -> Point:
        return Point(session=self._session, seconds=0.0, limit=self._limit)

    def _close(self, now: float) -> None:
        self._open.seconds = now - self._since
        self._kept.points.append(self._open)
        self._open, self._since = self._new(), now
        while len(self._kept.points) > POINTS:
            _join_shortest(self._kept.points)


def read_series(state: Path) -> Kept | None:
    """What was kept; None where nothing is, or nothing that can be read."""
    try:
        return msgspec.json.decode((state / SERIES).read_bytes(), type=Kept)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def together(kept: Sequence[Kept]) -> Kept:
    """The courses of runs that were at work at once, as one session: what each did so long after
    its own beginning is added up.
    """
    longest = max((sum(point.seconds for point in one.points) for one in kept), default=0.0)
    coarsest = max((point.seconds for one in kept for point in one.points), default=0.0)
    step = max(coarsest, longest / POINTS)
    sums: dict[int, Point] = {}
    for one in kept:
        ends = accumulate(point.seconds for point in one.points)
        mine: dict[int, Point] = {}
        for end, point in zip(ends, one.points, strict=True):
            place = int((end - point.seconds / 2) / step)
            mine[place] = joined(mine[place], point) if place in mine else point
        for place, point in mine.items():
            sums[place] = _beside(sums[place], point) if place in sums else point
    points = [
        msgspec.structs.replace(sums[place], session=1, seconds=step) for place in sorted(sums)
    ]
    reasons = Counter[str]()
    for one in kept:
        reasons.update(one.reasons)
    return Kept(points=points, reasons=dict(reasons))


def _beside(one: Point, other: Point) -> Point:
    limit = one.limit + other.limit if one.limit and other.limit else 0.0
    return msgspec.structs.replace(joined(one, other), limit=limit)


def joined(first: Point, second: Point) -> Point:
    """Two neighbours as one."""
    latency = dict(first.latency)
    for bucket, count in second.latency.items():
        latency[bucket] = latency.get(bucket, 0) + count
    return Point(
        session=second.session,
        seconds=first.seconds + second.seconds,
        limit=max(first.limit, second.limit) if first.limit and second.limit else 0.0,
        sent=first.sent + second.sent,
        answered=first.answered + second.answered,
        throttled=first.throttled + second.throttled,
        failed=first.failed + second.failed,
        tokens=first.tokens + second.tokens,
        latency=latency,
    )


def _join_shortest(points: list[Point]) -> None:
    lengths = [first.seconds + second.seconds for first, second in pairwise(points)]
    place = lengths.index(min(lengths))
    points[place : place + 2] = [joined(points[place], points[place + 1])]


def percentile(latency: dict[int, int], share: float) -> float | None:
    """The seconds within which this share of answers came, to a tenth of itself; None of none."""
    wanted = share * sum(latency.values())
    seen = 0
    for bucket, count in sorted(latency.items()):
        seen += count
        if seen >= wanted:
            low, high = BOUNDS[max(bucket - 1, 0)], BOUNDS[min(bucket, len(BOUNDS) - 1)]
            return sqrt(low * high)
    return None
