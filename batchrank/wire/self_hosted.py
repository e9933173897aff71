"""The answer of servers of one's own to a flat request: vLLM, Infinity and llama.cpp agree on it.

Sources: vllm, `entrypoints/pooling/scoring/protocol.py` @5315868; michaelfeil/infinity @fcb951c;
ggml-org/llama.cpp, `tools/server`. LiteLLM's adapter for Infinity relies on `prompt_tokens`.
"""

from collections.abc import Sequence

import msgspec

from batchrank.wire.flat import read_request, request
from batchrank.wire.replies import Ask, Ranked

__all__ = ["answer", "read_request", "request"]


def answer(ask: Ask, ranked: Sequence[Ranked], tokens: int, request_id: str) -> bytes:
    """The body of a 200 answer: `ranked` is best first and already cut to `top_n`."""
    return msgspec.json.encode(
        {
            "object": "rerank",
            "results": ranked,
            "model": ask.model,
            "id": request_id,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )
