"""The frozen values that flow through a run; this file imports nothing of ours.

They are msgspec structs rather than dataclasses because several are made per request: a frozen
one costs 0.1 us to make, a frozen dataclass 0.6 us (measured, Python 3.11).

A row walks one way: `Row` (source) -> `PlannedRow` with its `RequestPlan`s (planning) ->
an `Outcome` for each plan (dispatch) -> `RowScores` (assembly) -> a part file (sink).
"""

from array import array
from collections.abc import Sequence
from math import nan

import msgspec


class Pairs(msgspec.Struct, frozen=True, gc=False):
    """What a later run knows a row's pairs by: the query's digest, and one for each text under that
    query (0: blank). `since` is the day (from 1970-01-01) that the score of a pair that an earlier
    run knew was first given, 0 for the others; `together`: these come from one answer, to just
    these texts. `shared`: the new ones come from requests that hold other rows' texts too.
    """

    query: bytes
    texts: "array[int]"
    since: "array[int] | None" = None
    together: bool = False
    shared: bool = False


class Row(msgspec.Struct, frozen=True, gc=False):
    """One input row: its place in the whole input (from 0), its query, its candidates' texts.

    Ids and kept columns stay in Arrow (see `source.Chunk`): no step before the sink needs them.

    `known`: a score for each candidate, NaN where there is none yet; one with a score is not sent.
    """

    index: int
    query: str | None
    texts: Sequence[str | None]
    known: "array[float] | None" = None
    pairs: Pairs | None = None


class Slot(msgspec.Struct, frozen=True, gc=False):
    """Where scores go home: candidate `positions[i]` of `row` takes the score of document
    `documents[i]` of the request. Identical texts of a request share one document.
    """

    row: int
    positions: Sequence[int]
    documents: Sequence[int]


class RequestPlan(msgspec.Struct, frozen=True, gc=False):
    """One request: a query, its documents in candidate order, and what it weighs at the most.

    `plan_id` is the row's index and the piece's number in one integer, so that the same input
    under the same limits gives the same ids; rows that share a request have a slot each, in their
    order, and the first of the rows planned together gives the id. `tokens` is exact or an upper
    bound, `estimate` the likely value; if `counted`, both are what the vocabulary says. `digest` is
    8 bytes that change with the texts: an answer is only ever used for the texts it was given to.
    """

    plan_id: int
    query: str
    documents: Sequence[str]
    slots: Sequence[Slot]
    tokens: int
    estimate: int
    digest: bytes
    counted: bool = False


class PlannedRow(msgspec.Struct, frozen=True, gc=False):
    """What is to be sent for a row: no plan at all means that there is nothing to score.

    `truncated` counts texts over the limit per document, the query included. `note` says in words
    what will not be sent and why. `fewest` is the lower bound on the number of its requests.
    `failed`: it has something to score, and cannot be sent. `known` and `pairs` are the row's.
    """

    index: int
    candidates: int
    plans: Sequence[RequestPlan]
    truncated: int
    note: str | None
    fewest: int
    failed: bool = False
    known: "array[float] | None" = None
    pairs: Pairs | None = None


class Spent(msgspec.Struct, frozen=True, gc=False):
    """What a plan's exchanges came to: requests sent, those sent again, those whose outcome stayed
    unknown (and may have been billed) with the units these can have cost at the most, the tokens
    that answers reported, those estimated for the plans that were answered, and the units that
    were billed. Units are what the provider's price is for: tokens again, or searches. `counted` is
    the part of `estimate` that was counted by the vocabulary; the rest is a guess from bytes.
    `units_at_risk` has also what answers that do not say their bill may have cost beyond what is
    likely. `implausible` answers said something absurd, and the most that they can be was counted.
    """

    requests: int = 0
    retries: int = 0
    possibly_paid: int = 0
    units_at_risk: int = 0
    tokens: int = 0
    estimate: int = 0
    units: int = 0
    counted: int = 0
    implausible: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            self.requests + other.requests,
            self.retries + other.retries,
            self.possibly_paid + other.possibly_paid,
            self.units_at_risk + other.units_at_risk,
            self.tokens + other.tokens,
            self.estimate + other.estimate,
            self.units + other.units,
            self.counted + other.counted,
            self.implausible + other.implausible,
        )


class Share(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one row has of a request that rows share and that was not answered as a whole: the
    numbers of the answers that its scores came from, and in words which candidates have none.
    """

    answers: Sequence[int]
    note: str | None


class Scored(msgspec.Struct, frozen=True, gc=False):
    """A plan's answer: a score for each document, NaN where the endpoint refused that document.

    `requests` is the number of answers that the scores came from, above 1 when a refused request
    had to be halved. `note` names the documents without a score; where rows share the request and
    there is something to tell, each has its own of `shares`.
    """

    plan_id: int
    relevance_scores: "array[float]"
    requests: int
    spent: Spent
    note: str | None = None
    shares: Sequence[Share] = ()


class Failed(msgspec.Struct, frozen=True, gc=False):
    """A plan that got no score, and why, in words: each row's in `shares` where rows share it."""

    plan_id: int
    reason: str
    spent: Spent
    shares: Sequence[Share] = ()


class Dropped(msgspec.Struct, frozen=True, gc=False):
    """A plan left unsettled because the run is ending; what it spent counts all the same."""

    plan_id: int
    spent: Spent


Outcome = Scored | Failed | Dropped


class RowScores(msgspec.Struct, frozen=True, gc=False):
    """A finished row: one score per candidate in input order (NaN: none), and what became of it.
    `request_ids`, ascending, are kept where rows share requests.
    """

    index: int
    relevance_scores: "array[float]"
    status: str
    error: str | None
    requests: int
    truncated: int
    failed_requests: int
    pairs: Pairs | None = None
    request_ids: Sequence[int] = ()


PLAN_BITS = 20
ANSWER_BITS = 12
"""A request has no more answers than documents, and one that rows share at most so many."""


def plan_id(row: int, piece: int) -> int:
    """The id of a row's n-th request; `row_of` undoes it."""
    return row << PLAN_BITS | piece


def row_of(plan: int) -> int:
    """The row whose request this is."""
    return plan >> PLAN_BITS


def request_id(plan: int, answer: int) -> int:
    """The id of a plan's n-th answer, of which there are several only where it was halved."""
    return plan << ANSWER_BITS | answer


def plan_of(request: int) -> int:
    """The plan whose answer has this id."""
    return request >> ANSWER_BITS


def widened(row: RowScores, candidates: int) -> RowScores:
    """A published row with a place for each candidate again: `top_n` had left some out."""
    missing = array("d", [nan]) * (candidates - len(row.relevance_scores))
    return msgspec.structs.replace(row, relevance_scores=row.relevance_scores + missing)
