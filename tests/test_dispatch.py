"""Plans into outcomes: room for the slow, patience with the endpoint, and an end when told.

Time is virtual; the endpoint is a function from a request's documents to an answer.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from math import isnan, log2
from random import Random

import pytest
from virtual_time import run

from batchrank.errors import AccountRefused, BatchrankError, KeyRefused
from batchrank.records import Dropped, Failed, Outcome, RequestPlan, Scored, Slot, plan_id
from batchrank.sending.dispatch import PLANS_PER_FLIGHT, Sender, dispatch
from batchrank.sending.halt import Halt
from batchrank.sending.verdicts import MAX_ATTEMPTS, Again, Answered, Exchange, Unanswered, Verdict

LOST = Unanswered("the connection broke", sent=True)
REFUSED = Unanswered("the connection was refused", sent=False)
HALTED = BatchrankError("enough")


def good(documents: Sequence[str]) -> Answered:
    """A score for each document, told by the text; 10 tokens each."""
    results = [
        {"index": index, "relevance_score": score(text)} for index, text in enumerate(documents)
    ]
    body = {"results": results, "usage": {"total_tokens": 10 * len(documents)}}
    return Answered(200, json.dumps(body).encode())


def score(text: str) -> float:
    return int(text.split()[0]) / 1000


def error(status: int, code: str = "", message: str = "", after: str | None = None) -> Answered:
    return Answered(status, json.dumps({"code": code, "message": message}).encode(), after)


class Endpoint:
    """Answers after a while what `answer` makes of the documents; remembers what it was sent."""

    def __init__(
        self, answer: Callable[[list[str]], Exchange] = good, seconds: float = 1.0
    ) -> None:
        self.answer = answer
        self.seconds = seconds
        self.sent: list[list[str]] = []
        self.instants: list[float] = []
        self.admitted: list[int] = []
        self.verdicts: list[Verdict] = []
        self.in_flight = self.most_in_flight = self.successes = 0

    def encode(self, query: str, documents: Sequence[str]) -> bytes:
        return json.dumps(documents).encode()

    async def admit(self, tokens: int, documents: int) -> float:
        self.admitted.append(tokens)
        return asyncio.get_running_loop().time()

    async def exchange(self, body: bytes, documents: int) -> Exchange:
        texts = json.loads(body)
        self.sent.append(texts)
        self.instants.append(asyncio.get_running_loop().time())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.seconds * (100 if "slow" in texts[0] else 1))
        finally:
            self.in_flight -= 1
        return self.answer(texts)

    def learn(self, verdict: Verdict, sent_at: float, tokens: int, documents: int) -> None:
        self.verdicts.append(verdict)
        self.successes += not isinstance(verdict, Again)


def plan(row: int, *texts: str) -> RequestPlan:
    """A row's only request: identical texts once, as planning makes them."""
    distinct = list(dict.fromkeys(texts))
    slot = Slot(row, range(len(texts)), [distinct.index(text) for text in texts])
    return RequestPlan(
        plan_id(row, 0), f"query {row}", distinct, (slot,), 100 * len(distinct), 90, b""
    )


def numbered(documents: int) -> list[str]:
    return [f"{number} text" for number in range(documents)]


def settled(endpoint: Endpoint, *plans: RequestPlan) -> list[Outcome]:
    """The outcomes of plans that are settled one after the other."""

    async def settle() -> list[Outcome]:
        sender = Sender(endpoint, max_in_flight=8, halt=Halt(), random=Random(7))
        outcomes = []
        for plan in plans:
            await sender.board()
            outcomes.append(await sender.settle(plan))
        return outcomes

    return run(settle())


def only_scored(endpoint: Endpoint, plan: RequestPlan) -> Scored:
    (outcome,) = settled(endpoint, plan)
    assert isinstance(outcome, Scored)
    return outcome


class Session:
    """A whole dispatch: what was taken, what was recorded, and when."""

    def __init__(self, endpoint: Endpoint, max_in_flight: int = 4) -> None:
        self.endpoint = endpoint
        self.max_in_flight = max_in_flight
        self.halt = Halt()
        self.taken = 0
        self.most_open = 0
        self.recorded: dict[int, Outcome] = {}
        self.order: list[int] = []

    async def plans(self, plans: Iterable[RequestPlan]) -> AsyncIterator[Sequence[RequestPlan]]:
        for one in plans:
            self.taken += 1
            self.most_open = max(self.most_open, self.taken - len(self.recorded))
            yield [one]

    def record(self, plan: RequestPlan, outcome: Outcome) -> None:
        assert plan.plan_id == outcome.plan_id
        assert plan.plan_id not in self.recorded
        self.recorded[plan.plan_id] = outcome
        self.order.append(plan.plan_id >> 20)

    async def go(self, plans: Iterable[RequestPlan]) -> float:
        """Dispatch the plans; the instant of the end. No task is left behind."""
        sender = Sender(
            self.endpoint, max_in_flight=self.max_in_flight, halt=self.halt, random=Random(7)
        )
        await dispatch(
            self.plans(plans),
            board=sender.board,
            settle=sender.settle,
            record=self.record,
            max_in_flight=self.max_in_flight,
            halt=self.halt,
        )
        assert len(asyncio.all_tasks()) == 1
        return asyncio.get_running_loop().time()


def test_every_plan_is_settled_and_recorded_once() -> None:
    session = Session(Endpoint())
    run(session.go(plan(row, *numbered(3)) for row in range(100)))
    assert sorted(session.recorded) == [plan_id(row, 0) for row in range(100)]
    for outcome in session.recorded.values():
        assert isinstance(outcome, Scored)
        assert list(outcome.relevance_scores) == [0, 0.001, 0.002]
        spent = outcome.spent
        assert (spent.requests, spent.retries, spent.possibly_paid) == (1, 0, 0)
        assert (spent.tokens, spent.estimate) == (30, 90)
        assert (outcome.requests, outcome.note) == (1, None)


def test_so_many_are_in_flight_and_no_more() -> None:
    session = Session(Endpoint(seconds=1), max_in_flight=5)
    end = run(session.go(plan(row, "1") for row in range(50)))
    assert session.endpoint.most_in_flight == 5
    assert end == pytest.approx(10, abs=0.01)


def test_plans_are_taken_only_as_there_is_room_for_them() -> None:
    session = Session(Endpoint(), max_in_flight=3)
    run(session.go(plan(row, "1") for row in range(200)))
    assert session.most_open == 3 + 1  # and one that waits at the door


def test_an_endpoint_that_serves_nothing_does_not_let_plans_pile_up() -> None:
    session = Session(Endpoint(lambda _: error(503)), max_in_flight=3)

    async def for_a_quarter() -> None:
        going = asyncio.create_task(session.go(plan(row, "1") for row in range(200)))
        await asyncio.sleep(900)
        going.cancel()
        await asyncio.wait([going])

    run(for_a_quarter())
    assert session.taken <= 3 * PLANS_PER_FLIGHT + 1
    assert session.recorded == {}


def test_a_slow_request_holds_nobody_up() -> None:
    session = Session(Endpoint(), max_in_flight=2)
    end = run(session.go([plan(0, "1 slow"), *(plan(row, "1") for row in range(1, 90))]))
    assert end == pytest.approx(100, abs=0.01)
    assert session.order == [*range(1, 90), 0]


def test_requests_that_wait_to_be_sent_again_give_their_place_in_flight_away() -> None:
    def once(documents: list[str]) -> Exchange:
        first = session.endpoint.sent.count(documents) == 1
        return error(429, after="50") if "late" in documents[0] and first else good(documents)

    session = Session(Endpoint(once), max_in_flight=1)
    end = run(session.go([plan(0, "1 late"), *(plan(row, "1") for row in range(1, 30))]))
    assert session.order == [*range(1, 30), 0]
    assert end == pytest.approx(52, abs=0.01)


# Again


TRANSIENT: list[tuple[Exchange, int]] = [
    (error(500), 0),
    (error(502), 0),
    (error(503), 0),
    (error(504), 0),
    (error(408), 0),
    (error(429), 0),
    (REFUSED, 0),
    (LOST, 1),
    (Answered(200, b"{"), 1),
    (Answered(200, b'{"results":[]}'), 1),
    (error(200, "InternalError"), 0),
    (error(200, "Throttling.RateQuota"), 0),
]


@pytest.mark.parametrize(("trouble", "paid"), TRANSIENT)
def test_trouble_that_passes_is_sat_out_and_counted(trouble: Exchange, paid: int) -> None:
    answers = [trouble, trouble, trouble]
    endpoint = Endpoint(lambda documents: answers.pop() if answers else good(documents))
    outcome = only_scored(endpoint, plan(0, *numbered(2)))
    assert list(outcome.relevance_scores) == [0, 0.001]
    assert (outcome.spent.requests, outcome.spent.retries) == (4, 3)
    assert outcome.spent.possibly_paid == 3 * paid
    assert outcome.requests == 1


@pytest.mark.parametrize("trouble", [error(500), Answered(200, b"<html>")])
def test_a_request_that_is_answered_with_failure_is_given_up_in_the_end(trouble: Answered) -> None:
    endpoint = Endpoint(lambda _: trouble)
    (outcome,) = settled(endpoint, plan(0, *numbered(3)))
    assert isinstance(outcome, Failed)
    assert len(endpoint.sent) == MAX_ATTEMPTS == outcome.spent.requests
    assert outcome.spent.retries == MAX_ATTEMPTS - 1
    assert outcome.reason.startswith(
        f"documents 0 to 2: given up after {MAX_ATTEMPTS} failed requests: the "
    )


@pytest.mark.parametrize("trouble", [error(503), REFUSED, LOST])
def test_an_outage_is_not_held_against_a_request(trouble: Exchange) -> None:
    """Half an hour of it: every plan is settled once it is over."""

    def healed(documents: list[str]) -> Exchange:
        now = asyncio.get_running_loop().time()
        return trouble if now < 1800 else good(documents)

    session = Session(Endpoint(healed), max_in_flight=2)
    end = run(session.go(plan(row, "1") for row in range(20)))
    assert all(isinstance(outcome, Scored) for outcome in session.recorded.values())
    assert len(session.recorded) == 20
    assert end < 1800 + 90


@pytest.mark.parametrize("trouble", [error(503), REFUSED, LOST])
def test_a_request_that_fails_while_others_succeed_is_given_up(trouble: Exchange) -> None:
    session = Session(
        Endpoint(lambda documents: trouble if "bad" in documents[0] else good(documents)),
        max_in_flight=2,
    )
    run(session.go([plan(0, "1 bad"), *(plan(row, "1") for row in range(1, 1000))]))
    outcome = session.recorded[0]
    assert isinstance(outcome, Failed)
    assert outcome.spent.requests >= MAX_ATTEMPTS


def test_a_row_of_nothing_but_bad_documents_is_given_up_soon() -> None:
    session = Session(Endpoint())
    bad = [f"{number} bad" for number in range(10)]
    session.endpoint.answer = lambda documents: LOST if documents[0] in bad else good(documents)
    run(session.go(plan(row, *(bad if row == 3 else ["1"])) for row in range(500)))
    parts = [sent for sent in session.endpoint.sent if sent[0] in bad and len(sent) < 10]
    assert 0 < len(parts) <= 2 * log2(16) + 2
    outcome = session.recorded[plan_id(3, 0)]
    assert isinstance(outcome, Failed)
    assert outcome.reason.startswith("documents 0 to 9: ")


def test_a_document_that_fails_once_before_any_of_its_row_is_scored_is_asked_again() -> None:
    session = Session(Endpoint())

    def answer(documents: list[str]) -> Exchange:
        is_first = documents == ["8 good"] and session.endpoint.sent.count(documents) == 1
        return LOST if is_first or "7 bad" in documents else good(documents)

    session.endpoint.answer = answer
    run(session.go(plan(row, *(["8 good", "7 bad"] if row == 3 else ["1"])) for row in range(500)))
    outcome = session.recorded[plan_id(3, 0)]
    assert isinstance(outcome, Scored)
    assert outcome.relevance_scores[0] == score("8 good") and isnan(outcome.relevance_scores[1])


@pytest.mark.parametrize("trouble", [error(500), error(429), error(403), LOST], ids=repr)
def test_a_plan_that_is_known_to_fail_tells_nothing_of_the_endpoint(trouble: Exchange) -> None:
    session = Session(Endpoint())
    session.endpoint.answer = lambda documents: trouble if "7 bad" in documents else good(documents)
    run(session.go(plan(row, "7 bad" if row == 3 else "1") for row in range(500)))
    failures = [verdict for verdict in session.endpoint.verdicts if isinstance(verdict, Again)]
    assert len(failures) > 3
    assert all(failure.blamed and not failure.throttled for failure in failures[3:])


def test_throttled_answers_use_no_attempt() -> None:
    answers = [error(429, "Throttling.RateQuota")] * 50
    endpoint = Endpoint(lambda documents: answers.pop() if answers else good(documents))
    outcome = only_scored(endpoint, plan(0, "1"))
    assert outcome.spent.retries == 50
    assert all(verdict.throttled for verdict in endpoint.verdicts[:50])  # type: ignore[union-attr]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("after", [7, 300])
def test_nothing_is_sent_again_earlier_than_asked(status: int, after: int) -> None:
    answers = [error(status, after=str(after))]
    endpoint = Endpoint(lambda documents: answers.pop() if answers else good(documents))
    only_scored(endpoint, plan(0, "1"))
    first, second = endpoint.instants
    assert second - (first + endpoint.seconds) >= after


def test_two_in_ten_failing_at_random_fail_no_row() -> None:
    random = Random(7)
    troubles = [error(500), error(429), LOST, REFUSED, Answered(200, b"[")]

    def shaky(documents: list[str]) -> Exchange:
        return random.choice(troubles) if random.random() < 0.2 else good(documents)

    session = Session(Endpoint(shaky), max_in_flight=16)
    run(session.go(plan(row, "1", "2") for row in range(2000)))
    assert all(isinstance(outcome, Scored) for outcome in session.recorded.values())
    spent = [outcome.spent for outcome in session.recorded.values()]
    assert sum(one.requests for one in spent) == len(session.endpoint.sent)
    assert sum(one.requests - one.retries for one in spent) == 2000


# Halves


def inspected(documents: list[str]) -> Exchange:
    """Refuses what holds a poisonous document, without saying which."""
    poisoned = any("poison" in text for text in documents)
    return error(400, "DataInspectionFailed") if poisoned else good(documents)


def poisoned(documents: int, *poisonous: int) -> list[str]:
    return [
        f"{number} poison" if number in poisonous else f"{number} text"
        for number in range(documents)
    ]


@pytest.mark.parametrize("documents", [2, 3, 7, 16, 100, 500])
def test_a_poisonous_document_is_found_by_halving_and_harms_no_other(documents: int) -> None:
    for culprit in {0, documents // 2, documents - 1}:
        endpoint = Endpoint(inspected)
        outcome = only_scored(endpoint, plan(0, *poisoned(documents, culprit)))
        for number, found in enumerate(outcome.relevance_scores):
            assert isnan(found) if number == culprit else found == number / 1000
        assert len(endpoint.sent) - 1 <= 2 * (int(log2(documents - 1)) + 1 if documents > 2 else 1)
        assert outcome.note == (
            f"document {culprit}: the endpoint answered 400 DataInspectionFailed"
        )


@pytest.mark.parametrize("documents", [2, 4, 8, 16, 64, 256])
def test_halving_takes_at_most_two_requests_for_each_halving_and_one(documents: int) -> None:
    endpoint = Endpoint(inspected)
    only_scored(endpoint, plan(0, *poisoned(documents, documents // 3)))
    assert len(endpoint.sent) - 1 <= 2 * log2(documents) + 1


def test_several_poisonous_documents_are_all_found() -> None:
    outcome = only_scored(Endpoint(inspected), plan(0, *poisoned(40, 3, 4, 31)))
    absent = [number for number, found in enumerate(outcome.relevance_scores) if isnan(found)]
    assert absent == [3, 4, 31]
    assert outcome.spent.retries == 0


def test_a_request_of_nothing_but_poison_fails_with_each_named() -> None:
    (outcome,) = settled(Endpoint(inspected), plan(0, *poisoned(3, 0, 1, 2)))
    assert isinstance(outcome, Failed)
    assert outcome.reason == "; ".join(
        f"document {number}: the endpoint answered 400 DataInspectionFailed" for number in range(3)
    )


def test_a_note_names_the_candidate_and_not_the_documents_place() -> None:
    texts = ["1 text", "1 text", "2 poison", "1 text", "2 poison"]
    outcome = only_scored(Endpoint(inspected), plan(0, *texts))
    assert outcome.note == "document 2: the endpoint answered 400 DataInspectionFailed"


def named(documents: list[str], believed: Callable[[int], int] = lambda index: index) -> Exchange:
    """Refuses an empty document by name, as Model Studio does."""
    for index, text in enumerate(documents):
        if "poison" in text:
            message = f"Value error, document index:{believed(index)} should not be empty."
            return error(400, "InvalidParameter", message)
    return good(documents)


def test_a_document_that_is_named_is_left_out_at_once() -> None:
    endpoint = Endpoint(named)
    outcome = only_scored(endpoint, plan(0, *poisoned(100, 37)))
    assert [len(sent) for sent in endpoint.sent] == [100, 99]
    assert [isnan(found) for found in outcome.relevance_scores].index(True) == 37
    assert outcome.note == (
        "document 37: the endpoint answered 400 InvalidParameter, document index:37"
    )


def test_a_wrong_name_is_believed_once_and_then_the_document_is_searched_for() -> None:
    endpoint = Endpoint(lambda documents: named(documents, lambda _: 0))
    outcome = only_scored(endpoint, plan(0, *poisoned(16, 9)))
    absent = [number for number, found in enumerate(outcome.relevance_scores) if isnan(found)]
    assert 9 in absent
    assert 0 not in absent
    assert len(endpoint.sent) <= 2 + 3 * log2(16)


@pytest.mark.parametrize("poisonous", [(0, 1), (3, 4, 31), tuple(range(0, 40, 5))])
def test_several_named_documents_are_all_left_out(poisonous: tuple[int, ...]) -> None:
    outcome = only_scored(Endpoint(named), plan(0, *poisoned(40, *poisonous)))
    absent = [number for number, found in enumerate(outcome.relevance_scores) if isnan(found)]
    assert absent == list(poisonous)


def test_a_named_document_is_told_even_when_the_others_are_given_up() -> None:
    def worse(documents: list[str]) -> Exchange:
        return named(documents) if len(documents) == 3 else error(422)

    (outcome,) = settled(Endpoint(worse), plan(0, *poisoned(3, 1)))
    assert isinstance(outcome, Failed)
    for number in range(3):
        assert f"document {number}" in outcome.reason or "documents 0 to 2" in outcome.reason


# Sizes


def at_most(documents: int) -> Callable[[list[str]], Exchange]:
    return lambda texts: error(413) if len(texts) > documents else good(texts)


def test_a_request_that_is_too_large_is_halved_until_it_fits() -> None:
    endpoint = Endpoint(at_most(3))
    outcome = only_scored(endpoint, plan(0, *numbered(10)))
    assert [len(sent) for sent in endpoint.sent] == [10, 5, 3, 2, 3, 2]
    assert list(outcome.relevance_scores) == [number / 1000 for number in range(10)]
    assert outcome.requests == 4
    assert outcome.note is None


def test_a_size_that_was_refused_is_not_tried_again() -> None:
    endpoint = Endpoint(at_most(3))
    settled(endpoint, *(plan(row, *numbered(8)) for row in range(5)))
    assert [len(sent) for sent in endpoint.sent] == [8, 4, 2, 2, *[2, 2] * 1] + [2, 2, 2, 2] * 4


def test_a_smaller_size_than_was_refused_is_tried() -> None:
    endpoint = Endpoint(at_most(3))
    settled(endpoint, plan(0, *numbered(4)), plan(1, *numbered(3)))
    assert [len(sent) for sent in endpoint.sent] == [4, 2, 2, 3]


def test_a_document_too_large_by_itself_does_not_shrink_everybodys_requests() -> None:
    """It was the document, not the size of the requests it was in."""

    def context(documents: list[str]) -> Exchange:
        if any("large" in text for text in documents):
            return error(400, "", "This model's maximum context length is 512 tokens")
        return good(documents)

    endpoint = Endpoint(context)
    large = plan(0, "0 large", *(f"{number} text" for number in range(1, 8)))
    outcome, *others = settled(endpoint, large, *(plan(row, *numbered(30)) for row in range(1, 9)))
    assert isinstance(outcome, Scored)
    assert [isinstance(other, Scored) and other.requests for other in others] == [1] * 8


def test_a_part_weighs_what_its_documents_may_weigh_at_the_most() -> None:
    """The heavier half of two documents may weigh all of the plan but a token."""
    endpoint = Endpoint(at_most(1))
    whole = plan(0, "0 text", "1 text " * 500)
    only_scored(endpoint, whole)
    assert endpoint.admitted[0] == whole.tokens
    assert max(endpoint.admitted[1:]) >= whole.tokens - 10


# Halt


def test_after_a_halt_nothing_is_sent_and_what_is_in_flight_is_kept() -> None:
    session = Session(Endpoint(seconds=10), max_in_flight=4)

    async def halted() -> float:
        asyncio.get_running_loop().call_later(15, session.halt.set, HALTED)
        return await session.go(plan(row, "1") for row in range(100))

    assert run(halted()) == pytest.approx(20, abs=0.01)
    assert max(session.endpoint.instants) < 15
    kept = [one for one in session.recorded.values() if isinstance(one, Scored)]
    dropped = [one for one in session.recorded.values() if isinstance(one, Dropped)]
    assert len(kept) == 8 == len(session.endpoint.sent)
    assert all(one.spent.requests == 0 for one in dropped)
    assert len(session.recorded) >= session.taken - 1


@pytest.mark.parametrize(
    "trouble",
    [error(500), error(429), LOST, REFUSED, error(413), error(400, "DataInspectionFailed")],
)
def test_what_fails_in_flight_during_a_halt_is_not_sent_again(trouble: Exchange) -> None:
    def troubled(documents: list[str]) -> Exchange:
        return trouble if asyncio.get_running_loop().time() < 60 else good(documents)

    endpoint = Endpoint(troubled, seconds=10)
    session = Session(endpoint, max_in_flight=4)

    async def halted() -> float:
        asyncio.get_running_loop().call_later(5, session.halt.set, HALTED)
        return await session.go(plan(row, *numbered(4)) for row in range(100))

    end = run(halted())
    assert max(endpoint.instants) < 5
    assert end == pytest.approx(10, abs=0.01)


def test_what_waits_to_be_sent_again_is_dropped_at_a_halt_with_what_it_spent() -> None:
    session = Session(Endpoint(lambda _: error(429, after="600"), seconds=1), max_in_flight=2)

    async def halted() -> float:
        asyncio.get_running_loop().call_later(20, session.halt.set, HALTED)
        return await session.go(plan(row, "1") for row in range(5))

    assert run(halted()) == pytest.approx(20, abs=0.01)
    assert all(isinstance(one, Dropped) for one in session.recorded.values())
    assert sum(one.spent.requests for one in session.recorded.values()) == len(
        session.endpoint.sent
    )


def test_what_is_abandoned_may_have_been_paid_for() -> None:
    session = Session(Endpoint(seconds=1000), max_in_flight=3)

    async def halted() -> float:
        asyncio.get_running_loop().call_later(5, session.halt.set, HALTED, 2.5)
        return await session.go(plan(row, "1") for row in range(100))

    assert run(halted()) == pytest.approx(7.5, abs=0.01)
    outcomes = list(session.recorded.values())
    assert all(isinstance(outcome, Dropped) for outcome in outcomes)
    assert sum(outcome.spent.possibly_paid for outcome in outcomes) == 3
    assert sum(outcome.spent.requests for outcome in outcomes) == 3


def test_a_second_halt_changes_nothing() -> None:
    halt = Halt()

    async def twice() -> None:
        halt.set(HALTED)
        halt.set(BatchrankError("too late"), 0.1)

    run(twice())
    assert halt.reason is HALTED


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [(error(401, "InvalidApiKey"), KeyRefused), (error(400, "Arrearage"), AccountRefused)],
)
def test_an_account_that_is_refused_from_the_first_request_on_ends_the_run(
    refusal: Answered, reason: type[BatchrankError]
) -> None:
    session = Session(Endpoint(lambda _: refusal), max_in_flight=6)
    end = run(session.go(plan(row, "1") for row in range(500)))
    assert isinstance(session.halt.reason, reason)
    assert len(session.endpoint.sent) <= 2 * 6
    assert end <= 5


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [(error(401, "InvalidApiKey"), KeyRefused), (error(400, "Arrearage"), AccountRefused)],
)
def test_an_account_error_after_scores_ends_the_run_once_it_has_lasted(
    refusal: Answered, reason: type[BatchrankError]
) -> None:
    session = Session(Endpoint(), max_in_flight=6)
    session.endpoint.answer = lambda documents: (
        refusal if len(session.endpoint.sent) > 30 else good(documents)
    )
    end = run(session.go(plan(row, "1") for row in range(500)))
    assert isinstance(session.halt.reason, reason)
    assert len(session.endpoint.sent) <= 30 + 6 + 60
    assert 5 + 2.5 < end < 5 + 25
    assert session.endpoint.in_flight == 0


def test_a_bug_in_recording_ends_the_run_at_once() -> None:
    session = Session(Endpoint())

    def broken(plan: RequestPlan, outcome: Outcome) -> None:
        raise ZeroDivisionError

    session.record = broken  # type: ignore[method-assign]
    with pytest.raises(ExceptionGroup) as raised:
        run(session.go(plan(row, "1") for row in range(100)))
    assert raised.group_contains(ZeroDivisionError)
    assert len(session.endpoint.sent) <= 4 * PLANS_PER_FLIGHT


def test_cancelling_a_dispatch_leaves_no_task_behind() -> None:
    session = Session(Endpoint(seconds=1000))

    async def cancelled() -> int:
        going = asyncio.create_task(session.go(plan(row, "1") for row in range(100)))
        await asyncio.sleep(5)
        going.cancel()
        await asyncio.wait([going])
        return len(asyncio.all_tasks())

    assert run(cancelled()) == 1
    assert session.endpoint.in_flight == 0
