"""Learn the limits of an endpoint that are lower than the configured ones, from its refusals.

Pure: instants are given, in seconds. A refusal is explained by one of three: a minute that is used
up, too many requests at once, or the rate. The others then learn nothing from it.
"""

from copy import copy
from math import inf

from batchrank.pacing.at_once import AtOnce
from batchrank.pacing.congestion import Congestion
from batchrank.pacing.used_minute import UsedMinute

CATCHES_UP = 1.1
"""So much faster than a learnt minute's even pace requests may go, to make up for a delay."""


class LearntLimits:
    """The requests under way, and what their answers say of the endpoint's limits."""

    def __init__(self, now: float) -> None:
        self._rate = self._rate_before = Congestion(now)
        self._minute = UsedMinute()
        self._at_once = AtOnce()
        self._under_way: dict[float, int] = {}

    def ceiling(self, now: float, per_second: float) -> float:
        """Return the share of so many requests a second that the endpoint bears."""
        ceiling = self._rate.ceiling(now)
        if per_second <= 0:
            return ceiling
        return min(ceiling, CATCHES_UP * self._minute.per_second(now) / per_second)

    def wait(self, now: float) -> float:
        """Return the seconds until a request may go; endless where only an answer allows it."""
        if len(self._under_way) >= self._at_once.most(now):
            return inf
        return self._minute.wait(now)

    def send(self, now: float) -> None:
        """Note a request that is sent now."""
        self._under_way[now] = number = len(self._under_way) + 1
        self._at_once.send(number)
        self._minute.admit(now)

    def let_in(self, now: float, sent_at: float | None) -> bool:
        """Note the answer to a request sent then, or to the oldest one. Return True where a
        used-up minute has ended.
        """
        self._rate.succeeded()
        if sent_at is None:
            sent_at = next(iter(self._under_way), None)
        if sent_at is None or not self.lose(sent_at) or not self._minute.let_in(now, sent_at):
            return False
        self._rate = self._rate_before  # its refusals were those of the minute
        return True

    def lose(self, sent_at: float | None) -> int:
        """Forget a request that is no longer under way; return its number, 0 if it is unknown."""
        return 0 if sent_at is None else self._under_way.pop(sent_at, 0)

    def lose_oldest(self) -> None:
        """Forget the oldest request, of which nothing was heard."""
        self.lose(next(iter(self._under_way), None))

    def refuse(self, now: float, sent_at: float, speed: float, after: float | None) -> None:
        """Note that a request sent then is refused, at that speed; `after`: the pause asked for."""
        number = self.lose(sent_at)
        if self._minute.row == 0:
            self._rate_before = copy(self._rate)
        if self._at_once.is_tried(number) and self._at_once.refuse(now, number):
            return
        if number and self._minute.refuse(now, sent_at, alone=not self._under_way, after=after):
            return
        many = number > 1 and not self._minute.is_closed  # a probe is alone
        if many and self._at_once.refuse(now, number):
            self._rate.forget(now)
            return
        self._rate.refused(now, sent_at, speed)

    def forget_minute(self) -> None:
        """The share of the account changed: its minute is another."""
        self._minute.forget_limit()
