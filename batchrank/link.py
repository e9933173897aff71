"""The endpoint as dispatch knows it: dialect, throttle, budget and transport in one.

Part of the composition: what each of these learns from an exchange is decided here, and nowhere
else. Whatever ends the run is set on `halt`, and the request that met it is dropped.
"""

import asyncio
from collections.abc import Sequence

from batchrank.budget import Budget, ceiling
from batchrank.checkpoint import Checkpoint
from batchrank.config import JobConfig
from batchrank.dispatch import DRAIN_SECONDS, Halt
from batchrank.errors import BatchrankError, CostReached
from batchrank.retry import Again, Exchange, GiveUp, Halve, Stop, Verdict, Without
from batchrank.series import Series
from batchrank.throttle import Throttle
from batchrank.transport import Transport
from batchrank.wire import DIALECTS, Ask
from batchrank.wire.answers import Scores


def encode(config: JobConfig, query: str, documents: Sequence[str]) -> bytes:
    """The body of a request in the endpoint's dialect."""
    endpoint = config.endpoint
    ask = Ask(
        model=endpoint.model,
        query=query,
        documents=documents,
        instruct=endpoint.instruct or None,
    )
    return DIALECTS[config.provider.dialect].request(ask)


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
        self._transport = transport
        self._throttle = throttle
        self._budget = budget
        self._checkpoint = checkpoint
        self._halt = halt
        self._series = series
        self._clock = asyncio.get_running_loop().time
        self._spending = asyncio.Lock()

    @property
    def successes(self) -> int:
        return self._throttle.successes

    def encode(self, query: str, documents: Sequence[str]) -> bytes:
        return encode(self._config, query, documents)

    async def admit(self, tokens: int, documents: int) -> float:
        try:
            sent_at = await self._throttle.admit(tokens)
            if self._budget.capped:
                async with self._spending:
                    await self._reserve(ceiling(tokens, documents))
        except BatchrankError as error:
            self._halt.set(error)
            raise asyncio.CancelledError from None
        self._series.sent()
        return sent_at

    async def _reserve(self, tokens: int) -> None:
        if not self._budget.reserve(tokens):
            raise CostReached(
                "stopped before the cost could pass --max-cost; the same command with a higher "
                "one goes on from here."
            )
        lease = self._budget.wanted_lease()
        if lease is None:
            return
        loop, durable = asyncio.get_running_loop(), asyncio.Event()

        self._checkpoint.lease(lease)
        self._checkpoint.flush(lambda: loop.call_soon_threadsafe(durable.set))
        await durable.wait()

    async def exchange(self, body: bytes, documents: int) -> Exchange:
        return await self._transport.exchange(body, documents)

    def learn(self, verdict: Verdict, sent_at: float, tokens: int, documents: int) -> None:
        billed: int | None = 0
        if isinstance(verdict, Scores):
            billed = tokens if verdict.tokens is None else verdict.tokens
        elif isinstance(verdict, Again) and verdict.at_risk:
            billed = None
        if billed is not None:
            self._throttle.settle(tokens, billed, sent_at)
        if self._budget.capped:
            self._budget.settle(ceiling(tokens, documents), billed)
        if isinstance(verdict, Scores):
            self._series.answered(self._clock() - sent_at, billed or 0)
        else:
            throttled = isinstance(verdict, Again) and verdict.throttled
            self._series.unanswered(_reason(verdict), throttled=throttled)
        if not isinstance(verdict, Again):
            self._throttle.succeeded()
            return
        if verdict.throttled:
            self._throttle.throttled(sent_at, verdict.after_seconds)
        try:
            self._throttle.failed(verdict.reason, broken=verdict.broken)
        except BatchrankError as error:
            self._halt.set(error, DRAIN_SECONDS)


def _reason(verdict: Again | Halve | Without | GiveUp | Stop) -> str:
    return str(verdict.error) if isinstance(verdict, Stop) else verdict.reason
