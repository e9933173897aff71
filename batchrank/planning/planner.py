"""Rows into request plans.

Pure: same rows and limits, same plans, same ids, on any machine and any day. A row that fits is
one request; one that does not becomes the fewest that hold it, balanced, its documents in
candidate order within each. Identical texts of a request are sent once, blank ones and those whose
score is known never. Rows that share a query can be planned together; a row that fits is in one
request then too (see `uniting`).
This file does not know that plans are sent, nor that sending can fail.
"""

from array import array
from collections.abc import Callable, Sequence, Set
from math import ceil, isnan
from typing import cast

import msgspec

from batchrank.config.limits import RequestLimits, weight
from batchrank.planning.packing import Packing
from batchrank.planning.shared_requests import Shared
from batchrank.planning.text_hashes import Digests, digest_of
from batchrank.planning.tokens import bound, bounds, counts, likely
from batchrank.records import Pairs, PlannedRow, RequestPlan, Row, Slot, plan_id

TOKENS_PER_BOUND = 0.25
"""Tokens for each byte of a text, until texts tell: English 0.22, Chinese 0.27, code 0.24."""
SAMPLE_EVERY = 64
_SAMPLE_TEXTS = 4
_SAMPLE_CHARACTERS = 2000
NOT_WHOLE = (
    "do not fit into one request, and this model scores a list as a whole: not sent (see [limits] "
    "and endpoint.scores_lists)"
)


class _Load(msgspec.Struct, gc=False):
    """The distinct texts of a row that are worth sending, and the tokens that will be read of each:
    at the most, or exactly for the first `counted` and those in `known`. `homes` are the positions
    that hold each text; None: text i is candidate i.
    """

    texts: Sequence[str]
    tokens: list[int]
    homes: Sequence[Sequence[int]] | None
    counted: int = 0
    known: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.texts)

    def weight(self, query_tokens: int) -> int:
        return weight(query_tokens, sum(self.tokens), len(self.tokens))

    def firsts(self, places: Sequence[int]) -> Sequence[int]:
        """The first candidate that holds each of these texts."""
        return places if self.homes is None else [self.homes[place][0] for place in places]

    def positions(self, places: Sequence[int]) -> Sequence[int]:
        """The candidates that hold these texts."""
        if self.homes is None:
            return places
        return sorted(position for place in places for position in self.homes[place])


class Planner:
    """Turns rows into plans under `limits`.

    Tokens are counted where bytes cannot decide, and in every row when `exact`. Else a look at a
    few texts of one row of `SAMPLE_EVERY` says how many tokens their bytes are likely to be, so
    that a run can estimate what it sends without the vocabulary.
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
        counts: Callable[[Sequence[str]], list[int]] = counts,
    ) -> None:
        self._limits = limits
        self._exact = exact
        self._packing = Packing(limits, envelope_bytes)
        self._whole = whole
        self._counts = counts
        self._seen_tokens = self._seen_bound = 0.0
        self._tokens_per_bound = TOKENS_PER_BOUND

    def plan(self, row: Row) -> PlannedRow:
        """The requests of one row, and what of it will not be sent."""
        pairs = _names(row)
        if row.query is None or not row.query or row.query.isspace():
            return _nothing(row, pairs, "the query is null or blank")
        if not row.texts:
            return _nothing(row, pairs, "the row has no candidates")
        load, blank = _distinct(row.texts, pairs, row.known, merge=not self._whole)
        if not load.texts and row.known is None:
            return _nothing(row, pairs, "every candidate is empty or blank")

        query = _Load([row.query], bounds([row.query]), None)
        truncated = len(self._cap(query)) + len(load.positions(self._cap(load)))
        truncated += self._cut_before(row)
        if not load.texts:
            return PlannedRow(
                index=row.index,
                candidates=len(row.texts),
                plans=(),
                truncated=truncated,
                note=_note(blank, ()),
                fewest=0,
                known=row.known,
                pairs=pairs,
            )
        query_tokens, share = self._count_if_needed(row, query, load)
        packs, oversized = self._packing.pack(row.query, query_tokens, load.texts, load.tokens)
        if self._whole and (oversized or len(packs) > 1):
            return _nothing(row, pairs, f"{len(load)} documents {NOT_WHOLE}", failed=True)
        return PlannedRow(
            index=row.index,
            candidates=len(row.texts),
            plans=[
                _request(
                    *(row, pairs, piece, load, pack, query_tokens, share),
                    slots=(_slot(row.index, load, pack),),
                )
                for piece, pack in enumerate(packs)
            ],
            truncated=truncated,
            note=_note(blank, load.positions(oversized)),
            fewest=self._packing.lower_bound(load.weight(query_tokens), len(load)),
            known=row.known,
            pairs=pairs,
        )

    def plan_together(self, rows: Sequence[Row], first_piece: int = 0) -> list[PlannedRow]:
        """The requests of rows with one query, in the order of the input, numbered from
        `first_piece`. A text is in a request once, and a row that fits is in one request. The lower
        bound is that of all of them, at the first that has something to send.
        """
        if len(rows) == 1 and not first_piece:
            return [self.plan(rows[0])]
        pairs = list(map(_names, rows))
        own = [
            _distinct(row.texts, named, row.known, merge=True)
            for row, named in zip(rows, pairs, strict=True)
        ]
        texts = list(dict.fromkeys(text for load, _ in own for text in load.texts))
        joined = Row(rows[0].index, rows[0].query, texts)
        if not joined.query or joined.query.isspace() or not texts:
            return [self.plan(row) for row in rows]
        place_of = {text: place for place, text in enumerate(texts)}
        places = [[place_of[text] for text in load.texts] for load, _ in own]
        query = _Load([joined.query], bounds([joined.query]), None)
        union = _Load(texts, bounds(texts), None)
        cut_query, cut = len(self._cap(query)), set(self._cap(union))
        query_tokens, share = self._count_if_needed(joined, query, union)
        packs, too_large = self._packing.pack(
            joined.query, query_tokens, texts, union.tokens, places
        )
        shared = Shared(packs, places)
        slots = [
            shared.slots(at, row.index, load.homes)
            for at, (row, (load, _)) in enumerate(zip(rows, own, strict=True))
        ]
        name_of = {
            text: name
            for row, named in zip(rows, pairs, strict=True)
            for text, name in zip(row.texts, named.texts, strict=True)
        }
        names = Pairs(pairs[0].query, array("Q", [name_of[text] for text in texts]))
        plans = [
            _request(
                *(joined, names, first_piece + piece, union, pack, query_tokens, share),
                slots=[of[piece] for of in slots if piece in of],
            )
            for piece, pack in enumerate(shared.packs)
        ]
        first = next(at for at, mine in enumerate(places) if mine)
        fewest = {first: self._packing.lower_bound(union.weight(query_tokens), len(union))}
        return [
            self.plan(row)
            if not load.texts
            else _member(
                *(row, named, load, blank, [plans[piece] for piece in of]),
                truncated=cut_query
                + len(load.positions(_those(mine, cut)))
                + self._cut_before(row),
                oversized=_those(mine, set(too_large)),
                fewest=fewest.get(at, 0),
            )
            for at, (row, named, (load, blank), mine, of) in enumerate(
                zip(rows, pairs, own, places, slots, strict=True)
            )
        ]

    def _cut_before(self, row: Row) -> int:
        """How many of a row's candidates that have their scores were cut."""
        if row.known is None:
            return 0
        known = zip(row.texts, row.known, strict=True)
        there = [text for text, score in known if text and not isnan(score)]
        return len(self._cap(_Load(there, bounds(there), None)))

    def _cap(self, load: _Load) -> list[int]:
        """Take tokens beyond the limit per text off: the server does not read them. Counts what
        the bytes leave open; the places of the texts that are cut.
        """
        cap = self._limits.max_tokens_per_document
        if max(load.tokens, default=0) <= cap:
            return []
        over = [place for place, tokens in enumerate(load.tokens) if tokens > cap]
        cut = []
        for place, tokens in zip(
            over, self._counts([load.texts[place] for place in over]), strict=True
        ):
            load.tokens[place] = min(tokens, cap)
            if tokens > cap:
                cut.append(place)
        load.known = frozenset(over)
        return cut

    def _count_if_needed(self, row: Row, query: _Load, load: _Load) -> tuple[int, float | None]:
        """Replace bounds by counts where they must be; the query's tokens, and what share of the
        tokens now known at the most the row is likely to have; None where all are counted.
        """
        assert row.query is not None
        (query_tokens,) = query.tokens
        if not self._exact and row.index % SAMPLE_EVERY == 0:
            self._sample(load.texts)
        if not self._exact and self._packing.holds(
            row.query, load.weight(query_tokens), load.texts
        ):
            return query_tokens, self._tokens_per_bound
        self._count(query, 1)
        (query_tokens,) = query.tokens
        if self._exact:
            self._count(load, len(load))
            return query_tokens, None
        self._count_until_it_fits(query_tokens, load)
        total = load.weight(query_tokens)
        if not self._packing.holds(row.query, total, load.texts):
            # It will be split, and how must not depend on what else was counted.
            self._count(load, len(load))
            return query_tokens, None
        uncounted = sum(
            tokens
            for place, tokens in enumerate(load.tokens[load.counted :], load.counted)
            if place not in load.known
        )
        if not uncounted:
            return query_tokens, None
        return query_tokens, 1 - uncounted / total * (1 - self._tokens_per_bound)

    def _count(self, load: _Load, stop: int) -> None:
        """Replace bounds by counts up to a place, and learn from them how the two compare."""
        start, load.counted = load.counted, stop
        if not load.known:  # nearly every row
            if start < stop:
                found = self._counts(load.texts[start:stop])
                self._learn(load.tokens[start:stop], found)
                load.tokens[start:stop] = found
            return
        places = [place for place in range(start, stop) if place not in load.known]
        if places:
            found = self._counts([load.texts[place] for place in places])
            self._learn([load.tokens[place] for place in places], found)
            for place, tokens in zip(places, found, strict=True):
                load.tokens[place] = tokens

    def _learn(self, bounds: Sequence[int], tokens: Sequence[int]) -> None:
        self._seen_bound += sum(bounds)
        self._seen_tokens += sum(tokens)
        self._tokens_per_bound = self._seen_tokens / self._seen_bound

    def _sample(self, texts: Sequence[str]) -> None:
        """Learn from a few of these texts how tokens and bounds are likely to compare."""
        for text in texts[:: ceil(len(texts) / _SAMPLE_TEXTS)]:
            self._seen_bound += bound(text[:_SAMPLE_CHARACTERS])
            self._seen_tokens += likely(text[:_SAMPLE_CHARACTERS])
        self._tokens_per_bound = min(1.0, self._seen_tokens / self._seen_bound)

    def _count_until_it_fits(self, query_tokens: int, load: _Load) -> None:
        """Replace bounds by counts, in order, until the row is known to fit or all are counted:
        each time as many as are likely to do.
        """
        limit = self._limits.max_tokens_per_request
        while (over := load.weight(query_tokens) - limit) > 0 and load.counted < len(load):
            rest = len(load) - load.counted
            mean = sum(load.tokens[load.counted :]) / rest
            likely_to_do = ceil(over / (1 - TOKENS_PER_BOUND) / mean)
            self._count(load, load.counted + min(rest, likely_to_do))


_unnamed = Digests({})


def _names(row: Row) -> Pairs:
    """A row's names; of their own kind where the run has given it none."""
    return row.pairs or _unnamed.of(row)


def _distinct(
    texts: Sequence[str | None], pairs: Pairs, known: "array[float] | None", *, merge: bool
) -> tuple[_Load, list[int]]:
    """The texts worth sending, in order of first sight and each once if `merge`, and the blank
    positions. What has a score already is not sent.
    """
    names = set(pairs.texts)
    if known is None and len(names) == len(texts) and 0 not in names:  # nearly every row
        whole = cast(Sequence[str], texts)
        return _Load(whole, bounds(whole), None), []
    homes: dict[str | int, list[int]] = {}
    blank = []
    for position, text in enumerate(texts):
        if text is None or not text or text.isspace():
            blank.append(position)
        elif known is None or isnan(known[position]):
            homes.setdefault(text if merge else position, []).append(position)
    worth = [cast(str, texts[positions[0]]) for positions in homes.values()]
    return _Load(worth, bounds(worth), list(homes.values())), blank


def _slot(row: int, load: _Load, pack: Sequence[int]) -> Slot:
    if load.homes is None:
        return Slot(row, pack, range(len(pack)))
    homes = sorted(
        (position, document)
        for document, place in enumerate(pack)
        for position in load.homes[place]
    )
    return Slot(row, [position for position, _ in homes], [at for _, at in homes])


def _request(
    row: Row,
    pairs: Pairs,
    piece: int,
    load: _Load,
    pack: Sequence[int],
    query_tokens: int,
    share: float | None,
    slots: Sequence[Slot],
) -> RequestPlan:
    assert row.query is not None
    whole = len(pack) == len(load)
    texts = load.texts if whole else [load.texts[place] for place in pack]
    tokens = load.tokens if whole else [load.tokens[place] for place in pack]
    total = weight(query_tokens, sum(tokens), len(tokens))
    return RequestPlan(
        plan_id=plan_id(row.index, piece),
        query=row.query,
        documents=texts,
        slots=slots,
        tokens=total,
        estimate=total if share is None else max(2 * len(texts), round(total * share)),
        digest=digest_of(pairs, load.firsts(pack)),
        counted=share is None,
    )


def _member(
    row: Row,
    pairs: Pairs,
    load: _Load,
    blank: Sequence[int],
    plans: Sequence[RequestPlan],
    *,
    truncated: int,
    oversized: Sequence[int],
    fewest: int,
) -> PlannedRow:
    """A row of those planned together; `oversized` are places of its own texts."""
    note = _note(blank, load.positions(oversized))
    if any(len(plan.documents) > len(load) for plan in plans):
        pairs = msgspec.structs.replace(pairs, shared=True)
    return PlannedRow(
        index=row.index,
        candidates=len(row.texts),
        plans=plans,
        truncated=truncated,
        note=note,
        fewest=fewest,
        known=row.known,
        pairs=pairs,
    )


def _those(places: Sequence[int], wanted: Set[int]) -> list[int]:
    """Which of a row's texts are among these of all."""
    return [own for own, place in enumerate(places) if place in wanted]


def _nothing(row: Row, pairs: Pairs, why: str, *, failed: bool = False) -> PlannedRow:
    return PlannedRow(row.index, len(row.texts), (), 0, why, 0, failed, pairs=pairs)


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
