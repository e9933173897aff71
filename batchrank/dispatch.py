"""Plans into outcomes, inside one task group.

All tasks of the program live here and end here. Order is not kept: assembly restores it. No clock
and no socket is in this file, and no rule of what an answer means; they arrive as arguments.

A plan is taken up only when there is a place in flight for it, so memory is bounded by those: no
texts and no bodies wait for one. A request that waits to be sent again gives its place to others,
and four plans are held for each place at the most. `record` is not async: nothing can be cancelled
between an answer's arrival and its being written down. Once `halt` is set nothing more is sent, and
what is in flight is drained.
"""

import asyncio
import logging
from array import array
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from math import nan
from random import Random
from typing import Protocol, TypeVar

import msgspec

from batchrank.errors import BatchrankError
from batchrank.pricing import IMPLAUSIBLE, Price
from batchrank.records import (
    Dropped,
    Failed,
    Outcome,
    RequestPlan,
    Scored,
    Share,
    Slot,
    Spent,
    row_of,
)
from batchrank.retry import (
    MAX_ATTEMPTS,
    MAX_ATTEMPTS_ALONE,
    Again,
    Exchange,
    GiveUp,
    Halve,
    Stop,
    Verdict,
    Without,
    judge,
    waits,
)
from batchrank.wire.answers import Scores

PLANS_PER_FLIGHT = 4
"""Plans held for each place in flight at the most: those beyond one wait to be sent again."""

DRAIN_SECONDS = 2.5
"""How long a stopped run waits for answers in flight; Airflow kills 5 s after its SIGTERM."""

FREE = Price()

_log = logging.getLogger(__name__)
T = TypeVar("T")
_Tasks = set[asyncio.Task[object]]


class Endpoint(Protocol):
    """What dispatch is handed: a request's bytes, leave to send it, the sending of it."""

    def encode(self, query: str, documents: Sequence[str]) -> bytes:
        """The body of a request."""

    async def admit(self, tokens: int, documents: int) -> float:
        """Wait for a request's turn; the instant of its permission."""

    async def exchange(self, body: bytes, documents: int) -> Exchange:
        """Send a body; what came back."""

    def learn(self, verdict: Verdict, sent_at: float, tokens: int, documents: int) -> None:
        """What became of a request admitted at that instant with so many tokens."""

    @property
    def successes(self) -> int:
        """Requests answered so far, this plan's or another's."""


class Halt:
    """Set once, with the reason; whoever waits in `unless_halted` is woken and sends nothing."""

    def __init__(self) -> None:
        self.reason: BatchrankError | None = None
        self._waiting: _Tasks = set()
        self._sending: _Tasks = set()

    def set(self, reason: BatchrankError, drain_seconds: float | None = None) -> None:
        """Stop sending. Answers in flight are waited for, `drain_seconds` at the most if given."""
        if self.reason is not None:
            return
        self.reason = reason
        for task in self._waiting - {asyncio.current_task()}:
            task.cancel()
        if drain_seconds is not None:
            asyncio.get_running_loop().call_later(drain_seconds, self.abandon)

    def abandon(self) -> None:
        """Wait for no answer any longer: their outcomes stay unknown."""
        for task in self._sending:
            task.cancel()

    def unless_halted(self, step: Awaitable[T]) -> Awaitable[T]:
        """Await a step that may be given up when the run ends. Raises `Halted` then."""
        if self.reason is not None:
            if asyncio.iscoroutine(step):
                step.close()
            raise Halted
        return self._within(self._waiting, step)

    def unless_abandoned(self, step: Awaitable[T]) -> Awaitable[T]:
        """Await an answer that has been asked for. Raises `Halted` when no longer waited for."""
        return self._within(self._sending, step)

    async def place(self, room: asyncio.Semaphore) -> None:
        """Take a place, at once where one is free. Raises `Halted`."""
        if self.reason is None and not room.locked():
            await room.acquire()
        else:
            await self.unless_halted(room.acquire())

    async def _within(self, tasks: _Tasks, step: Awaitable[T]) -> T:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            return await step
        except asyncio.CancelledError:
            if self.reason is None:
                raise
            task.uncancel()
            raise Halted from None
        finally:
            tasks.discard(task)


class Halted(Exception):
    """The run is ending, and this step was given up for it."""


async def dispatch(
    plans: AsyncGenerator[Sequence[RequestPlan], None],
    *,
    board: Callable[[], Awaitable[None]],
    settle: Callable[[RequestPlan], Awaitable[Outcome]],
    record: Callable[[RequestPlan, Outcome], None],
    max_in_flight: int,
    halt: Halt,
) -> None:
    """Settle every plan and record its outcome; return when all are recorded, or are drained.
    Plans come a chunk's at a time. `board` waits for the place in flight that `settle` starts from.
    """
    room = asyncio.Semaphore(max_in_flight * PLANS_PER_FLIGHT)

    async def carry(plan: RequestPlan) -> None:
        try:
            record(plan, await settle(plan))
        finally:
            room.release()

    async with aclosing(plans) as upcoming, asyncio.TaskGroup() as group:
        while halt.reason is None:
            try:
                for plan in await halt.unless_halted(anext(upcoming)):
                    await halt.place(room)
                    await board()
                    group.create_task(carry(plan))
            except (Halted, StopAsyncIteration):
                break


class Sender:
    """Asks until a plan is settled: again, in halves, or without a refused document; only ever as
    it is if `whole`, which the scores of a model that reads a list as a whole demand.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        max_in_flight: int,
        halt: Halt,
        random: Random,
        price: Price = FREE,
        whole: bool = False,
    ) -> None:
        self._endpoint = endpoint
        self._flights = asyncio.Semaphore(max_in_flight)
        self._halt = halt
        self._random = random
        self._price = price
        self._whole = whole
        self._refused: list[_Refused] = []
        self.requests = self.retries = 0
        self._warned = False

    async def board(self) -> None:
        """Wait for a place in flight. Raises `Halted`."""
        await self._halt.place(self._flights)

    async def settle(self, plan: RequestPlan) -> Outcome:
        """The plan's outcome, however many requests it takes. The first goes from the place that
        its caller has boarded; each gives its own back.
        """
        tally = _Tally()
        whole = _Part(range(len(plan.documents)))
        try:
            verdict, body_bytes = await self._ask(plan, whole.documents, tally)
            if isinstance(verdict, Scores):
                scores = array("d", verdict.relevance_scores)
                return Scored(plan.plan_id, scores, 1, tally.spent(plan))
            return await self._settle_in_parts(plan, whole, verdict, body_bytes, tally)
        except Halted:
            return Dropped(plan.plan_id, tally.spent())
        finally:
            if tally.aboard:  # nothing was sent at all
                self._flights.release()

    async def _settle_in_parts(
        self, plan: RequestPlan, part: "_Part", verdict: Verdict, body_bytes: int, tally: "_Tally"
    ) -> Outcome:
        """What a plan comes to that was not answered as a whole, from its first verdict on."""
        scores = array("d", [nan]) * len(plan.documents)
        answer_of = [-1] * len(plan.documents)
        blamed: list[_Blamed] = []
        answers = 0
        work: list[_Part] = []
        while True:
            if self._whole and isinstance(verdict, Halve | Without):
                verdict = GiveUp(
                    f"{verdict.reason}; this model scores a list as a whole: not split"
                )
            match verdict:
                case Scores(relevance_scores=found):
                    self._remember(part)
                    for document, score in zip(part.documents, found, strict=True):
                        scores[document] = score
                        answer_of[document] = answers
                    answers += 1
                    if part.blamed is not None:
                        blamed.append(([part.blamed], part.reason))
                case Without(index=index, reason=reason) if part.whole is None and len(part) > 1:
                    work.insert(0, part.without(index, reason))
                case Halve(reason=reason) | Without(reason=reason) if len(part) > 1:
                    by_size = isinstance(verdict, Halve) and verdict.size
                    work[:0] = part.halves(_Refused(len(part), body_bytes) if by_size else None)
                case Halve(reason=reason) | Without(reason=reason) | GiveUp(reason=reason):
                    blamed.append((part.documents, reason))
                case Stop(error=error):
                    self._halt.set(error, DRAIN_SECONDS)
                    raise Halted
            if not work:
                break
            part = work.pop(0)
            verdict, body_bytes = await self._ask(plan, part.documents, tally)
        shares = [_share(slot, answer_of, blamed) for slot in plan.slots]
        note, shares = shares[0].note, shares if len(shares) > 1 else []
        if not answers:
            return Failed(plan.plan_id, note or "", tally.spent(), shares)
        return Scored(plan.plan_id, scores, answers, tally.spent(plan), note, shares)

    def _remember(self, part: "_Part") -> None:
        """What was too large as a whole and is not in halves was refused for its size in all, not
        for one document's: nothing as large is sent again in this run.
        """
        if part.half_of is not None:
            part.half_of.accepted += 1
            if part.half_of.accepted == 2:
                self._refused.append(part.half_of)

    async def _ask(
        self, plan: RequestPlan, documents: Sequence[int], tally: "_Tally"
    ) -> tuple[Verdict, int]:
        """A request's verdict once it is not "again", and its size in bytes."""
        count = len(documents)
        whole = count == len(plan.documents)
        texts = plan.documents if whole else [plan.documents[document] for document in documents]
        body = self._endpoint.encode(plan.query, texts)
        if self._refused and any(
            count >= known.documents and len(body) >= known.bytes for known in self._refused
        ):
            return Halve("a request of no greater size was refused", size=True), len(body)
        pauses: dict[bool, Iterator[float]] = {}
        failures = alone = 0
        again = False
        while True:
            before = self._endpoint.successes
            verdict = await self._exchange(body, count, plan.tokens, tally, again=again)
            if not isinstance(verdict, Again):
                return verdict, len(body)
            if not verdict.throttled:
                # While nothing succeeds the endpoint is to blame, not the request.
                held = verdict.answered or self._endpoint.successes > before
                failures, alone = failures + held, alone + (not held)
            if failures == MAX_ATTEMPTS or alone == MAX_ATTEMPTS_ALONE:
                tried = failures + alone
                given_up = f"given up after {tried} failed requests: {verdict.reason}"
                return GiveUp(given_up), len(body)
            flag = verdict.throttled
            pauses[flag] = pauses.get(flag) or waits(self._random, throttled=flag)
            pause = max(verdict.after_seconds or 0.0, next(pauses[flag]))
            _log.debug("row %d: %s; again in %.1f s", row_of(plan.plan_id), verdict.reason, pause)
            await self._halt.unless_halted(asyncio.sleep(pause))
            again = True

    async def _exchange(
        self, body: bytes, documents: int, tokens: int, tally: "_Tally", *, again: bool
    ) -> Verdict:
        most = self._price.most(tokens, documents)
        if not tally.aboard:
            await self.board()
            tally.aboard = True
        try:
            sent_at = await self._halt.unless_halted(self._endpoint.admit(tokens, documents))
            tally.sent(most)
            tally.retries += again
            self.requests, self.retries = self.requests + 1, self.retries + again
            answer = await self._halt.unless_abandoned(self._endpoint.exchange(body, documents))
        finally:
            tally.aboard = False
            self._flights.release()
        verdict = judge(answer, documents)
        if isinstance(verdict, Scores):
            plausible = self._price.plausible(verdict, tokens, documents)
            if plausible is not verdict:
                self._warn_of_implausible_usage()
                tally.implausible += 1
            verdict = plausible
            tally.tokens += tokens if verdict.tokens is None else verdict.tokens
            tally.bill(self._price.billed(verdict), self._price.likely(tokens, documents), most)
        if not (isinstance(verdict, Again) and verdict.possibly_paid):
            tally.unknown -= 1
        if not (isinstance(verdict, Again) and verdict.at_risk):
            tally.at_risk -= most
        self._endpoint.learn(verdict, sent_at, tokens, documents)
        return verdict

    def _warn_of_implausible_usage(self) -> None:
        """Say it once: the receipt counts such answers."""
        if not self._warned:
            self._warned = True
            _log.warning(
                "an answer says it used more than %d times what its request can have used, or less "
                "than nothing: of such answers the most that it can is counted.",
                IMPLAUSIBLE,
            )


class _Tally(msgspec.Struct, gc=False):
    """What a plan has spent so far. `unknown`: sent, and no whole answer came, or not yet.
    `aboard`: it has a place in flight.
    """

    aboard: bool = True
    requests: int = 0
    retries: int = 0
    unknown: int = 0
    at_risk: int = 0
    tokens: int = 0
    units: int = 0
    implausible: int = 0

    def sent(self, most: int) -> None:
        """A request is on its way that may be billed so many units."""
        self.requests += 1
        self.unknown += 1
        self.at_risk += most

    def bill(self, billed: int | None, likely: int, most: int) -> None:
        """Add an answer's bill. Where it does not say, the rest of the most it may be stays at
        risk.
        """
        self.units += likely if billed is None else billed
        if billed is None:
            self.at_risk += most - likely

    def spent(self, answered: RequestPlan | None = None) -> Spent:
        """`answered`: the plan, if it was; what it was likely to cost counts then."""
        return Spent(
            self.requests,
            self.retries,
            self.unknown,
            self.at_risk,
            self.tokens,
            0 if answered is None else answered.estimate,
            self.units,
            0 if answered is None else answered.estimate * answered.counted,
            self.implausible,
        )


class _Refused:
    """A request that was too large, and how many of its halves were not."""

    def __init__(self, documents: int, size: int) -> None:
        self.documents = documents
        self.bytes = size
        self.accepted = 0


class _Part:
    """Some documents of a plan, to be asked for in one request. `whole` is what they were taken
    from when the endpoint blamed one document: should it refuse the others too, it was wrong.
    `half_of` is the request that was too large, if these are a half of it.
    """

    def __init__(
        self,
        documents: Sequence[int],
        *,
        whole: Sequence[int] | None = None,
        blamed: int | None = None,
        reason: str = "",
        half_of: _Refused | None = None,
    ) -> None:
        self.documents = documents
        self.whole = whole
        self.blamed = blamed
        self.reason = reason
        self.half_of = half_of

    def __len__(self) -> int:
        return len(self.whole or self.documents)

    def without(self, index: int, reason: str) -> "_Part":
        others = [document for document in self.documents if document != self.documents[index]]
        return _Part(others, whole=self.documents, blamed=self.documents[index], reason=reason)

    def halves(self, refused: _Refused | None) -> "list[_Part]":
        documents = self.whole or self.documents
        middle = (len(documents) + 1) // 2
        return [_Part(half, half_of=refused) for half in (documents[:middle], documents[middle:])]


_Blamed = tuple[Sequence[int], str]


def _share(slot: Slot, answer_of: Sequence[int], blamed: Sequence[_Blamed]) -> Share:
    """What a row has of a request that was not answered as a whole: documents are named by the
    first of the row's candidates that they stand for.
    """
    notes = []
    for documents, reason in blamed:
        own = set(slot.documents).intersection(documents)
        if own:
            names = [slot.positions[slot.documents.index(document)] for document in own]
            notes.append(f"{_listed(names)}: {reason}")
    answers = {answer_of[document] for document in slot.documents} - {-1}
    return Share(sorted(answers), "; ".join(notes) or None)


def _listed(candidates: Sequence[int]) -> str:
    if len(candidates) == 1:
        return f"document {candidates[0]}"
    return f"documents {min(candidates)} to {max(candidates)}"
