"""Permission to send: so many requests and tokens a minute, and a pause when the server asks.

One gate in arrival order decides both together. aiolimiter spaces the requests; it is asked for
one request's worth at a time, because on its own it serves small amounts first, starves large
ones and lets a full minute's worth through at once (measured: 1,199 of 600 in one minute).

What a bucket holds is what may go out at once: 4 ms of rate and one request. Over any second that
is less than the second's own allowance at `AIM` of the rate, so per-second limits hold too. Under
uvloop a timer has 1 ms resolution; above 250 requests a second permits are therefore taken in
bunches, never asking for less than 4 ms. The gate starts empty: a restart adds no burst.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from heapq import heappop, heappush
from math import inf

from aiolimiter import AsyncLimiter

from batchrank.congestion import Congestion
from batchrank.errors import ContractBroken, TryLater
from batchrank.limits import RateLimits
from batchrank.retry import Health

AIM = 0.985
"""The share of the limit that is used: below it fixed windows of the server never overflow."""

_BUCKET_SECONDS = 0.004
_TOKEN_BUCKET_SECONDS = 0.01
_MINUTE = 60.05
_LEAST_CREDIT = 20
_IDLE_SECONDS = 1.0
"""After so long without a request the next ones rise from nothing again, as at the start."""


class Throttle:
    """The account's gate. `clock` is the loop's; all amounts are per second inside.

    `speed` is the share of the configured rate in use: it climbs from a tenth or so to 1 over
    `ramp_seconds` at the start and after a pause, no higher than what `congestion` has learnt.
    """

    def __init__(
        self,
        limits: RateLimits,
        clock: Callable[[], float] | None = None,
        max_outage_seconds: float = inf,
    ) -> None:
        self._clock = clock or asyncio.get_running_loop().time
        self._gate = asyncio.Lock()
        self._mended = asyncio.Event()
        self._max_outage_seconds = max_outage_seconds
        self._health = Health(self._clock(), max(_LEAST_CREDIT, limits.max_in_flight))
        self._pace = _Pace(limits.requests_per_minute / 60 * AIM, self._clock)
        self._account = _TokenAccount(limits.tokens_per_minute / 60 * AIM, self._clock)
        self._ramp_seconds = limits.ramp_seconds
        self._start_speed = _start_speed(limits.requests_per_minute / 60)
        self._congestion = Congestion(self._clock())
        self._ramp_since = self._latest = self._clock()
        self._paused_until = float("-inf")
        self.waited_seconds = {"requests": 0.0, "tokens": 0.0, "pause": 0.0, "outage": 0.0}

    async def admit(self, tokens: int) -> float:
        """Wait for the turn of a request of so many tokens; the instant of its permission.

        Raises `TryLater` when the endpoint has served nothing for `max_outage_seconds`, or asks
        for a longer pause than that.
        """
        if self._nothing_to_wait_for():
            return self._clock()
        if not self._gate.locked() and self._clock() - self._latest >= _IDLE_SECONDS:
            self._ramp_since = self._clock()
        async with self._gate:
            await self._timed("outage", self._breaker_lets_through())
            while True:
                await self._timed("pause", self._pause_over())
                await self._timed("tokens", self._account.room_for(tokens))
                await self._timed("requests", self._pace.turn(self.speed))
                if self._clock() >= self._paused_until:  # no pause was asked for in the meantime
                    break
            self._account.charge(tokens)
            self._latest = self._clock()
            return self._latest

    def settle(self, estimated: int, actual: int, sent_at: float | None = None) -> None:
        """Charge or refund what the usage reported differs from what was admitted at `sent_at`."""
        self._account.charge(actual - estimated, sent_at)

    def succeeded(self) -> None:
        """A request was answered."""
        self._health.succeeded(self._clock())
        self._congestion.succeeded()
        self._mended.set()

    def failed(self, reason: str, *, broken: bool) -> None:
        """A request was not answered, or not with a rerank answer (`broken`). Raises
        `ContractBroken` once nothing else has ever come.
        """
        self._health.failed(self._clock(), reason, broken=broken)
        if self._health.speaks_otherwise:
            raise ContractBroken(
                "the endpoint answers, but not as a rerank API does. "
                "Do endpoint.base_url and endpoint.provider fit?"
            )

    @property
    def successes(self) -> int:
        """Requests answered so far."""
        return self._health.successes

    def throttled(self, sent_at: float, after_seconds: float | None) -> None:
        """The server asked for less, in answer to a request admitted at `sent_at`."""
        now = self._clock()
        if after_seconds is not None:
            self._paused_until = max(self._paused_until, now + after_seconds)
        self._congestion.refused(now, sent_at, self.speed)

    @property
    def speed(self) -> float:
        """The share of the configured rate that is in use now."""
        now = self._clock()
        ceiling = self._congestion.ceiling(now)
        if self._ramp_seconds <= 0:
            return ceiling
        climbed = (now - self._ramp_since) / self._ramp_seconds
        return min(ceiling, self._start_speed + (1 - self._start_speed) * climbed)

    def _nothing_to_wait_for(self) -> bool:
        """Without limits, and while all is well, the gate stands open."""
        return (
            not self._pace.limited
            and not self._account.limited
            and self._health.is_well
            and not self._gate.locked()
            and self._clock() >= self._paused_until
        )

    async def _breaker_lets_through(self) -> None:
        was_open = False  # the clock cannot tell: it may tick between two readings
        self._give_up_after_outage()
        while wait := self._health.wait(self._clock()):
            was_open = True
            self._mended.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._mended.wait(), wait)
            self._give_up_after_outage()
        if was_open:
            self._ramp_since = self._clock()

    def _give_up_after_outage(self) -> None:
        down = self._health.down_for(self._clock())
        if down > self._max_outage_seconds:
            raise TryLater(
                f"nothing has succeeded for {down:.0f} s, at last: {self._health.last_reason}. "
                "The same command goes on later."
            )

    async def _pause_over(self) -> None:
        if self._paused_until - self._clock() > self._max_outage_seconds:
            raise TryLater(
                f"the endpoint asks for a pause of {self._paused_until - self._clock():.0f} s; "
                "the same command goes on later."
            )
        if self._clock() < self._paused_until:
            while (wait := self._paused_until - self._clock()) > 0:
                await asyncio.sleep(wait)
            self._ramp_since = self._clock()

    async def _timed(self, what: str, wait: Awaitable[None]) -> None:
        began = self._clock()
        await wait
        self.waited_seconds[what] += self._clock() - began


def _start_speed(per_second: float) -> float:
    """A tenth of the rate, but never below two requests a second: no growth limit is that low."""
    return min(1.0, max(0.1, 2 / per_second)) if per_second > 0 else 1.0


class _Pace:
    """Requests per second, spaced by aiolimiter. A request at half speed costs two turns."""

    def __init__(self, per_second: float, clock: Callable[[], float]) -> None:
        self._limiter = None
        if per_second > 0:
            self._bunch = max(1, int(per_second * _BUCKET_SECONDS))
            self._most = self._bunch + per_second * _BUCKET_SECONDS
            self._limiter = AsyncLimiter(self._most, self._most / per_second)
        self._started = False
        self._in_hand = 0.0

    @property
    def limited(self) -> bool:
        return self._limiter is not None

    async def turn(self, speed: float) -> None:
        if self._limiter is None:
            return
        if not self._started:
            self._started = True
            await self._limiter.acquire(self._most)  # an empty bucket to begin with
        cost = 1 / speed
        # What a cancelled turn had in hand is let go of, or cancels would add up to a burst.
        self._in_hand = min(self._in_hand, self._bunch) if self._bunch > 1 else 0.0
        while self._in_hand < cost - 1e-9:
            amount = self._bunch if self._bunch > 1 else min(cost - self._in_hand, self._most)
            await self._limiter.acquire(amount)
            self._in_hand += amount
        self._in_hand -= cost


class _TokenAccount:
    """Tokens per second in a small bucket. A request larger than the bucket goes when it is full
    and leaves a debt, so any size passes at any rate, in its turn. Large requests make rounding
    coarse, so the last minute's sum is kept below the limit besides.
    """

    def __init__(self, per_second: float, clock: Callable[[], float]) -> None:
        self._rate = per_second
        self._clock = clock
        self._most = per_second * _TOKEN_BUCKET_SECONDS
        self._balance = 0.0
        self._since = clock()
        self._minute: list[tuple[float, int]] = []
        self._sum = 0

    @property
    def limited(self) -> bool:
        return self._rate > 0

    async def room_for(self, tokens: int) -> None:
        if self._rate <= 0:
            return
        while (wait := max(self._until_paid(tokens), self._until_minute_has_room(tokens))) > 0:
            await asyncio.sleep(max(wait, 0.002))

    def charge(self, tokens: int, sent_at: float | None = None) -> None:
        """Take tokens, or give some back (below 0), which leave the minute with their request."""
        if self._rate > 0:
            self._balance = min(self._most, self._refilled() - tokens)
            heappush(self._minute, (self._clock() if sent_at is None else sent_at, tokens))
            self._sum += tokens

    def _until_paid(self, tokens: int) -> float:
        lack = min(tokens, self._most) - self._refilled()
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
