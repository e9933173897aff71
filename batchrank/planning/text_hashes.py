"""What a row and its pairs are known by: digests, from which no text can be had back.

A pair is known by 8 bytes of xxh3 under a seed from its query's 16, whose own seed is of what
decides scores (provider, model, instruction, …). So a pair is only ever mistaken for another pair
of the same query: with 100 candidates a row, in 10^9 pairs, with a chance of 10^11 / 2^64 = 5e-9;
with 4 bytes it would be certain.

A row's texts are hashed once, which is half of what planning costs beyond reading (23 us for 100
texts of 500 bytes): identical texts, blank ones, changed plans and pairs that an earlier run has
scored are all told by these same numbers. A hash for each of these questions was 35 us more.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, cast

import msgspec
import xxhash

from batchrank.records import Pairs, Row

_NO_QUERY = bytes(16)


class Digests:
    """Names rows and their pairs, under what decides scores."""

    def __init__(self, scoring: Mapping[str, Any]) -> None:
        self._seed = xxhash.xxh3_64_intdigest(msgspec.json.encode(scoring, order="sorted"))

    def named(self, row: Row) -> Row:
        """The row with its names."""
        return Row(row.index, row.query, row.texts, row.known, self.of(row))

    def of(self, row: Row) -> Pairs:
        """A row's name and those of its pairs, 0 for a blank text."""
        if row.query is None or not row.query or row.query.isspace():
            return Pairs(_NO_QUERY, array("Q", [0]) * len(row.texts))
        query = xxhash.xxh3_128_digest(row.query.encode(), self._seed)
        seed = int.from_bytes(query[8:])
        return Pairs(query, array("Q", _digests(row.texts, seed)))


class RowsDigest:
    """One digest for the queries and texts of many rows, in their order."""

    def __init__(self) -> None:
        self._digest = xxhash.xxh3_128()

    def add(self, pairs: Pairs) -> None:
        """Take the next row's names."""
        self._digest.update(pairs.query + len(pairs.texts).to_bytes(4) + pairs.texts.tobytes())

    def hex(self) -> str:
        """The digest of the rows so far."""
        return self._digest.hexdigest()


def digest_of(pairs: Pairs, positions: Sequence[int]) -> bytes:
    """8 bytes that change with a row's query, and with any of the texts at these positions."""
    texts = pairs.texts
    if len(positions) != len(texts):
        texts = array("Q", [texts[position] for position in positions])
    return xxhash.xxh3_64_digest(pairs.query + texts.tobytes())


def digest_before(query: str, documents: Sequence[str]) -> bytes:
    """The digest of a request in checkpoints up to version 2."""
    return xxhash.xxh3_64_digest(msgspec.msgpack.encode([query, documents]))


def _digests(texts: Sequence[str | None], seed: int) -> Iterable[int]:
    if all(texts):
        whole = cast(Sequence[str], texts)
        if not any(map(str.isspace, whole)):  # nearly every row: two thirds of the cost
            return map(xxhash.xxh3_64_intdigest, map(str.encode, whole), repeat(seed))
    return [
        0 if text is None or not text or text.isspace() else next(iter(_digests([text], seed)))
        for text in texts
    ]
