"""What one request may hold and what an account may send in a minute, and whether a thing fits.

The defaults are those of `qwen3-rerank` (Model Studio, "Text rerank" and "Rate limits", as read
in June 2026). An older page says 30,000 tokens a request, which is why every figure is a setting.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

Whole = Annotated[int, Meta(ge=0, le=10**12)]
AtLeastOne = Annotated[int, Meta(ge=1, le=10**12)]
Amount = Annotated[float, Meta(ge=0, le=1e12)]


class RequestLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of one request: documents, tokens (`query x documents + sum(documents)`), bytes."""

    max_documents: AtLeastOne = 500
    max_tokens_per_document: AtLeastOne = 4000
    max_tokens_per_request: AtLeastOne = 120_000
    max_bytes_per_request: Whole = 0


AIM = 0.985
"""The share of the account's limits that is used: below it no second of the server's overflows."""
AIM_BY_MINUTE = 0.995
"""That of the requests where minutes alone are held: those of 0.3 s may then come late, at once.
Tokens come in lumps, which leaves less of such a margin: of them no more is used.
"""


class RateLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of the account, per minute (0: unlimited), and how they are approached."""

    requests_per_minute: Amount = 5400
    tokens_per_minute: Amount = 0
    max_in_flight: Annotated[int, Meta(ge=1, le=4096)] = 64
    ramp_seconds: Amount = 10
    held_per_second: bool = True

    @property
    def aim(self) -> float:
        """The share of the requests that is used. A limit with a fraction (divided by hand) gets
        the wider margin: half a request may be all that the other leaves.
        """
        whole = self.requests_per_minute % 1 == 0
        return AIM_BY_MINUTE if whole and not self.held_per_second else AIM


def weight(query_tokens: int, document_tokens: int, documents: int) -> int:
    """Tokens that a request weighs: the query counts once for each document.

    `document_tokens` is the sum over the request's documents, each already cut to the limit per
    document. Source: Model Studio, "Text rerank", limits of qwen3-rerank.
    """
    return query_tokens * documents + document_tokens
