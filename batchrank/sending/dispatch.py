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
from contextlib import aclosing, suppress
from math import inf, nan
from random import Random

import msgspec

from batchrank.config.pricing import IMPLAUSIBLE, Price
from batchrank.records import (
    Dropped,
    Failed,
    Outcome,
    RequestPlan,
    Scored,
    row_of,
)
from batchrank.sending.blame import Blame, Fault, most_in_vain
from batchrank.sending.endpoint import Endpoint
from batchrank.sending.halt import DRAIN_SECONDS, Halt, Halted
from batchrank.sending.request_parts import TRIES_OF_A_PART, Blamed, Part, Refused, share_of_slot
from batchrank.sending.tally import Tally
from batchrank.sending.verdicts import (
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
from batchrank.wire.replies import Scores

PLANS_PER_FLIGHT = 4
"""Plans held for each place in flight at the most: those beyond one wait to be sent again."""

FREE = Price()

_log = logging.getLogger(__name__)


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
        blame: Blame | None = None,
        max_outage_seconds: float = inf,
    ) -> None:
        self._endpoint = endpoint
        self._blame = blame or Blame()
        self._max_outage_seconds = max_outage_seconds
        self._flights = asyncio.Semaphore(max_in_flight)
        self._halt = halt
        self._random = random
        self._price = price
        self._whole = whole
        self._refused: list[Refused] = []
        self.requests = self.retries = 0
        self._warnings: set[str] = set()
        self._unanswered = 0
        self._answer_came = asyncio.Event()
        self._may_send = asyncio.Event()
        self._may_send.set()
        self.asked_pauses: dict[int, tuple[float, str]] = {}
        """Until when requests wait because a reply to them asked for it, and why, by plan id."""

    async def board(self) -> None:
        """Wait for a place in flight. Raises `Halted`."""
        await self._halt.place(self._flights)

    async def settle(self, plan: RequestPlan) -> Outcome:
        """The plan's outcome, however many requests it takes. The first goes from the place that
        its caller has boarded; each gives its own back.
        """
        tally = Tally()
        whole = Part(range(len(plan.documents)))
        try:
            verdict, body_bytes = await self._ask(plan, whole, tally)
            if isinstance(verdict, Scores):
                scores = array("d", verdict.relevance_scores)
                outcome: Outcome = Scored(plan.plan_id, scores, 1, tally.spent(plan))
            else:
                outcome = await self._settle_in_parts(plan, whole, verdict, body_bytes, tally)
        except Halted:
            return Dropped(plan.plan_id, tally.spent())
        else:
            self._blame.forget(plan.plan_id)
            return outcome
        finally:
            if tally.aboard:  # nothing was sent at all
                self._flights.release()

    async def _settle_in_parts(
        self, plan: RequestPlan, part: Part, verdict: Verdict, body_bytes: int, tally: Tally
    ) -> Outcome:
        """What a plan comes to that was not answered as a whole, from its first verdict on."""
        scores = array("d", [nan]) * len(plan.documents)
        answer_of = [-1] * len(plan.documents)
        blamed: list[Blamed] = []
        answers, asked, most = 0, 0, most_in_vain(len(plan.documents))
        work: list[Part] = []
        is_search = isinstance(verdict, Halve) and verdict.tried
        while True:
            if self._whole and isinstance(verdict, Halve | Without):
                verdict = GiveUp(
                    f"{verdict.reason}; this model scores a list as a whole: not split"
                )
            if isinstance(verdict, Halve) and verdict.tried and not answers and asked >= most:
                verdict = GiveUp(verdict.reason)
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
                    refused = Refused(len(part), body_bytes) if by_size else None
                    work[:0] = part.halves(refused, reason)
                case Halve(reason=reason) | Without(reason=reason) | GiveUp(reason=reason):
                    if part.is_doubtful:
                        work.append(part.once_more())
                    else:
                        blamed.append((part.documents, reason))
                    if is_search and work and not answers and asked >= most:
                        blamed, work = [(range(len(plan.documents)), reason)], []
            if not work:
                break
            part = work.pop(0)
            asked += 1
            # Until one is scored each document is tried once: a row of bad ones takes long.
            part.tries = TRIES_OF_A_PART if answers or part.tries or len(part) > 1 else 1
            verdict, body_bytes = await self._ask(plan, part, tally)
        if is_search and len(plan.documents) > 1:
            self._note_search(helped=answers > 0)
        shares = [share_of_slot(slot, answer_of, blamed) for slot in plan.slots]
        note, shares = shares[0].note, shares if len(shares) > 1 else []
        if not answers:
            return Failed(plan.plan_id, note or "", tally.spent(), shares)
        return Scored(plan.plan_id, scores, answers, tally.spent(plan), note, shares)

    def _remember(self, part: Part) -> None:
        """What was too large as a whole and is not in halves was refused for its size in all, not
        for one document's: nothing as large is sent again in this run.
        """
        if part.half_of is not None:
            part.half_of.accepted += 1
            if part.half_of.accepted == 2:
                self._refused.append(part.half_of)

    async def _ask(self, plan: RequestPlan, part: Part, tally: Tally) -> tuple[Verdict, int]:
        """A request's verdict once it is not "again", and its size in bytes."""
        documents, count = part.documents, len(part.documents)
        whole = count == len(plan.documents)
        texts = plan.documents if whole else [plan.documents[document] for document in documents]
        body = self._endpoint.encode(plan.query, texts)
        if self._refused and any(
            count >= known.documents and len(body) >= known.bytes for known in self._refused
        ):
            return Halve("a request of no greater size was refused", size=True), len(body)
        pauses: dict[bool, Iterator[float]] = {}
        failures = alone = settled = 0
        again = False
        while True:
            verdict = await self._exchange(body, count, plan, tally, again=again)
            if isinstance(verdict, GiveUp) and await self._others_score(plan):
                return self._refuse(verdict.reason, count), len(body)
            if not isinstance(verdict, Again | Stop):
                return verdict, len(body)
            fault = await self._find_fault(plan, verdict)
            if fault is Fault.SETTLED:
                settled += 1
                if part.is_settled(settled, verdict.reason):
                    return self._refuse(verdict.reason, count), len(body)
            elif isinstance(verdict, Again) and not verdict.throttled:
                # Where nothing was ever scored the request may still be refused for itself.
                held = verdict.answered and not self._blame.scores
                failures, alone = failures + held, alone + (not held)
                if failures == MAX_ATTEMPTS or alone == MAX_ATTEMPTS_ALONE:
                    tried = failures + alone
                    reason = f"given up after {tried} failed requests: {verdict.reason}"
                    return GiveUp(reason), len(body)
            flag = isinstance(verdict, Again) and verdict.throttled
            pauses[flag] = pauses.get(flag) or waits(self._random, throttled=flag)
            pause = next(pauses[flag])
            if fault is not Fault.MOMENT:
                pause = min(pause, self._blame.longest_pause(plan.plan_id, throttled=flag))
            await self._pause(plan, verdict, pause)
            again = True

    async def _find_fault(self, plan: RequestPlan, verdict: Again | Stop) -> Fault:
        """What a failure is about. Ends the run where that is the account. Raises `Halted` then."""
        now = asyncio.get_running_loop().time
        if isinstance(verdict, Again):
            # A request that is never answered may be one that the endpoint cannot answer.
            return self._blame.note_failure(
                plan.plan_id,
                now(),
                sent=verdict.sent,
                throttled=verdict.throttled,
                answered=verdict.answered,
            )
        began = now()
        if await self._others_score(plan):
            fault = self._blame.note_refusal(plan.plan_id, now(), sent=verdict.sent)
            if fault is not Fault.ACCOUNT:
                return fault
        elif self._halt.reason is None:
            self._blame.note_stop(plan.plan_id)
        self._halt.set(verdict.error, max(0.0, DRAIN_SECONDS - (now() - began)))
        raise Halted

    async def _others_score(self, plan: RequestPlan) -> bool:
        """Whether the endpoint serves this account, as far as that is known: any request was
        scored, or one that is in flight will be. No other is sent until that is known.
        """
        blame, clock = self._blame, asyncio.get_running_loop().time
        until = clock() + DRAIN_SECONDS
        try:
            while not blame.scores and not blame.is_known(plan.plan_id):
                if not self._unanswered or clock() >= until:
                    return False
                self._may_send.clear()
                self._answer_came.clear()
                with suppress(TimeoutError):
                    step = asyncio.wait_for(self._answer_came.wait(), until - clock())
                    await self._halt.unless_halted(step)
            return True
        finally:
            self._may_send.set()

    def _refuse(self, reason: str, documents: int) -> Verdict:
        """Look for the document to blame, where there are several and that may help."""
        if documents > 1 and not self._whole and self._blame.may_search():
            return Halve(reason, size=False, tried=True)
        return GiveUp(reason)

    def _note_search(self, *, helped: bool) -> None:
        if self._blame.note_search(helped=helped):
            self._warn(
                "requests that are refused again and again are not halved any more: in none of the "
                "last ones was any document scored. Their rows fail as a whole."
            )

    async def _pause(self, plan: RequestPlan, verdict: Again | Stop, seconds: float) -> None:
        """Wait before a request is sent again, as long as its reply asks for, within bounds."""
        asked = (verdict.after_seconds if isinstance(verdict, Again) else None) or 0.0
        _log.debug("row %d: %s; again in %.1f s", row_of(plan.plan_id), verdict.reason, seconds)
        if asked > self._max_outage_seconds:
            self._warn(
                f"{verdict.reason}, and asks for a pause of {asked:,.0f} s: such a request waits "
                f"for {self._max_outage_seconds:g} s (endpoint.max_outage_seconds)."
            )
            asked = self._max_outage_seconds
        if asked > seconds:
            seconds = asked
            until = asyncio.get_running_loop().time() + asked
            self.asked_pauses[plan.plan_id] = until, verdict.reason
        try:
            await self._halt.unless_halted(asyncio.sleep(seconds))
        finally:
            self.asked_pauses.pop(plan.plan_id, None)

    async def _wait_for_leave(self) -> None:
        """Wait while it is in question whether the endpoint serves this account at all."""
        if not self._may_send.is_set():
            await self._halt.unless_halted(self._may_send.wait())
        while wait := self._blame.wait(asyncio.get_running_loop().time()):
            await self._halt.unless_halted(asyncio.sleep(wait))

    async def _exchange(
        self, body: bytes, documents: int, plan: RequestPlan, tally: Tally, *, again: bool
    ) -> Verdict:
        tokens = plan.tokens
        most = self._price.most(tokens, documents)
        if not tally.aboard:
            await self.board()
            tally.aboard = True
        try:
            await self._wait_for_leave()
            sent_at = await self._halt.unless_halted(self._endpoint.admit(tokens, documents))
            tally.sent(most)
            tally.retries += again
            self.requests, self.retries = self.requests + 1, self.retries + again
            answer = await self._answer(body, documents)
        finally:
            tally.aboard = False
            self._flights.release()
        verdict = judge(answer, documents)
        if isinstance(verdict, Scores):
            self._blame.note_score()
            plausible = self._price.plausible(verdict, tokens, documents)
            if plausible is not verdict:
                self._warn(
                    f"an answer says it used more than {IMPLAUSIBLE} times what its request can "
                    "have used, or less than nothing: of such answers the most that it can is "
                    "counted."
                )
                tally.implausible += 1
            verdict = plausible
            tally.tokens += tokens if verdict.tokens is None else verdict.tokens
            tally.bill(self._price.billed(verdict), self._price.likely(tokens, documents), most)
        if not (isinstance(verdict, Again) and verdict.possibly_paid):
            tally.unknown -= 1
        if not (isinstance(verdict, Again) and verdict.at_risk):
            tally.at_risk -= most
        self._endpoint.learn(self._lesson(plan, verdict), sent_at, tokens, documents)
        self._answer_came.set()
        return verdict

    async def _answer(self, body: bytes, documents: int) -> Exchange:
        self._unanswered += 1
        try:
            return await self._halt.unless_abandoned(self._endpoint.exchange(body, documents))
        finally:
            self._unanswered -= 1

    def _lesson(self, plan: RequestPlan, verdict: Verdict) -> Verdict:
        """What an exchange tells about the endpoint: a refusal of the account is a failure like
        others once it has served, and a plan that fails by itself slows nobody else.
        """
        is_known = self._blame.is_known(plan.plan_id)
        if isinstance(verdict, Stop) and (self._blame.scores or is_known):
            return Again(verdict.reason, answered=True, blamed=is_known and verdict.sent)
        if isinstance(verdict, Again) and is_known:
            return msgspec.structs.replace(verdict, throttled=False, blamed=verdict.sent)
        return verdict

    def _warn(self, message: str) -> None:
        """Say it, each kind of message once."""
        kind = message.split(":")[-1]
        if kind not in self._warnings:
            self._warnings.add(kind)
            _log.warning("%s", message)
