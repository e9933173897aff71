"""A limit on requests at once that nobody told: learn it from how many were under way.

Pure: instants are the caller's, in seconds. A request is refused for its number when those sent
with as many others under way are mostly refused and those with fewer are not. A limit in time
refuses at any number. A limit that is known is tried again by one more, ever more seldom.
"""

from collections import Counter
from math import inf

_CONGESTIONS = 3
_LEAST_REFUSED = 3
_MOSTLY = 0.4
_NEARLY_ALL = 0.85
_APART_SECONDS = 1.0
_MOST_TALLIED = 2000
_HOLD_SECONDS = 15.0
_LONGEST_HOLD_SECONDS = 240.0
_NEXT_SECONDS = 1.0
_ENOUGH = 20


class AtOnce:
    """How many requests may be under way at once."""

    def __init__(self) -> None:
        self._limit: int | None = None
        self._sent: Counter[int] = Counter()
        self._refused: Counter[int] = Counter()
        self._congestions = 0
        self._refused_at = -inf
        self._hold_seconds = _HOLD_SECONDS
        self._tries_at = inf

    def most(self, now: float) -> float:
        """How many may be under way, this one among them."""
        if self._limit is None:
            return inf
        if now < self._tries_at:
            return self._limit
        tried = self._limit + 1
        if self._sent[tried] >= _ENOUGH:
            self._limit, self._tries_at = tried, now + _NEXT_SECONDS
            self._hold_seconds = _HOLD_SECONDS
            self._forget()
            return tried
        return tried

    def send(self, number: int) -> None:
        """A request is sent with which so many are under way."""
        self._sent[number] += 1
        if self._sent[number] >= _MOST_TALLIED:
            for tally in (self._sent, self._refused):
                for one in tally:
                    tally[one] //= 2

    def refuse(self, now: float, number: int) -> bool:
        """One sent with so many under way was refused. Return True where that is the reason."""
        self._refused[number] += 1
        if now - self._refused_at >= _APART_SECONDS:
            self._congestions += 1
            self._refused_at = now
        if self._limit is not None and number > self._limit:
            if now >= self._tries_at:
                self._hold_seconds = min(2 * self._hold_seconds, _LONGEST_HOLD_SECONDS)
                self._tries_at = now + self._hold_seconds
                self._sent[number] = 0
            return True
        least = self._least_refused()
        if least is None:
            return False
        self._limit = max(1, least - 1)
        self._tries_at = now + self._hold_seconds
        self._forget()
        return True

    def _least_refused(self) -> int | None:
        """The number from which on requests are refused, and below which they are not."""
        total = self._refused.total()
        if total < _LEAST_REFUSED or (self._limit is None and self._congestions < _CONGESTIONS):
            return None
        for number in sorted(one for one, times in self._refused.items() if times):
            refused = sum(times for one, times in self._refused.items() if one >= number)
            sent = sum(times for one, times in self._sent.items() if one >= number)
            if refused < _NEARLY_ALL * total:
                return None
            if refused >= max(_LEAST_REFUSED, _MOSTLY * sent):
                return number
        return None

    def _forget(self) -> None:
        self._sent.clear()
        self._refused.clear()
        self._congestions = 0
