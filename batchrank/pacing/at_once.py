"""Learn from refusals how many requests the endpoint takes at once.

Pure: instants are given, in seconds. A limit in time refuses whatever number of requests is under
way. A limit on requests at once refuses those with which the most are under way, and no others. A
limit that was learnt is tried by one more request, ever more seldom while that one is refused.
"""

from collections import Counter, deque
from math import inf

_CONGESTIONS = 4
_OF_THE_MOST = 3
"""So many of the last congestions begin at the highest numbers where those are the reason."""
_MOSTLY = 0.15
"""The share of requests at those numbers that begin a congestion. Where the limit is one in time
it is a hundredth; where it is not, requests on their way to and from the endpoint hide some."""
_APART_SECONDS = 1.0
_HOLD_SECONDS = 15.0
_LONGEST_HOLD_SECONDS = 240.0
_NEXT_SECONDS = 1.0
_ENOUGH = 20
"""So many requests in a row that were let in raise the limit by one."""


class AtOnce:
    """The number of requests that may be under way at once."""

    def __init__(self) -> None:
        self._limit: int | None = None
        self._sent: Counter[int] = Counter()
        self._congestions: deque[tuple[int, Counter[int]]] = deque(maxlen=_CONGESTIONS)
        self._refused_at = -inf
        self._hold_seconds = _HOLD_SECONDS
        self._tries_at = inf

    def most(self, now: float) -> float:
        """Return how many may be under way, the next one among them."""
        if self._limit is None:
            return inf
        if now < self._tries_at:
            return self._limit
        if self._sent[self._limit + 1] >= _ENOUGH:
            self._learn(self._limit + 1, now + _NEXT_SECONDS)
            self._hold_seconds = _HOLD_SECONDS
        return self._limit + 1

    def is_tried(self, number: int) -> bool:
        """Return True where so many are more than the limit that was learnt."""
        return self._limit is not None and number > self._limit

    def send(self, number: int) -> None:
        """Note a request with which so many are under way."""
        self._sent[number] += 1

    def refuse(self, now: float, number: int) -> bool:
        """Note that a request with which so many were under way is refused. Return True where that
        number is the reason.
        """
        if self.is_tried(number):
            if now >= self._tries_at:
                self._hold_seconds = min(2 * self._hold_seconds, _LONGEST_HOLD_SECONDS)
                self._tries_at = now + self._hold_seconds
            self._sent[number] = 0
            return True
        if now - self._refused_at < _APART_SECONDS:
            return False
        self._refused_at = now
        self._congestions.append((number, self._sent))
        self._sent = Counter()
        least = self._least_refused()
        if least is None:
            return False
        self._learn(max(1, least - 1), now + self._hold_seconds)
        return True

    def _least_refused(self) -> int | None:
        """Return the number from which on requests are refused, if the number is the reason."""
        numbers = sorted((number for number, _ in self._congestions), reverse=True)
        if len(numbers) < _OF_THE_MOST:
            return None
        least = numbers[_OF_THE_MOST - 1]
        sent = sum(
            times
            for _, tally in self._congestions
            for number, times in tally.items()
            if number >= least
        )
        refused = sum(number >= least for number in numbers)
        return least if refused >= _MOSTLY * sent else None

    def _learn(self, limit: int, tries_at: float) -> None:
        self._limit, self._tries_at = limit, tries_at
        self._sent = Counter()
        self._congestions.clear()
