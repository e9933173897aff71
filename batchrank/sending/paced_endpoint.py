"""The endpoint as dispatch knows it: dialect, throttle, budget and transport in one.

Part of the composition: what each of these learns from an exchange is decided here, and nowhere
else. Whatever ends the run is set on `halt`, and the request that met it is dropped.
"""

import asyncio
from collections.abc import Sequence

from batchrank.config.settings import JobConfig
from batchrank.errors import BatchrankError, CostReached
from batchrank.pacing.budget import Budget
from batchrank.pacing.throttle import Throttle
from batchrank.sending.halt import DRAIN_SECONDS, Halt
from batchrank.sending.http_client import Transport
from batchrank.sending.verdicts import Again, Exchange, GiveUp, Halve, Stop, Verdict, Without
from batchrank.state.checkpoint import Checkpoint
from batchrank.state.history import Series
from batchrank.wire import DIALECTS, Ask
from batchrank.wire.replies import Scores


def encode(config: JobConfig, query: str, documents: Sequence[str]) -> bytes:
    """The body of a request in the endpoint's dialect."""
    endpoint, provider = config.endpoint, config.provider
    ask = Ask(
        model=endpoint.model,
        query=query,
        documents=documents,
        top_n=len(documents) if provider.fields.top_n else None,
        instruct=endpoint.instruct or None,
    )
    return DIALECTS[provider.dialect].request(ask, provider.fields)


class Link:
    """The endpoint as dispatch knows it: dialect, throttle, budget and transport in one."""

    def __init__(
        self,
        config: JobConfig,
        transport: Transport,
        throttle: Throttle,
        budget: Budget,
        checkpoint: Checkpoint,
        halt: Halt,
        series: Series,
    ) -> None:
        self._config = config
        self._price = config.price
        self._transport = transport
        self._throttle = throttle
        self._budget = budget
        self._checkpoint = checkpoint
        self._halt = halt
        self._series = series
        self._clock = asyncio.get_running_loop().time
        self._in_flight: dict[int, float] = {}
        self._sent = 0
        self.slowest_seconds = 0.0
        self._settled = asyncio.Event()

    def encode(self, query: str, documents: Sequence[str]) -> bytes:
        return encode(self._config, query, documents)

    async def admit(self, tokens: int, documents: int) -> float:
        """Wait for the disk, for the budget and its lease, and last for the throttle: a request is
        sent at the instant of its permission.
        """
        try:
            if self._checkpoint.is_behind:
                await self._checkpoint.wait_while_behind()
            if self._budget.capped:
                sent_at = await self._admit_within_budget(tokens, documents)
            else:
                sent_at = await self._throttle.admit(tokens)
        except BatchrankError as error:
            self._halt.set(error)
            raise asyncio.CancelledError from None
        self._series.sent()
        return sent_at

    async def _admit_within_budget(self, tokens: int, documents: int) -> float:
        units = self._price.most(tokens, documents)
        await self._reserve(units)
        try:
            await self._cover(self._budget.total)
            return await self._throttle.admit(tokens)
        except BaseException:
            self._settle(units, 0)
            raise

    async def _reserve(self, units: int) -> None:
        """Set units aside. While others may turn out cheaper than they were reserved, wait."""
        while not self._budget.reserve(units):
            if not self._budget.reserved:
                raise CostReached(
                    "stopped before the cost could pass --max-cost; the same command with a higher "
                    "one goes on from here."
                )
            self._settled.clear()
            await self._settled.wait()

    async def _cover(self, total: int) -> None:
        """Wait until a durable lease covers so many units."""
        lease = self._budget.extend_lease()
        if lease is not None:
            self._checkpoint.lease(lease)
        while self._checkpoint.leased < total:
            await self._checkpoint.durable()

    def _settle(self, reserved: int, billed: int | None) -> None:
        self._budget.settle(reserved, billed)
        self._settled.set()

    async def exchange(self, body: bytes, documents: int) -> Exchange:
        self._sent += 1
        number, began = self._sent, self._clock()
        self._in_flight[number] = began
        try:
            return await self._transport.exchange(body, documents)
        finally:
            del self._in_flight[number]

    @property
    def unanswered(self) -> tuple[int, float]:
        """How many requests are in flight, and for how many seconds the oldest has been."""
        if not self._in_flight:
            return 0, 0.0
        return len(self._in_flight), self._clock() - next(iter(self._in_flight.values()))

    def learn(self, verdict: Verdict, sent_at: float, tokens: int, documents: int) -> None:
        read: int | None = 0
        billed: int | None = 0
        if isinstance(verdict, Scores):
            read = tokens if verdict.tokens is None else verdict.tokens
            billed = self._price.billed(verdict)
        elif isinstance(verdict, Again) and verdict.at_risk:
            read = billed = None
        if read is not None:
            self._throttle.settle(tokens, read, sent_at)
        if self._budget.capped:
            self._settle(self._price.most(tokens, documents), billed)
        if isinstance(verdict, Scores):
            seconds = self._clock() - sent_at
            self.slowest_seconds = max(self.slowest_seconds, seconds)
            self._series.answered(seconds, read or 0)
        else:
            throttled = isinstance(verdict, Again) and verdict.throttled
            self._series.unanswered(_reason(verdict), throttled=throttled)
        if not isinstance(verdict, Again):
            self._throttle.succeeded(sent_at)
            return
        if verdict.throttled:
            self._throttle.throttled(sent_at, verdict.after_seconds)
        try:
            self._throttle.failed(
                verdict.reason,
                broken=verdict.broken,
                blamed=verdict.blamed,
                sent_at=sent_at,
            )
        except BatchrankError as error:
            self._halt.set(error, DRAIN_SECONDS)


def _reason(verdict: Again | Halve | Without | GiveUp | Stop) -> str:
    return str(verdict.error) if isinstance(verdict, Stop) else verdict.reason
