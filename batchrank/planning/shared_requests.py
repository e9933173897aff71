"""Rows that share a query, together: which wait for which, and which share a request.

A row that fits into one request stays whole: the vendor calls scores relative to their request.
Rows of one query may lie far apart in a part, so they wait until the last of them has come; what
waits is bounded, and where it is too much, those whose next companion is furthest away go without
it. All this depends on the rows alone, in their order, and begins anew with each part: a run that
is killed and resumed plans what it planned before.
"""

import heapq
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import isnan

import msgspec

from batchrank.records import (
    PLAN_BITS,
    Pairs,
    PlannedRow,
    RequestPlan,
    Row,
    RowScores,
    Slot,
    plan_of,
    widened,
)

HELD_BYTES = 64 << 20
"""Of texts that wait, each counted once, as Python holds them at the most."""
OPEN_PILES = 16
"""A row looks at so many of the latest requests: one query may have thousands of rows."""
_TEXT_BYTES = 256
_PLACE_BYTES = 34
"""What a text takes besides its characters, entries of two tables included; a candidate's place,
digest, known score and its day.
"""


class Room(msgspec.Struct, frozen=True):
    """What a request holds: documents, their tokens with the query's for each, and their bytes."""

    documents: int
    tokens: int
    bytes: float


class _Pile:
    """The texts of a request that is being filled, by their places."""

    def __init__(self, room: Room, tokens: Sequence[int], sizes: Sequence[int]) -> None:
        self.places: set[int] = set()
        self._room = room
        self._tokens = tokens
        self._sizes = sizes

    def added(self, row: Sequence[int]) -> int | None:
        """The tokens that a row's texts would add; None where they do not all fit."""
        new, left = self._new(row), self._room
        if len(new) > left.documents:  # said first: of many requests most are full
            return None
        added = sum(self._tokens[place] for place in new)
        fits = added <= left.tokens and sum(self._sizes[place] for place in new) <= left.bytes
        return added if fits else None

    def take(self, row: Sequence[int]) -> None:
        """Add a row's texts, which fit."""
        new = self._new(row)
        self.places.update(new)
        self._room = Room(
            self._room.documents - len(new),
            self._room.tokens - sum(self._tokens[place] for place in new),
            self._room.bytes - sum(self._sizes[place] for place in new),
        )

    def _new(self, row: Sequence[int]) -> list[int]:
        return [place for place in row if place not in self.places]


def whole_in(
    room: Room, rows: Iterable[Sequence[int]], tokens: Sequence[int], sizes: Sequence[int]
) -> list[set[int]]:
    """Rows, given by the places of their texts, into few requests, each whole in one: the heaviest
    first, each where it adds least. A row that fits into none by itself is left out.
    """
    piles: list[_Pile] = []
    for row in sorted(rows, key=lambda row: -sum(tokens[place] for place in row)):
        fresh = _Pile(room, tokens, sizes)
        if not row or fresh.added(row) is None:
            continue
        added = {pile: pile.added(row) for pile in piles[-OPEN_PILES:]}
        adding = {pile: tokens for pile, tokens in added.items() if tokens is not None}
        if not adding:
            piles.append(fresh)
            adding[fresh] = 0
        min(adding, key=lambda pile: adding[pile]).take(row)
    return [pile.places for pile in piles]


class Shared:
    """Requests and the rows that share them. Both are given by places among the texts of all rows;
    `packs` are the requests that come of it, with the texts that a row takes from them.
    """

    def __init__(self, packs: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> None:
        having: dict[int, set[int]] = {}
        for number, pack in enumerate(packs):
            for place in pack:
                having.setdefault(place, set()).add(number)
        self._rows = rows
        self._takes = [_takes(row, having) for row in rows]
        taken: list[set[int]] = [set() for _ in packs]
        for takes in self._takes:
            for place, number in takes.items():
                taken[number].add(place)
        order = sorted((min(places), number) for number, places in enumerate(taken) if places)
        self.packs = [sorted(taken[number]) for _, number in order]
        self._piece = {number: piece for piece, (_, number) in enumerate(order)}
        self._documents = [{place: at for at, place in enumerate(pack)} for pack in self.packs]

    def slots(self, at: int, row: int, homes: Sequence[Sequence[int]] | None) -> dict[int, Slot]:
        """What a row, the one at this place of all, has of each request, by the request's number.
        `homes` are the candidates that hold each of its texts; None: text i is candidate i.
        """
        found: dict[int, list[tuple[int, int]]] = {}
        takes = self._takes[at]
        for own, place in enumerate(self._rows[at]):
            if place not in takes:  # too large for any request
                continue
            piece = self._piece[takes[place]]
            for position in [own] if homes is None else homes[own]:
                found.setdefault(piece, []).append((position, self._documents[piece][place]))
        return {
            piece: Slot(row, *map(list, zip(*sorted(found[piece]), strict=True)))
            for piece in sorted(found)
        }


def _takes(row: Sequence[int], having: Mapping[int, set[int]]) -> dict[int, int]:
    """Which request each text of a row is taken from, of those that have it: all from the first
    that has all of them; where there is none, each from the first.
    """
    sent = [having[place] for place in row if place in having]
    whole = set.intersection(*sent) if sent else ()
    return {place: min(whole or having[place]) for place in row if place in having}


class Waiting:
    """The rows of one part on their way to be planned, from row `first` on; their `queries` are
    known beforehand. At most about `held_bytes` of texts wait.
    """

    def __init__(
        self, first: int, queries: Iterable[str | None], held_bytes: int = HELD_BYTES
    ) -> None:
        self._first = first
        self._next = _next_of_same(queries)
        self._groups: dict[str, list[Row]] = {}
        self._upcoming: dict[str, int] = {}
        self._furthest: list[tuple[int, str]] = []
        self._held = _Held()
        self._most = held_bytes

    def take(self, row: Row) -> list[list[Row]]:
        """A row has come; the groups of rows that wait no longer, this one's or others'."""
        at = row.index - self._first
        upcoming = self._next[at]
        if row.query is None or (upcoming < 0 and row.query not in self._groups):
            ready = [[row]]
        else:
            texts = self._held.take(row.texts)
            waiting = msgspec.structs.replace(row, texts=texts)
            self._groups.setdefault(row.query, []).append(waiting)
            self._upcoming[row.query] = upcoming
            heapq.heappush(self._furthest, (-upcoming, row.query))
            ready = [self._let_go(row.query)] if upcoming < 0 else []
            while self._held.bytes > self._most:
                ready += self._without_the_furthest()
        if at + 1 == len(self._next):  # nobody is left, unless two queries have the same hash
            ready += [self._let_go(query) for query in list(self._groups)]
        return ready

    def _without_the_furthest(self) -> list[list[Row]]:
        """Who would wait longest goes; nobody, if that entry is out of date."""
        upcoming, query = heapq.heappop(self._furthest)
        return [self._let_go(query)] if self._upcoming.get(query) == -upcoming else []

    def _let_go(self, query: str) -> list[Row]:
        rows = self._groups.pop(query)
        del self._upcoming[query]
        for row in rows:
            self._held.give_back(row.texts)
        return rows


def complete(row: PlannedRow) -> list[RequestPlan]:
    """The plans that wait for no other row: rows come in order, and this is their last."""
    return [plan for plan in row.plans if plan.slots[-1].row == row.index]


class Again:
    """What is asked again of parts that were published: of their rows that failed, if
    `retry_failed`, the candidates without a score. Their other rows are settled. Ids go on after
    those in use.
    """

    def __init__(self, rows: Iterable[RowScores] = (), *, retry_failed: bool = True) -> None:
        self._retry_failed = retry_failed
        self._before: dict[int, RowScores] = {}
        self._pieces: dict[int, int] = {}
        self._uses = Counter[int]()
        for row in rows:
            self._uses.update(row.request_ids)
            self._before[row.index] = row
            for request in row.request_ids:
                lead, piece = divmod(plan_of(request), 1 << PLAN_BITS)
                self._pieces[lead] = max(self._pieces.get(lead, 0), piece + 1)

    def is_open(self, row: int) -> bool:
        """Whether a row is to be planned: it is no settled row of such a part."""
        before = self._before.get(row)
        return before is None or (self._retry_failed and before.failed_requests > 0)

    def row(self, row: Row) -> Row:
        """A row with the scores that it has, besides those that an earlier run knew; a settled one
        has no query, so nothing is planned.
        """
        before = self._before.get(row.index)
        if before is None:
            return row
        if not self.is_open(row.index):
            return msgspec.structs.replace(row, query=None, pairs=self._pairs(row, before))
        known = widened(before, len(row.texts)).relevance_scores
        if row.known is not None:
            both = zip(row.known, known, strict=True)
            known = array("d", [had if isnan(score) else score for score, had in both])
        return msgspec.structs.replace(row, known=known)

    def _pairs(self, row: Row, before: RowScores) -> Pairs:
        assert row.pairs is not None, "a row without names"
        shared = any(self._uses[request] > 1 for request in before.request_ids)
        return msgspec.structs.replace(row.pairs, shared=shared)

    def piece(self, lead: int) -> int:
        """The number of the first request of rows the first of which is this."""
        return self._pieces.get(lead, 0)


class _Held:
    """The texts of rows that wait. The same documents come back in list after list: each text is
    held once.
    """

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._uses: dict[str, int] = {}
        self.bytes = 0

    def take(self, texts: Sequence[str | None]) -> list[str | None]:
        """A row's texts, as they are held."""
        self.bytes += _PLACE_BYTES * len(texts)
        held: list[str | None] = []
        for text in texts:
            if text is not None:
                if text not in self._texts:
                    self._texts[text] = text
                    self.bytes += _size(text)
                text = self._texts[text]
                self._uses[text] = self._uses.get(text, 0) + 1
            held.append(text)
        return held

    def give_back(self, texts: Sequence[str | None]) -> None:
        """A row waits no longer."""
        self.bytes -= _PLACE_BYTES * len(texts)
        for text in texts:
            if text is not None:
                self._uses[text] -= 1
                if not self._uses[text]:
                    del self._uses[text], self._texts[text]
                    self.bytes -= _size(text)


def _size(text: str) -> int:
    return _TEXT_BYTES + len(text) * (1 if text.isascii() else 4)


def _next_of_same(queries: Iterable[str | None]) -> "array[int]":
    """For each row the place of the next with its query; -1 where there is none."""
    hashes = [None if query is None else hash(query) for query in queries]
    following = array("q", [-1]) * len(hashes)
    last: dict[int, int] = {}
    for at in reversed(range(len(hashes))):
        if (query := hashes[at]) is not None:
            following[at] = last.get(query, -1)
            last[query] = at
    return following
