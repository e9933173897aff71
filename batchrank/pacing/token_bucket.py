"""The tokens of an account, by the second and by the minute. Clock and waiting are given."""

from collections.abc import Awaitable, Callable
from heapq import heappop, heappush

from batchrank.config.limits import AIM

_TOKEN_BUCKET_SECONDS = 0.01
_MINUTE = 60.05


class TokenAccount:
    """Tokens per second in a small bucket. A request larger than half of it goes when it is half
    full and leaves a debt, so any size passes at any rate, in its turn; what comes in while its
    timer is late is not lost (a millisecond of each 45 was 2 % of 150,000 a minute). Large requests
    make rounding coarse, so the last minute's sum is kept below the limit besides.
    """

    def __init__(
        self,
        per_second: float,
        clock: Callable[[], float],
        wait: Callable[[float], Awaitable[None]],
    ) -> None:
        self._whole = self._rate = per_second
        self._clock = clock
        self._wait = wait
        self._most = per_second * _TOKEN_BUCKET_SECONDS
        self._enough = self._most / 2
        self._waits_for_more = False
        self._balance = 0.0
        self._since = clock()
        self._minute: list[tuple[float, int]] = []
        self._sum = 0

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all."""
        return self._whole > 0

    def share_of(self, share: float, fair: float, turn_seconds: float) -> None:
        """From now on there is so much of the whole rate. What comes in until a turn is not lost;
        the minute's sum holds whatever the bucket does. A request that is larger than a minute of
        the share waits for more, unless this is what each can be sure of.
        """
        self._waits_for_more = share < fair
        self._refilled()
        self._rate = self._whole * share
        self._most = self._rate * max(_TOKEN_BUCKET_SECONDS, 4 * turn_seconds)
        self._enough = self._most / 2
        self._balance = min(self._most, self._balance)

    async def room_for(self, tokens: int) -> None:
        """Wait until so many may go."""
        while (wait := self.wait_for(tokens)) > 0:
            await self._wait(max(wait, 0.002))

    def wait_for(self, tokens: int) -> float:
        """How long until so many may go; what is nothing's share, until that changes."""
        if self._whole <= 0:
            return 0.0
        if self._waits_for_more and tokens > self._rate * 60 / AIM:
            return _MINUTE
        return max(self._until_paid(tokens), self._until_minute_has_room(tokens))

    def charge(
        self, tokens: int, sent_at: float | None = None, *, estimate: int | None = None
    ) -> None:
        """Take tokens, or give some back (below 0), which leave the minute with their request.

        A debt is at most a minute's tokens, or what the request was thought to be (`estimate`)
        where that is more: so long is the server's own minute, whatever an answer says.
        """
        if self._whole > 0:
            before = self._refilled()
            deepest = -max(self._rate * 60, tokens if estimate is None else estimate)
            self._balance = min(self._most, max(before - tokens, min(before, deepest)))
            heappush(self._minute, (self._clock() if sent_at is None else sent_at, tokens))
            self._sum += tokens

    def _until_paid(self, tokens: int) -> float:
        lack = min(tokens, self._enough) - self._refilled()
        return lack / self._rate if lack > 1e-6 else 0.0

    def _until_minute_has_room(self, tokens: int) -> float:
        now = self._clock()
        while self._minute and self._minute[0][0] <= now - _MINUTE:
            self._sum -= heappop(self._minute)[1]
        if not self._minute or self._sum + tokens <= self._rate * 60 / AIM:
            return 0.0
        return self._minute[0][0] + _MINUTE - now

    def _refilled(self) -> float:
        now = self._clock()
        self._balance = min(self._most, self._balance + (now - self._since) * self._rate)
        self._since = now
        return self._balance
