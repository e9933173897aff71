"""Text Embeddings Inference: `POST {base_url}/rerank` with `texts`, and a bare list for an answer.

Source: huggingface/text-embeddings-inference, `router/src/http/types.rs` and `server.rs`. There is
one model and it is not named; tokens come in the header `x-compute-tokens`. Without `truncate` a
pair over the model's length is refused with the whole request.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from batchrank.wire.replies import Ask, Ranked
from batchrank.wire.request_fields import Fields


class _Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    query: str
    texts: Sequence[str]
    truncate: bool | None = None
    return_text: bool = False


_request = msgspec.json.Decoder(_Request)


def request(ask: Ask, fields: Fields | None = None) -> bytes:
    """The body of a request: longer pairs are to be cut, as everywhere else, and not refused."""
    return msgspec.json.encode(
        _Request(
            query=ask.query,
            texts=ask.documents,
            truncate=True,
            return_text=ask.return_documents,
        )
    )


def read_request(body: bytes) -> Ask:
    """A request's body as the server reads it. Raises msgspec.ValidationError, DecodeError."""
    read = _request.decode(body)
    return Ask(model="", query=read.query, documents=read.texts, return_documents=read.return_text)


def answer(ask: Ask, ranked: Sequence[Ranked], tokens: int, request_id: str) -> bytes:
    """The body of a 200 answer: `ranked` is best first."""
    return msgspec.json.encode([_result(ask, result) for result in ranked])


def _result(ask: Ask, result: Ranked) -> dict[str, Any]:
    found: dict[str, Any] = {"index": result.index, "score": result.relevance_score}
    if ask.return_documents:
        found["text"] = ask.documents[result.index]
    return found
