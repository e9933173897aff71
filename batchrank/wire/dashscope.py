"""DashScope's own form: `POST {base_url}/services/rerank/text-rerank/text-rerank`, nested.

Source: Model Studio, "DashScope reranking", and the dashscope SDK 2.0.2, which sends only the
parameters that were set and whose requests must work against the local server unchanged.
"""

from collections.abc import Sequence

import msgspec

from batchrank.wire.replies import Ask, Ranked
from batchrank.wire.request_fields import Fields


class _Input(msgspec.Struct, frozen=True):
    query: str
    documents: Sequence[str]


class _Parameters(msgspec.Struct, frozen=True, omit_defaults=True):
    top_n: int | None = None
    return_documents: bool = False
    instruct: str | None = None


class _Request(msgspec.Struct, frozen=True):
    model: str
    input: _Input
    parameters: _Parameters = _Parameters()


_request = msgspec.json.Decoder(_Request)


def request(ask: Ask, fields: Fields | None = None) -> bytes:
    """The body of a request."""
    parameters = _Parameters(ask.top_n, ask.return_documents, ask.instruct)
    return msgspec.json.encode(_Request(ask.model, _Input(ask.query, ask.documents), parameters))


def read_request(body: bytes) -> Ask:
    """A request's body as the server reads it. Raises msgspec.ValidationError, DecodeError."""
    read = _request.decode(body)
    return Ask(
        model=read.model,
        query=read.input.query,
        documents=read.input.documents,
        top_n=read.parameters.top_n,
        instruct=read.parameters.instruct,
        return_documents=read.parameters.return_documents,
    )


def answer(ask: Ask, ranked: Sequence[Ranked], tokens: int, request_id: str) -> bytes:
    """The body of a 200 answer: `ranked` is best first and already cut to `top_n`."""
    return msgspec.json.encode(
        {
            "output": {"results": ranked},
            "usage": {"total_tokens": tokens},
            "request_id": request_id,
        }
    )
