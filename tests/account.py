"""An account that workers share, in virtual time: real throttles, leases and coordinator.

Only the network between worker and coordinator is replaced, by a little time. Workers come, are
busy or idle, are killed (nothing is said) or leave; the coordinator is killed and begun anew
without memory. What is kept is when each request was let through: the server's models judge that.
"""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

from msgspec.structs import replace

from batchrank.account.coordinator import Ask, Coordinator, Lease, Refusal
from batchrank.account.worker import ASK_SECONDS, Leasing
from batchrank.config.limits import RateLimits
from batchrank.errors import BatchrankError
from batchrank.pacing.throttle import Throttle

UNIX = 1_790_000_000.0
"""The instant at which virtual time begins."""


class Account:
    """The coordinator, the workers, and what went through. `random` None: an even network."""

    def __init__(self, rate: RateLimits, workers: int, random: Random | None = None) -> None:
        self.rate = rate
        self.workers = workers
        self.admitted: list[tuple[float, int]] = []
        self.by: list[int] = []
        self.coordinator: Coordinator | None = None
        self.random = random or Random(7)
        self._evenly = random is None
        self._clock = asyncio.get_running_loop().time

    def begin(self) -> None:
        """Start a coordinator, which knows nothing."""
        self.coordinator = Coordinator(
            self.workers,
            self._clock(),
            requests_per_minute=self.rate.requests_per_minute,
            tokens_per_minute=self.rate.tokens_per_minute,
        )

    def kill(self) -> None:
        """The coordinator is gone, with all that it knew."""
        self.coordinator = None

    async def ask(self, ask: Ask) -> Lease | Refusal | None:
        """What a worker's request to the coordinator comes to."""
        await self._travel()
        answer = None
        if self.coordinator is not None:
            answer = self.coordinator.renew(ask, self._clock())
            if isinstance(answer, Lease):
                answer = replace(answer, instant=UNIX + self._clock())
        if not self._evenly and self.random.random() < 0.02:  # the answer is lost
            await asyncio.sleep(ASK_SECONDS)
            return None
        await self._travel()
        return answer

    async def _travel(self) -> None:
        await asyncio.sleep(0.002 if self._evenly else self.random.uniform(0.0005, 0.01))

    def worker(
        self,
        number: int,
        size: Callable[[], int] = lambda: 1,
        *,
        fixed: bool = True,
        in_flight: int = 4,
        busy: bool = True,
        skew: float = 0.0,
        answer_seconds: float = 0.0,
    ) -> "Worker":
        """A worker of the account, which begins at once."""
        return Worker(self, number, size, fixed, in_flight, busy, skew, answer_seconds)


class Worker:
    """One worker: `busy` may be set at any time."""

    def __init__(
        self,
        account: Account,
        number: int,
        size: Callable[[], int],
        fixed: bool,
        in_flight: int,
        busy: bool,
        skew: float,
        answer_seconds: float,
    ) -> None:
        self.number = number
        self.error: BatchrankError | None = None
        self.leasing: Leasing | None = None
        self._account = account
        self._size = size
        self._in_flight = in_flight
        self.answer_seconds = answer_seconds
        self._work = asyncio.Event()
        self.busy = busy
        shard = (number, account.workers) if fixed else None
        self._life = asyncio.create_task(self._live(shard, skew))

    @property
    def busy(self) -> bool:
        """Whether there is always a next request."""
        return self._work.is_set()

    @busy.setter
    def busy(self, busy: bool) -> None:
        (self._work.set if busy else self._work.clear)()

    async def kill(self) -> None:
        """It is gone, and nobody is told."""
        self._life.cancel()
        await asyncio.gather(self._life, return_exceptions=True)

    async def leave(self) -> None:
        """It is done, and says so."""
        await self.kill()
        if self.leasing is not None:
            await self.leasing.leave()

    async def _live(self, shard: tuple[int, int] | None, skew: float) -> None:
        clock = asyncio.get_running_loop().time
        leasing = Leasing(
            self._account.ask,
            self._account.rate,
            shard=shard,
            unix=lambda: UNIX + clock() + skew,
        )
        try:
            await leasing.begin()
        except BatchrankError as error:
            self.error = error
            return
        self.leasing = leasing
        throttle = Throttle(self._account.rate, held=leasing.holding)
        async with asyncio.TaskGroup() as group:
            group.create_task(leasing.keep(throttle))
            for _ in range(self._in_flight):
                group.create_task(self._send(throttle.admit))

    async def _send(self, admit: Callable[[int], Awaitable[float]]) -> None:
        account = self._account
        while True:
            await self._work.wait()
            size = self._size()
            account.admitted.append((await admit(size), size))
            account.by.append(self.number)
            await asyncio.sleep(self.answer_seconds * account.random.uniform(0.5, 1.5))
