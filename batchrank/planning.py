"""Rows into request plans.

Pure: same rows and limits, same plans, same ids, on any machine and any day. A row that fits is
one request; one that does not becomes the fewest that hold it, balanced, its documents in
candidate order within each. Identical texts of a request are sent once, blank ones never.
This file does not know that plans are sent, nor that sending can fail.
"""

import heapq
from collections.abc import Callable, Sequence
from math import ceil

import msgspec
import xxhash

from batchrank.limits import RequestLimits, weight
from batchrank.records import PlannedRow, RequestPlan, Row, Slot, plan_id
from batchrank.tokens import bound, count

SAMPLE_FIRST = 64
SAMPLE_EVERY = 16
NOT_WHOLE = (
    "do not fit into one request, and this model scores a list as a whole: not sent (see [limits] "
    "and endpoint.scores_lists)"
)


class Document(msgspec.Struct, gc=False):
    """A distinct text of a row: the positions that hold it, and the tokens that will be read of it
    at the most, or exactly once `counted`.
    """

    text: str
    positions: list[int]
    tokens: int
    counted: bool = False


class Planner:
    """Turns rows into plans under `limits`.

    Tokens are counted where bytes cannot decide; in every row when `exact`; else in the first
    `SAMPLE_FIRST` and one of `SAMPLE_EVERY` besides, so that a run can estimate its tokens without
    counting them all.
    `envelope_bytes` is what a request weighs in bytes before query and documents. `whole`: the
    model scores a list as a whole, so a row is one request with every text in it, or fails.
    """

    def __init__(
        self,
        limits: RequestLimits,
        *,
        exact: bool = False,
        envelope_bytes: int = 0,
        whole: bool = False,
        count: Callable[[str], int] = count,
    ) -> None:
        self._limits = limits
        self._exact = exact
        # `_json_bytes` counts a comma after each text, and the query's quotes are in the envelope.
        self._envelope_bytes = envelope_bytes - 4
        self._whole = whole
        self._count = count
        self._sampled_tokens = self._sampled_bound = 0
        self._tokens_per_bound = 1.0

    def plan(self, row: Row) -> PlannedRow:
        """The requests of one row, and what of it will not be sent."""
        if row.query is None or not row.query or row.query.isspace():
            return _nothing(row, "the query is null or blank")
        if not row.texts:
            return _nothing(row, "the row has no candidates")
        documents, blank = _distinct(row.texts, merge=not self._whole)
        if not documents:
            return _nothing(row, "every candidate is empty or blank")

        cap = self._limits.max_tokens_per_document
        query_tokens, query_cut = self._capped(row.query)
        truncated = int(query_cut)
        for document in documents:
            if document.tokens > cap:
                document.tokens, cut = self._capped(document.text)
                document.counted = True
                truncated += len(document.positions) if cut else 0
        query_tokens, share = self._count_if_needed(row, query_tokens, documents)
        packs, oversized = self._pack(row.query, query_tokens, documents)
        if self._whole and (oversized or len(packs) > 1):
            return _nothing(row, f"{len(documents)} documents {NOT_WHOLE}", failed=True)
        return PlannedRow(
            index=row.index,
            candidates=len(row.texts),
            plans=[
                _request(row, piece, pack, query_tokens, share) for piece, pack in enumerate(packs)
            ],
            truncated=truncated,
            note=_note(blank, oversized),
            fewest=self._lower_bound(query_tokens, documents),
        )

    def _count_if_needed(
        self, row: Row, query_tokens: int, documents: Sequence[Document]
    ) -> tuple[int, float]:
        """Replace bounds by counts where they must be or the row is sampled; the query's tokens,
        and what share of the tokens now known at the most the row is likely to have.
        """
        assert row.query is not None
        most = _weight(query_tokens, documents)
        sampled = self._exact or row.index < SAMPLE_FIRST or row.index % SAMPLE_EVERY == 0
        if not sampled and self._fits(row.query, query_tokens, documents):
            return query_tokens, self._tokens_per_bound
        query_tokens = min(self._count(row.query), query_tokens)
        if sampled:
            self._count_documents(documents)
            self._learn(_weight(query_tokens, documents), most)
            return query_tokens, 1.0
        self._count_until_it_fits(query_tokens, documents)
        if not self._fits(row.query, query_tokens, documents):
            # It will be split, and how must not depend on what else was counted.
            self._count_documents(documents)
            return query_tokens, 1.0
        uncounted = sum(document.tokens for document in documents if not document.counted)
        share = uncounted / _weight(query_tokens, documents)
        return query_tokens, 1 - share * (1 - self._tokens_per_bound)

    def _learn(self, tokens: int, most: int) -> None:
        self._sampled_tokens += tokens
        self._sampled_bound += most
        self._tokens_per_bound = self._sampled_tokens / self._sampled_bound

    def _capped(self, text: str) -> tuple[int, bool]:
        """Tokens that the server will read of a text, and whether it cuts it; counted only where
        the bytes leave that open.
        """
        cap = self._limits.max_tokens_per_document
        tokens = bound(text)
        if tokens > cap:
            tokens = self._count(text)
        return min(tokens, cap), tokens > cap

    def _count_documents(self, documents: Sequence[Document]) -> None:
        for document in documents:
            if not document.counted:
                document.tokens = min(self._count(document.text), document.tokens)
                document.counted = True

    def _count_until_it_fits(self, query_tokens: int, documents: Sequence[Document]) -> None:
        """Replace bounds by counts, in order, until the row is known to fit or all are counted."""
        limit = self._limits.max_tokens_per_request
        total = _weight(query_tokens, documents)
        for document in documents:
            if total <= limit:
                return
            before = document.tokens
            self._count_documents([document])
            total -= before - document.tokens

    def _fits(self, query: str, query_tokens: int, documents: Sequence[Document]) -> bool:
        limits = self._limits
        return (
            len(documents) <= limits.max_documents
            and _weight(query_tokens, documents) <= limits.max_tokens_per_request
            and (
                not limits.max_bytes_per_request
                or self._bytes(query, documents) <= limits.max_bytes_per_request
            )
        )

    def _bytes(self, query: str, documents: Sequence[Document]) -> int:
        return self._envelope_bytes + _json_bytes(query) + sum(_sizes(documents))

    def _pack(
        self, query: str, query_tokens: int, documents: list[Document]
    ) -> tuple[list[list[Document]], list[int]]:
        """Documents into the fewest requests, and the positions that fit into none."""
        if self._fits(query, query_tokens, documents):
            return [documents], []
        limits = self._limits
        room = limits.max_bytes_per_request - self._envelope_bytes - _json_bytes(query)
        loads = [(query_tokens + d.tokens) / limits.max_tokens_per_request for d in documents]
        if limits.max_bytes_per_request:
            shares = (size / room if room > 0 else 2.0 for size in _sizes(documents))
            loads = [max(load, share) for load, share in zip(loads, shares, strict=True)]
        small = [(load, d) for load, d in zip(loads, documents, strict=True) if load <= 1]
        oversized = [
            position
            for load, d in zip(loads, documents, strict=True)
            if load > 1
            for position in d.positions
        ]
        return self._fewest(query, query_tokens, small), sorted(oversized)

    def _fewest(
        self, query: str, query_tokens: int, loaded: list[tuple[float, Document]]
    ) -> list[list[Document]]:
        """The smallest number of requests, from the lower bound up, that a balanced deal fills."""
        if not loaded:
            return []
        documents = [document for _, document in loaded]
        requests = self._lower_bound(query_tokens, documents)
        while True:
            packs = _deal(loaded, requests)
            if all(self._fits(query, query_tokens, pack) for pack in packs):
                return packs
            requests += 1

    def _lower_bound(self, query_tokens: int, documents: Sequence[Document]) -> int:
        limits = self._limits
        return max(
            ceil(len(documents) / limits.max_documents),
            ceil(_weight(query_tokens, documents) / limits.max_tokens_per_request),
        )


def _deal(loaded: list[tuple[float, Document]], requests: int) -> list[list[Document]]:
    """Documents dealt to `requests` piles, heaviest first, each to the lightest pile with room.

    Piles differ by at most one document in the most they may hold and by about the lightest
    documents in weight, so a count that can do with so few requests nearly always does. Within a
    pile documents stand in candidate order, and piles in the order of their first document.
    """
    most = ceil(len(loaded) / requests)
    piles: list[list[int]] = [[] for _ in range(requests)]
    lightest = [(0.0, pile) for pile in range(requests)]
    for place in sorted(range(len(loaded)), key=lambda place: (-loaded[place][0], place)):
        load, pile = heapq.heappop(lightest)
        piles[pile].append(place)
        if len(piles[pile]) < most:
            heapq.heappush(lightest, (load + loaded[place][0], pile))
    return [[loaded[place][1] for place in sorted(pile)] for pile in sorted(piles, key=min)]


def _distinct(texts: Sequence[str | None], *, merge: bool) -> tuple[list[Document], list[int]]:
    """The texts worth sending, in order of first sight and each once if `merge`, and the blank
    positions.
    """
    distinct: dict[str | int, Document] = {}
    blank = []
    for position, text in enumerate(texts):
        if text is None or not text or text.isspace():
            blank.append(position)
        elif merge and text in distinct:
            distinct[text].positions.append(position)
        else:
            distinct[text if merge else position] = Document(text, [position], bound(text))
    return list(distinct.values()), blank


def _request(
    row: Row, piece: int, documents: Sequence[Document], query_tokens: int, share: float
) -> RequestPlan:
    assert row.query is not None
    homes = sorted(
        (position, place)
        for place, document in enumerate(documents)
        for position in document.positions
    )
    slot = Slot(row.index, [position for position, _ in homes], [place for _, place in homes])
    texts = [document.text for document in documents]
    tokens = _weight(query_tokens, documents)
    return RequestPlan(
        plan_id=plan_id(row.index, piece),
        query=row.query,
        documents=texts,
        slots=(slot,),
        tokens=tokens,
        estimate=round(tokens * share),
        digest=xxhash.xxh3_64_digest(msgspec.msgpack.encode([row.query, texts])),
    )


def _weight(query_tokens: int, documents: Sequence[Document]) -> int:
    return weight(query_tokens, sum(d.tokens for d in documents), len(documents))


def _json_bytes(text: str) -> int:
    return len(msgspec.json.encode(text)) + 1


def _sizes(documents: Sequence[Document]) -> list[int]:
    return [_json_bytes(document.text) for document in documents]


def _nothing(row: Row, why: str, *, failed: bool = False) -> PlannedRow:
    return PlannedRow(row.index, len(row.texts), (), 0, why, 0, failed)


def _note(blank: Sequence[int], oversized: Sequence[int]) -> str | None:
    """In words, which documents are not sent; None when all are."""
    notes = []
    if blank:
        notes.append(f"{_named(blank)} empty or blank")
    if oversized:
        notes.append(f"{_named(oversized)} too large for a request with this query")
    return "; ".join(notes) or None


def _named(positions: Sequence[int]) -> str:
    shown = ", ".join(str(position) for position in positions[:5])
    more = f" and {len(positions) - 5} more" if len(positions) > 5 else ""
    return f"document {shown}{more} is" if len(positions) == 1 else f"documents {shown}{more} are"
