"""The OpenAI-compatible form of Model Studio: `POST {base_url}/reranks`, one flat object.

Source: Model Studio, "OpenAI compatible reranking" and "Text rerank"; note the plural in the path
and `compatible-api` (not `compatible-mode`) in the base URL. `top_n` and `return_documents` are
left out of what the client sends: all scores are wanted, and an echo would only cost bandwidth.
"""

from collections.abc import Sequence

import msgspec

from batchrank.wire.answers import Ask, Ranked

PATH = "/reranks"


_request = msgspec.json.Decoder(Ask)


def request(ask: Ask) -> bytes:
    """The body of a request."""
    return msgspec.json.encode(ask)


def read_request(body: bytes) -> Ask:
    """A request's body as the server reads it. Raises msgspec.ValidationError, DecodeError."""
    return _request.decode(body)


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
