"""Cohere's v2 answer to a flat request: `POST {base_url}/v2/rerank`, billed by the search.

Source: cohere SDK 7.3.1 (`v2/raw_client.py`) and docs.cohere.com, "Rerank API (v2)"; the answer has
no tokens, and names its searches under `meta`. A search is a query with up to 100 documents, where
a document longer than 500 tokens, the query's among them, counts once for each 500 (cohere.com,
"Pricing", 2026). How it cuts such a document is not published, so `most_searches` takes one more
for each.
"""

from collections.abc import Sequence
from math import ceil

import msgspec

from batchrank.wire.flat import read_request, request
from batchrank.wire.replies import Ask, Ranked

__all__ = ["answer", "most_searches", "read_request", "request", "searches"]

DOCUMENTS_PER_SEARCH = 100
TOKENS_PER_DOCUMENT = 500


def searches(tokens: int, documents: int) -> int:
    """The searches of a request that weighs `query x documents + documents` tokens."""
    return ceil(max(documents, tokens / TOKENS_PER_DOCUMENT) / DOCUMENTS_PER_SEARCH)


def most_searches(tokens: int, documents: int) -> int:
    """The most that they can be."""
    return ceil((documents + tokens // TOKENS_PER_DOCUMENT) / DOCUMENTS_PER_SEARCH)


def answer(ask: Ask, ranked: Sequence[Ranked], tokens: int, request_id: str) -> bytes:
    """The body of a 200 answer: `ranked` is best first and already cut to `top_n`."""
    billed = {"search_units": searches(tokens, len(ask.documents))}
    version = {"version": "2", "is_experimental": False}
    meta = {"api_version": version, "billed_units": billed}
    return msgspec.json.encode({"id": request_id, "results": ranked, "meta": meta})
