"""What the account would be billed: requests and tokens by content, however their answer fared.

A request is billed when it was scored, also if its answer was then broken or had nobody left to
take it: the tests use this as the judge of money. No text is kept, only 16-byte digests, and
memory grows with the number of different requests alone.
"""

import hashlib
from collections import Counter
from typing import Any

import msgspec

from batchrank.wire import Ask

# Requests and tokens of a digest share one int (40 bits are 10^12 tokens): half the memory of a
# pair, and nothing for the garbage collector to walk.
_TOKEN_BITS = 40
_TOKEN_MASK = (1 << _TOKEN_BITS) - 1


def content_digest(ask: Ask) -> bytes:
    """16 bytes that stand for the request's model, query, documents and instruct."""
    content = msgspec.json.encode((ask.model, ask.query, ask.documents, ask.instruct))
    return hashlib.blake2b(content, digest_size=16).digest()


class Ledger:
    """Counts of one server's life. `bill` is called by the scoring thread, the rest by the loop."""

    def __init__(self) -> None:
        self.requests = 0
        self.tokens = 0
        self.received = 0
        self.statuses: Counter[int] = Counter()
        self.faults: Counter[str] = Counter()
        self._per_content: dict[bytes, int] = {}

    def arrive(self) -> int:
        """Count a request at the door; its ordinal, from 1."""
        self.received += 1
        return self.received

    def bill(self, content: bytes, tokens: int) -> None:
        """Count a request that was scored."""
        self.requests += 1
        self.tokens += tokens
        known = self._per_content.get(content, 0)
        self._per_content[content] = known + (1 << _TOKEN_BITS) + tokens

    def as_json(self, *, full: bool) -> bytes:
        """The body of GET /ledger; `full` adds [requests, tokens] per content digest."""
        counts: dict[str, Any] = {
            "requests": self.requests,
            "unique": len(self._per_content),
            "tokens": self.tokens,
            "received": self.received,
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "faults": dict(self.faults),
        }
        if full:
            counts["per_content"] = {
                content.hex(): (billed >> _TOKEN_BITS, billed & _TOKEN_MASK)
                for content, billed in self._per_content.copy().items()
            }
        return msgspec.json.encode(counts)
