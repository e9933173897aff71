"""A limit a minute that nobody told: learn it from a minute that was used up.

Pure: instants are the caller's, in seconds. Where several requests in a row are refused, the gate
closes and lets single probes through. A probe that is refused though a second has passed and
nothing else is under way says that it is a minute that is used up. With the first one that is let
in the minute is known: it is what was let in over the 60 s before. Where that instant is too early
for a sliding minute, the minute is fixed and has just begun.
"""

from collections import deque
from math import inf

from batchrank.config.limits import AIM

_MINUTE = 60.0
_BIN_SECONDS = 0.1
_KEPT_SECONDS = 64.0
_IN_A_ROW = 5
_FIRST_PROBE_SECONDS = 1.0
_PROBE_SECONDS = 1.6
_TOLD_SECONDS = 1.5
"""A pause that is asked for and longer than this is not that of a second."""
_GIVES_UP_SECONDS = 63.0
"""After so long with nothing let in it is no minute: an outage."""
_LEAST_LIMIT = 60
_LOW = 0.4
_NEARLY_FULL = 0.98
_MARGIN = 0.99
_CREDIT_SECONDS = 1.0
"""What a minute's even pace may be late by, for want of a place, and make up for."""
_HOLD_SECONDS = 90.0
_LONGEST_HOLD_SECONDS = 720.0
_GROWTH = 0.02


class UsedMinute:
    """What was let in over the last minute, and how much of that the endpoint bears."""

    def __init__(self) -> None:
        self._bins: deque[list[float]] = deque()
        self._older: deque[list[float]] = deque()
        self._in_minute = 0.0
        self._credit, self._credit_since = 0.0, -inf
        self._limit: float | None = None
        self._slides = True
        self._hold_seconds = _HOLD_SECONDS
        self._grows_at = inf
        self._growth = _GROWTH
        self._row = 0
        self._closed = self._is_minute = self._told = self._grew = False
        self._gave_up = False
        self._closed_at = self._next_probe = inf
        self._last_refused = self._last_let_in = -inf

    @property
    def row(self) -> int:
        """Requests refused since the last one that was let in."""
        return self._row

    @property
    def is_closed(self) -> bool:
        """Whether only probes go."""
        return self._closed

    def per_second(self, now: float) -> float:
        """Requests a second that the minute bears; without end where no minute is known."""
        if self._limit is None:
            return inf
        if now >= self._grows_at:
            self._limit *= 1 + self._growth
            self._growth *= 2
            self._grows_at, self._grew = now + _MINUTE, True
        return self._limit / _MINUTE

    def wait(self, now: float) -> float:
        """Seconds until a request may go."""
        if self._closed:
            return max(0.0, self._next_probe - now)
        if self._limit is None:
            return 0.0
        if self._refilled(now) < 1:
            return (1 - self._credit) / self._rate(now) + 0.001
        if not self._slides:
            return 0.0
        self._forget(now)
        if self._in_minute < max(1.0, self._limit * _MARGIN) or not self._bins:
            return 0.0
        return max(0.002, self._bins[0][0] + _BIN_SECONDS + _MINUTE - now)

    def admit(self, now: float) -> None:
        """A request goes out."""
        self._forget(now)
        start = now - now % _BIN_SECONDS
        if not self._bins or self._bins[-1][0] < start:
            self._bins.append([start, 0.0])
        self._bins[-1][1] += 1
        self._in_minute += 1
        if self._limit is not None:
            self._credit = self._refilled(now) - 1
        if self._closed:
            self._next_probe = now + _PROBE_SECONDS

    def refuse(self, now: float, sent_at: float, *, alone: bool, after: float | None) -> bool:
        """A request sent then was refused; `alone`: no other was under way. Return True where the
        minute that is known explains it.
        """
        self._forget(now)
        full = self._limit is not None and self._in_minute >= _NEARLY_FULL * self._limit
        self._take_back(sent_at)
        if full and self._limit is not None:
            self._limit = min(self._limit, self._in_minute)
            self._stop_growth(now)
        if sent_at < self._last_let_in:
            return False
        self._row += 1
        self._last_refused = max(self._last_refused, sent_at)
        told = after is not None and after >= _TOLD_SECONDS
        if self._closed:
            self._told = self._told or told
            self._is_minute = self._is_minute or told or (alone and sent_at > self._closed_at)
            self._keep_closed(now)
        elif (self._row >= _IN_A_ROW or told) and not self._gave_up:
            self._closed, self._is_minute, self._told = True, told, told
            self._closed_at, self._next_probe = now, sent_at + _FIRST_PROBE_SECONDS
        return full

    def let_in(self, now: float, sent_at: float) -> bool:
        """A request sent then was let in. Return True where that ended a used-up minute."""
        if sent_at < self._last_let_in:
            return False
        self._last_let_in = sent_at
        if sent_at < self._last_refused:
            return False
        self._row, self._gave_up = 0, False
        if not self._closed:
            return False
        self._closed = False
        return self._is_minute and self._learn(now, sent_at)

    def _rate(self, now: float) -> float:
        return self.per_second(now) * AIM

    def _refilled(self, now: float) -> float:
        rate = self._rate(now)
        most = max(2.0, rate * _CREDIT_SECONDS)
        self._credit = min(most, self._credit + (now - self._credit_since) * rate)
        self._credit_since = now
        return self._credit

    def forget_limit(self) -> None:
        """What is known no longer holds: the share of the account is another."""
        self._limit, self._closed, self._row = None, False, 0

    def _keep_closed(self, now: float) -> None:
        if now - max(self._last_let_in, self._closed_at - _MINUTE) > 2 * _MINUTE or (
            now - self._closed_at > _GIVES_UP_SECONDS
        ):
            self._closed, self._limit, self._gave_up = False, None, True

    def _learn(self, now: float, opened_at: float) -> bool:
        """The minute that is used up began between 60 s before the last refusal and 60 s before
        this: what was let in since is between these two counts.
        """
        low = self._count_since(opened_at - _MINUTE) - 1
        high = self._count_since(self._last_refused - _MINUTE) - 1
        limit = low + _LOW * (high - low)
        if self._told:
            limit = low if low >= high / 2 else high
        if limit < _LEAST_LIMIT:
            return False
        self._limit, self._slides = limit, low < high
        self._credit, self._credit_since = 0.0, now
        self._stop_growth(now)
        return True

    def _stop_growth(self, now: float) -> None:
        if self._grew:
            self._hold_seconds = min(2 * self._hold_seconds, _LONGEST_HOLD_SECONDS)
        self._growth, self._grew = _GROWTH, False
        self._grows_at = now + self._hold_seconds

    def _count_since(self, instant: float) -> float:
        count = sum(amount for start, amount in self._bins if start >= instant)
        return count + sum(amount for start, amount in self._older if start >= instant)

    def _take_back(self, sent_at: float) -> None:
        """What was refused was not let in."""
        for one in reversed(self._bins):
            if one[0] <= sent_at:
                one[1] -= 1
                self._in_minute -= 1
                return

    def _forget(self, now: float) -> None:
        while self._bins and self._bins[0][0] + _BIN_SECONDS <= now - _MINUTE:
            one = self._bins.popleft()
            self._in_minute -= one[1]
            self._older.append(one)
        while self._older and self._older[0][0] <= now - _KEPT_SECONDS:
            self._older.popleft()
