"""A worker's share of an account, renewed while it works.

A lease is renewed when half of it is over; earlier where the coordinator says so, where the worker
gave something back, or got hungry. Whoever is out of reach is asked again and again, and `Holding`
says what is safe meanwhile.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from uuid import uuid4

import aiohttp
import msgspec

from batchrank.account.coordinator import LEASE_SECONDS, Ask, Lease, Refusal
from batchrank.account.secret import find_secret
from batchrank.account.share import Holding
from batchrank.config.limits import RateLimits
from batchrank.config.settings import COORDINATOR_KEY
from batchrank.errors import ConfigInvalid, TryLater
from batchrank.pacing.throttle import Served, Throttle

LOOK_SECONDS = 1.0
"""How often a worker looks whether it is hungry."""

ASK_SECONDS = 2.0
LEAVE_SECONDS = 0.5
RETRY_SECONDS = LEASE_SECONDS / 4
_ANSWER_BYTES = 4 << 20
_NOT_LET_IN = (
    f"the secret is wrong or missing. A worker of the coordinator's user, on its machine, finds it "
    f"by itself; others are given it in {COORDINATOR_KEY}."
)

Asking = Callable[[Ask], Awaitable[Lease | Refusal | None]]
"""Asks the coordinator; None where it is out of reach."""

_log = logging.getLogger(__name__)


class Leasing:
    """One worker's share, and its renewal. `ask` reaches the coordinator."""

    def __init__(
        self,
        ask: Asking,
        rate: RateLimits,
        *,
        shard: tuple[int, int] | None = None,
        clock: Callable[[], float] | None = None,
        unix: Callable[[], float] = time.time,
    ) -> None:
        self._ask = ask
        self._clock = clock or asyncio.get_running_loop().time
        now = self._clock()
        self.holding = Holding(
            uuid4().hex,
            now,
            requests_per_minute=rate.requests_per_minute,
            tokens_per_minute=rate.tokens_per_minute,
            shard=shard,
            offset=unix() - now,
        )
        self._knows_its_seat = shard is not None
        self._due = now
        self._in_reach = True

    async def begin(self) -> None:
        """Get a first lease, or know what is safe without. Raises `TryLater` where neither is to
        be had, `ConfigInvalid` where the coordinator divides another account.
        """
        until = self._clock() + LEASE_SECONDS
        refused = "it cannot be reached"
        while True:
            answer = await self.renew()
            if isinstance(answer, Lease) or (answer is None and self._knows_its_seat):
                return
            if isinstance(answer, Refusal):
                refused = answer.reason
                if not answer.later:
                    raise ConfigInvalid(f"--coordinator: {refused}")
            if self._clock() >= until:
                raise TryLater(
                    f"no lease from the coordinator: {refused}. Is it running, and is the address "
                    "right? With --shard i/N a worker goes on without it."
                )
            await asyncio.sleep(LOOK_SECONDS)

    @property
    def has_share(self) -> bool:
        """Whether any part of the account may be used now."""
        return self.holding.share(self._clock()) > 0

    async def renew(self) -> Lease | Refusal | None:
        """Ask once."""
        asked_at = self._clock()
        answer = await self._ask(self.holding.ask(asked_at))
        now = self._clock()
        if isinstance(answer, Lease):
            lost = self.holding.answered(answer, asked_at, now)
            self._due = now if lost else asked_at + answer.again_seconds
        else:
            self._due = now + RETRY_SECONDS
            if isinstance(answer, Refusal) and answer.unseated:
                self.holding.unseated()
        self._tell(answer)
        return answer

    async def keep(self, throttle: Throttle) -> None:
        """Renew for as long as this runs, and let the throttle know."""
        looked, before = self._clock(), throttle.served
        while True:
            await asyncio.sleep(max(0.0, min(LOOK_SECONDS, self._due - self._clock())))
            now, served = self._clock(), throttle.served
            if now - looked >= LOOK_SECONDS / 2:
                hungry = self._look(before, served, now - looked)
                looked, before = now, served
                if hungry:
                    self._due = now
            if now >= self._due:
                await self.renew()
                throttle.share_changed()

    async def leave(self) -> None:
        """Give everything back, if that can be said quickly."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._ask(self.holding.ask(self._clock(), leaving=True))

    def _look(self, before: Served, served: Served, seconds: float) -> bool:
        """Whether the worker has just become hungry."""
        was = self.holding.wants
        self.holding.used(
            served.requests - before.requests,
            served.tokens - before.tokens,
            served.waited - before.waited,
            seconds,
            self._clock(),
        )
        return self.holding.wants == 1.0 and was < 1.0

    def _tell(self, answer: Lease | Refusal | None) -> None:
        in_reach = isinstance(answer, Lease)
        if in_reach is self._in_reach:
            return
        self._in_reach = in_reach
        if in_reach:
            _log.warning("the coordinator answers again")
        else:
            why = f"refuses: {answer.reason}" if isinstance(answer, Refusal) else "is out of reach"
            _log.warning("the coordinator %s; going on with what is safe", why)


@asynccontextmanager
async def leased(
    url: str | None,
    shard: tuple[int, int] | None,
    rate: RateLimits,
    wait: Callable[[Awaitable[None]], Awaitable[None]],
) -> AsyncIterator[Leasing | None]:
    """A share leased from the coordinator at `url` while the block runs; None without one. The
    first is waited for by `wait`, which may give up.
    """
    if url is None:
        yield None
        return
    timeout = aiohttp.ClientTimeout(total=ASK_SECONDS)
    async with aiohttp.ClientSession(
        headers={"Content-Type": "application/json"},
        timeout=timeout,
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:

        async def ask(asked: Ask) -> Lease | Refusal | None:
            # Looked for each time: a coordinator that is begun anew may have another secret.
            secret = await asyncio.to_thread(find_secret, url)
            return await _asked(session, url.rstrip("/") + "/lease", secret, asked)

        leasing = Leasing(ask, rate, shard=shard)
        await wait(leasing.begin())
        try:
            yield leasing
        finally:
            await leasing.leave()


async def kept(leasing: Leasing | None, throttle: Throttle) -> None:
    """Keep the share renewed, where there is one."""
    if leasing is not None:
        await leasing.keep(throttle)


async def _asked(
    session: aiohttp.ClientSession, url: str, secret: str | None, ask: Ask
) -> Lease | Refusal | None:
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    try:
        async with session.post(
            url, data=msgspec.json.encode(ask), headers=headers, allow_redirects=False
        ) as response:
            if response.status == 401:
                return Refusal(reason=_NOT_LET_IN, later=False)
            if response.status == 403:
                return Refusal(reason="it does not know this address as its own", later=False)
            if response.content_length is None or response.content_length > _ANSWER_BYTES:
                return None
            return msgspec.json.decode(await response.read(), type=Lease | Refusal)
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError):
        return None
