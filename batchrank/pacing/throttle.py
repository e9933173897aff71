"""Permission to send: so many requests and tokens a minute, and a pause when the server asks.

One gate in arrival order decides both together. aiolimiter spaces the requests; it is asked for
one request's worth at a time, because on its own it serves small amounts first, starves large
ones and lets a full minute's worth through at once (measured: 1,199 of 600 in one minute).

What a bucket holds is what may go out at once: 4 ms of rate and one request. Over any second that
is less than the second's own allowance at `AIM` of the rate, so per-second limits hold too, unless
`held_per_second` says that there are none. Under uvloop a timer has 1 ms resolution; above 250
requests a second permits are therefore taken in bunches, never asking for less than 4 ms. The gate
starts empty: a restart adds no burst.

Where the account is shared, `held` says what part of it may be used at an instant. Which requests
are this worker's follows from that (see `ticks`): aiolimiter has no phase, and workers that are
each spaced evenly still meet. A larger share is climbed into, a smaller one counts at once.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from typing import NamedTuple

from aiolimiter import AsyncLimiter

from batchrank.config.limits import AIM, RateLimits
from batchrank.errors import ContractBroken, TryLater
from batchrank.pacing.circuit_breaker import Health
from batchrank.pacing.learnt_limits import LearntLimits
from batchrank.pacing.shared_pace import Dealt, Held
from batchrank.pacing.time_left import Pacing
from batchrank.pacing.token_bucket import TokenAccount

_BUCKET_SECONDS = 0.004
_LEAST_CREDIT = 20
_SHORT_PAUSE_SECONDS = 1.2
"""A pause of a second's limit: what is learnt of the rate goes on, nothing rises anew."""
_LONGEST_ANSWER_SECONDS = 600.0
_IDLE_SECONDS = 1.0
"""After so long without a request the next ones rise from nothing again, as at the start."""


class Served(NamedTuple):
    """Requests and tokens let through so far, and the seconds that somebody waited for them."""

    requests: int
    tokens: int
    waited: float


class Trouble(NamedTuple):
    """Why nothing is answered: the latest failure, the seconds left of a pause that the endpoint
    asked for, whether only probes go, and the seconds until the run gives up.
    """

    reason: str
    pause_seconds: float
    only_probes: bool
    gives_up_seconds: float


class Throttle:
    """The account's gate. `clock` is the loop's; all amounts are per second inside.

    `speed` is the share of the configured rate in use: it climbs from a tenth or so to 1 over
    `ramp_seconds` at the start and after a pause, no higher than what `learnt_limits` bear.
    """

    def __init__(
        self,
        limits: RateLimits,
        clock: Callable[[], float] | None = None,
        max_outage_seconds: float = inf,
        *,
        held: Held | None = None,
    ) -> None:
        self._clock = clock or asyncio.get_running_loop().time
        self._gate = asyncio.Lock()
        self._mended = asyncio.Event()
        self._max_outage_seconds = max_outage_seconds
        self._health = Health(self._clock(), max(_LEAST_CREDIT, limits.max_in_flight))
        self._held = held
        self._share = 1.0 if held is None else held.share(self._clock())
        self._changed = asyncio.Event()
        per_second, tokens = limits.requests_per_minute / 60, limits.tokens_per_minute / 60 * AIM
        self._pace: _Pace | Dealt = _Pace(per_second * limits.aim, self._clock)
        self._account = TokenAccount(tokens, self._clock, self._wait)
        self._per_second = per_second
        if held is not None:
            self._pace = Dealt(per_second, self._clock, held, self._wait)
            self._account.share_of(self._share, held.fair, self._turn_seconds)
        self._ramp_seconds = limits.ramp_seconds
        self._start_speed = self._climb_from = _start_speed(per_second)
        self._learnt = LearntLimits(self._clock())
        self._answered = asyncio.Event()
        self._ramp_since = self._latest = self._clock()
        self._paused_until = float("-inf")
        self._requests = self._tokens = 0
        self._waiting_since: float | None = None
        self.waits_for: str | None = None
        self.waited_seconds = {"requests": 0.0, "tokens": 0.0, "pause": 0.0, "outage": 0.0}

    async def admit(self, tokens: int) -> float:
        """Wait for the turn of a request of so many tokens; the instant of its permission.

        Raises `TryLater` when the endpoint has served nothing for `max_outage_seconds`, or asks
        for a longer pause than that.
        """
        if self._nothing_to_wait_for():
            return self._clock()
        if not self._gate.locked() and self._clock() - self._latest >= self._idle_seconds:
            self._begin_climb(self._start_speed)
        async with self._gate:
            await self._timed("outage", self._breaker_lets_through())
            while True:
                await self._timed("pause", self._pause_over())
                await self._timed("tokens", self._account.room_for(tokens))
                await self._timed("requests", self._learnt_limits_allow())
                await self._timed("requests", self._pace.turn(self._speed_now))
                # No pause was asked for in the meantime, and no share lost.
                if (
                    self._clock() >= self._paused_until
                    and self._still_has_room_for(tokens)
                    and self._learnt.wait(self._clock()) <= 0
                ):
                    break
            self._account.charge(tokens)
            self._requests, self._tokens = self._requests + 1, self._tokens + tokens
            self._latest = self._clock()
            if self._pace.limited:
                self._learnt.send(self._latest)
            return self._latest

    def settle(self, estimated: int, actual: int, sent_at: float | None = None) -> None:
        """Charge or refund what the usage reported differs from what was admitted at `sent_at`."""
        self._account.charge(actual - estimated, sent_at, estimate=estimated)

    def succeeded(self, sent_at: float | None = None) -> None:
        """A request admitted at `sent_at` was answered; the oldest under way if that is None."""
        now = self._clock()
        self._health.succeeded(now)
        self._mended.set()
        if self._learnt.let_in(now, sent_at):
            self._begin_climb(self._start_speed)
        self._answered.set()

    def failed(
        self, reason: str, *, broken: bool, blamed: bool = False, sent_at: float | None = None
    ) -> None:
        """A request admitted at `sent_at` was not answered, or not with a rerank answer
        (`broken`); one that is `blamed` fails by itself. Raises `ContractBroken` once nothing else
        has ever come.
        """
        self._learnt.lose(sent_at)
        self._answered.set()
        self._health.failed(self._clock(), reason, broken=broken, blamed=blamed)
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
        self._learnt.refuse(now, sent_at, self.speed, after_seconds)
        self._answered.set()

    @property
    def speed(self) -> float:
        """The share of the configured rate that is in use now."""
        now = self._clock()
        ceiling = self._ceiling(now)
        if self._ramp_seconds <= 0:
            return ceiling
        climbed = (now - self._ramp_since) / self._ramp_seconds
        return min(ceiling, self._climb_from + (1 - self._start_speed) * climbed)

    @property
    def served(self) -> Served:
        """What was let through so far, and waited for."""
        waited = self.waited_seconds["requests"] + self.waited_seconds["tokens"]
        if self._waiting_since is not None:
            waited += self._clock() - self._waiting_since
        return Served(self._requests, self._tokens, waited)

    def resume_after(self, seconds: float) -> None:
        """Rise from nothing again after the process stood still for so long (it was stopped, or
        the machine slept), which is no outage of the endpoint's.
        """
        self._health.exclude(seconds)
        self._begin_climb(self._start_speed)

    @property
    def pacing(self) -> Pacing:
        """How fast requests go, and will go, for an estimate of the time left."""
        now, ramp, served = self._clock(), self._ramp_seconds, self.served
        return Pacing(
            speed=self.speed,
            climb_per_second=(1 - self._start_speed) / ramp if ramp > 0 else 0.0,
            ceiling=self._ceiling(now),
            start_speed=self._start_speed,
            admitted=served.requests,
            waited_seconds=served.waited,
            pause_seconds=max(0.0, self._paused_until - now),
            is_open=self._health.is_open,
        )

    @property
    def trouble(self) -> Trouble | None:
        """The failures since the last answer, or the pause that was asked for; None if all is
        well.
        """
        now, health = self._clock(), self._health
        pause = max(0.0, self._paused_until - now)
        if health.is_well and not pause:
            return None
        gives_up = self._max_outage_seconds - health.down_for(now)
        return Trouble(health.last_reason, pause, health.is_open, max(0.0, gives_up))

    def share_changed(self) -> None:
        """What is held is another: whoever waits is to look again."""
        self._follow_share()
        self._changed.set()

    def _follow_share(self) -> None:
        """A larger share is climbed into from what is in use, a smaller one counts at once."""
        if self._held is None:
            return
        share = self._held.share(self._clock())
        if share != self._share:
            in_use = self._share * self.speed
            self._share = share
            self._learnt.forget_minute()
            self._account.share_of(share, self._held.fair, self._turn_seconds)
            self._begin_climb(max(self._start_speed, min(1.0, in_use / share)) if share else 0.0)

    def _ceiling(self, now: float) -> float:
        return self._learnt.ceiling(now, self._per_second * self._share)

    async def _learnt_limits_allow(self) -> None:
        """Wait until the limits that were learnt allow a request; an answer may change them."""
        while (wait := self._learnt.wait(self._clock())) > 0:
            self._answered.clear()
            try:
                async with asyncio.timeout(min(wait, _LONGEST_ANSWER_SECONDS)):
                    await self._answered.wait()
            except TimeoutError:
                if wait > _LONGEST_ANSWER_SECONDS:  # what nobody hears of holds no place
                    self._learnt.lose_oldest()

    def _begin_climb(self, speed: float) -> None:
        self._climb_from, self._ramp_since = speed, self._clock()

    def _speed_now(self) -> float:
        self._follow_share()
        return self.speed

    @property
    def _idle_seconds(self) -> float:
        """Of a small share requests are far apart, and that is no idleness."""
        if self._held is None:
            return _IDLE_SECONDS
        return max(_IDLE_SECONDS, 2 * self._turn_seconds)

    @property
    def _turn_seconds(self) -> float:
        """How far apart the requests of the share are."""
        rate = self._per_second * self._share
        return 1 / rate if rate else 0.0

    def _still_has_room_for(self, tokens: int) -> bool:
        self._follow_share()
        return self._held is None or self._account.wait_for(tokens) <= 0

    async def _wait(self, seconds: float) -> None:
        """So long, or until the share is another."""
        if self._held is None:
            await asyncio.sleep(seconds)
            return
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, self._until_share_changes())):
                await self._changed.wait()
        self._follow_share()

    def _until_share_changes(self) -> float:
        assert self._held is not None
        now = self._clock()
        return max(0.0, min(self._held.changes_at(now) - now, 60.0))

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
            self._begin_climb(self._start_speed)

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
            began, speed = self._clock(), self.speed
            while (wait := self._paused_until - self._clock()) > 0:
                await asyncio.sleep(wait)
            short = self._clock() - began <= _SHORT_PAUSE_SECONDS
            self._begin_climb(max(self._start_speed, speed) if short else self._start_speed)

    async def _timed(self, what: str, wait: Awaitable[None]) -> None:
        began, self.waits_for = self._clock(), what
        if what in ("requests", "tokens"):
            self._waiting_since = began
        try:
            await wait
        finally:
            self._waiting_since = self.waits_for = None
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

    async def turn(self, speed: Callable[[], float]) -> None:
        if self._limiter is None:
            return
        if not self._started:
            self._started = True
            await self._limiter.acquire(self._most)  # an empty bucket to begin with
        cost = 1 / speed()
        # What a cancelled turn had in hand is let go of, or cancels would add up to a burst.
        self._in_hand = min(self._in_hand, self._bunch) if self._bunch > 1 else 0.0
        while self._in_hand < cost - 1e-9:
            amount = self._bunch if self._bunch > 1 else min(cost - self._in_hand, self._most)
            await self._limiter.acquire(amount)
            self._in_hand += amount
        self._in_hand -= cost
