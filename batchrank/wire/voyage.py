"""Voyage's form: `POST {base_url}/rerank`, with `top_k` and `data` where others say otherwise.

Source: docs.voyageai.com, "Rerankers", and the voyageai SDK 0.5.0, which sends `top_k` as null and
whose requests must work against the local server unchanged. An echoed document is a plain string.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from batchrank.wire.replies import Ask, Ranked
from batchrank.wire.request_fields import Fields


class _Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    model: str
    query: str
    documents: Sequence[str]
    top_k: int | None = None
    return_documents: bool = False
    truncation: bool | None = None


_request = msgspec.json.Decoder(_Request)


def request(ask: Ask, fields: Fields | None = None) -> bytes:
    """The body of a request: longer texts are to be cut, as everywhere else, and not refused."""
    return msgspec.json.encode(
        _Request(
            model=ask.model,
            query=ask.query,
            documents=ask.documents,
            top_k=ask.top_n,
            return_documents=ask.return_documents,
            truncation=True,
        )
    )


def read_request(body: bytes) -> Ask:
    """A request's body as the server reads it. Raises msgspec.ValidationError, DecodeError."""
    read = _request.decode(body)
    return Ask(
        model=read.model,
        query=read.query,
        documents=read.documents,
        top_n=read.top_k,
        return_documents=read.return_documents,
    )


def answer(ask: Ask, ranked: Sequence[Ranked], tokens: int, request_id: str) -> bytes:
    """The body of a 200 answer: `ranked` is best first and already cut to `top_n`."""
    usage = {"total_tokens": tokens}
    data = [_result(ask, result) for result in ranked]
    return msgspec.json.encode({"object": "list", "data": data, "model": ask.model, "usage": usage})


def _result(ask: Ask, result: Ranked) -> dict[str, Any]:
    found: dict[str, Any] = {"index": result.index, "relevance_score": result.relevance_score}
    if ask.return_documents:
        found["document"] = ask.documents[result.index]
    return found
