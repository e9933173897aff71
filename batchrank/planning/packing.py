"""Texts whose tokens are known into the fewest requests that hold them, balanced. Pure."""

import heapq
from collections.abc import Collection, Sequence
from math import ceil

import msgspec

from batchrank.config.limits import RequestLimits, weight
from batchrank.planning.shared_requests import Room, whole_in


class Packing:
    """What a request holds under `limits`; `envelope_bytes` is what one weighs in bytes before
    query and documents.
    """

    def __init__(self, limits: RequestLimits, envelope_bytes: int) -> None:
        self._limits = limits
        # `_json_bytes` counts a comma after each text, and the query's quotes are in the envelope.
        self._envelope_bytes = envelope_bytes - 4

    def holds(self, query: str, total: int, texts: Sequence[str]) -> bool:
        """Whether one request holds these texts, which weigh so many tokens with the query."""
        limits = self._limits
        return (
            len(texts) <= limits.max_documents
            and total <= limits.max_tokens_per_request
            and (
                not limits.max_bytes_per_request
                or self._bytes(query, texts) <= limits.max_bytes_per_request
            )
        )

    def _bytes(self, query: str, texts: Sequence[str]) -> int:
        return self._envelope_bytes + _json_bytes(query) + sum(map(_json_bytes, texts))

    def pack(
        self,
        query: str,
        query_tokens: int,
        texts: Sequence[str],
        tokens: Sequence[int],
        rows: Sequence[Sequence[int]] = (),
    ) -> tuple[list[Sequence[int]], list[int]]:
        """Texts of so many tokens each into the fewest requests, by their places, and those that
        fit into none. Of `rows` of texts, each that fits into one request is in one.
        """
        if self.holds(query, weight(query_tokens, sum(tokens), len(tokens)), texts):
            return [range(len(texts))], []
        limits = self._limits
        shares = [(query_tokens + one) / limits.max_tokens_per_request for one in tokens]
        sizes, room = [0] * len(texts), 1
        if limits.max_bytes_per_request:
            sizes = list(map(_json_bytes, texts))
            room = limits.max_bytes_per_request - self._envelope_bytes - _json_bytes(query)
            parts = (size / room if room > 0 else 2.0 for size in sizes)
            shares = [max(share, part) for share, part in zip(shares, parts, strict=True)]
        oversized = [place for place, share in enumerate(shares) if share > 1]
        small = [place for place, share in enumerate(shares) if share <= 1]
        begun = whole_in(
            Room(limits.max_documents, limits.max_tokens_per_request, room),
            [[place for place in row if shares[place] <= 1] for row in rows],
            [query_tokens + one for one in tokens],
            sizes,
        )
        return self._fewest(query, query_tokens, texts, tokens, small, shares, begun), oversized

    def _fewest(
        self,
        query: str,
        query_tokens: int,
        texts: Sequence[str],
        tokens: Sequence[int],
        places: Sequence[int],
        shares: Sequence[float],
        begun: Sequence[Collection[int]],
    ) -> list[Sequence[int]]:
        """The smallest number of requests, from the lower bound up, that a balanced deal fills;
        those that are begun already are among them.
        """
        if not places:
            return []

        def total(pack: Sequence[int]) -> int:
            return weight(query_tokens, sum(tokens[place] for place in pack), len(pack))

        requests = max(self.lower_bound(total(places), len(places)), len(begun))
        rest = sorted(set(places).difference(*begun)) if begun else places
        while True:
            packs = _deal(rest, shares, requests, begun)
            if all(
                self.holds(query, total(pack), [texts[place] for place in pack]) for pack in packs
            ):
                return packs
            requests += 1

    def lower_bound(self, total: int, documents: int) -> int:
        """No fewer requests hold so many tokens and documents."""
        limits = self._limits
        return max(
            ceil(documents / limits.max_documents), ceil(total / limits.max_tokens_per_request)
        )


def _deal(
    places: Sequence[int],
    shares: Sequence[float],
    requests: int,
    begun: Sequence[Collection[int]] = (),
) -> list[Sequence[int]]:
    """Places dealt to `requests` piles, heaviest first, each to the lightest pile with room; some
    piles are begun already.

    Piles differ by at most one document in the most they may hold and by about the lightest
    documents in weight, so a count that can do with so few requests nearly always does. Within a
    pile documents stand in candidate order, and piles in the order of their first document.
    """
    piles = [*map(list, begun), *([] for _ in range(requests - len(begun)))]
    most = max(ceil((len(places) + sum(map(len, piles))) / requests), *map(len, piles))
    lightest = [
        (sum(shares[place] for place in pile), number)
        for number, pile in enumerate(piles)
        if len(pile) < most
    ]
    heapq.heapify(lightest)
    for place in sorted(places, key=lambda place: (-shares[place], place)):
        load, pile = heapq.heappop(lightest)
        piles[pile].append(place)
        if len(piles[pile]) < most:
            heapq.heappush(lightest, (load + shares[place], pile))
    return [sorted(pile) for pile in sorted(filter(None, piles), key=min)]


def _json_bytes(text: str) -> int:
    return len(msgspec.json.encode(text)) + 1
