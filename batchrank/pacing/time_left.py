"""Estimate the time left of a run: what the throttle holds back is known, so the ramp is too.

Pure: instants are given. While requests wait for their turn, the rate follows the throttle's speed:
the rate at full speed is what went out over what the speed allowed. Otherwise the endpoint or the
input sets the pace, and the rows of the last moments are all there is to go by.
"""

from collections import deque
from math import sqrt
from typing import NamedTuple

WINDOW_TICKS = 40
"""The last moments: 10 s of four looks a second."""

_WAITS = 0.5
"""Above this share of the time somebody waits for a turn: the rate limits, nothing else."""

_MOST_DRAIN_SECONDS = 60.0


class Pacing(NamedTuple):
    """How the throttle stands: the share of the rate in use, how fast it climbs, how far it may;
    requests let through, seconds that somebody waited for a turn, and those left of a pause. Its
    breaker `is_open`: only probes go.
    """

    speed: float
    climb_per_second: float
    ceiling: float
    start_speed: float
    admitted: int
    waited_seconds: float
    pause_seconds: float
    is_open: bool


class _Look(NamedTuple):
    now: float
    rows_done: int
    admitted: int
    waited_seconds: float
    speed_seconds: float


class TimeLeft:
    """Looks at a session's counts a few times a second and estimates when it ends."""

    def __init__(self) -> None:
        self._looks: deque[_Look] = deque(maxlen=WINDOW_TICKS)
        self._rows_before: int | None = None
        self._full_rate: float | None = None
        self._speed = self._speed_seconds = 0.0

    def look(
        self, now: float, rows: int, rows_done: int, in_flight: int, pacing: Pacing | None
    ) -> float | None:
        """Return the seconds that `rows` still take; None where nothing is known."""
        if self._rows_before is None:
            self._rows_before = rows_done
        look = self._note(now, rows_done, pacing)
        first = self._looks[0]
        seconds = max(now - first.now, 1e-9)
        rows_left = rows - rows_done
        if pacing is not None and self._is_limited(first, look, seconds, pacing):
            done_now = rows_done - self._rows_before
            settled = max(0, look.admitted - in_flight)
            requests_a_row = settled / done_now if done_now and settled else 1.0
            return self._paced(max(0.0, rows_left * requests_a_row - in_flight), in_flight, pacing)
        row_rate = (rows_done - first.rows_done) / seconds
        return rows_left / row_rate if row_rate > 0 else None

    def _note(self, now: float, rows_done: int, pacing: Pacing | None) -> _Look:
        if self._looks:
            self._speed_seconds += self._speed * (now - self._looks[-1].now)
        admitted, waited = (0, 0.0) if pacing is None else (pacing.admitted, pacing.waited_seconds)
        # In a pause nothing goes out, whatever the speed: it begins again below.
        held = pacing is None or pacing.pause_seconds > 0 or pacing.is_open
        self._speed = 0.0 if pacing is None or held else pacing.speed
        if held:  # what was before says nothing of what comes after
            self._looks.clear()
        look = _Look(now, rows_done, admitted, waited, self._speed_seconds)
        self._looks.append(look)
        return look

    def _is_limited(self, first: _Look, look: _Look, seconds: float, pacing: Pacing) -> bool:
        """Whether the rate at full speed is known: from the last moments, or before a pause."""
        if pacing.pause_seconds > 0:
            return self._full_rate is not None
        if pacing.is_open:
            return False
        if look.waited_seconds - first.waited_seconds < _WAITS * seconds:
            return False
        allowed, sent = look.speed_seconds - first.speed_seconds, look.admitted - first.admitted
        if allowed > 0 and sent > 0:
            self._full_rate = sent / allowed
        return self._full_rate is not None

    def _paced(self, requests: float, in_flight: int, pacing: Pacing) -> float:
        assert self._full_rate is not None
        paused = pacing.pause_seconds > 0
        speed = pacing.start_speed if paused else pacing.speed
        drain = min(_MOST_DRAIN_SECONDS, in_flight / (self._full_rate * max(speed, 0.01)))
        sending = _climb(requests / self._full_rate, speed, pacing)
        return pacing.pause_seconds + sending + drain


def _climb(work: float, speed: float, pacing: Pacing) -> float:
    """Return the seconds that so many seconds of full speed take, climbing from `speed`."""
    slope, ceiling = pacing.climb_per_second, max(pacing.ceiling, 0.01)
    if slope <= 0 or speed >= ceiling:
        return work / ceiling
    climbing = (ceiling - speed) / slope
    done = climbing * (speed + ceiling) / 2
    if work <= done:
        return (sqrt(speed * speed + 2 * slope * work) - speed) / slope
    return climbing + (work - done) / ceiling
