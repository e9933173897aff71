"""A scorer that costs nothing and means nothing: for load tests, benchmarks and fault drills."""

from collections.abc import Sequence
from zlib import crc32


class HashScorer:
    """Scores from 0 to 1 by a checksum of instruct, query and document: stable, about 0.3 us each.

    It says nothing about relevance. `batchrank serve --scorer hash` offers it so that a
    measurement sees the client and the server's HTTP, not a model.
    """

    def scores(self, query: str, documents: Sequence[str], instruct: str) -> list[float]:
        """One score per document, in order."""
        start = crc32(query.encode(), crc32(instruct.encode()))
        return [crc32(document.encode(), start) / 0xFFFFFFFF for document in documents]
