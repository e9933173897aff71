"""Rerank APIs as bytes: a request to and from JSON, an answer to and from JSON.

One file per dialect; the client and the local server share this one text. Nothing here sends,
and nothing here knows what an error means (that is `retry`).
"""

from collections.abc import Sequence
from typing import Protocol

from batchrank.wire import cohere, flat, tei, voyage
from batchrank.wire import dashscope as native
from batchrank.wire import self_hosted as served
from batchrank.wire.replies import Ask, Ranked
from batchrank.wire.request_fields import Fields

__all__ = ["DIALECTS", "Ask", "Dialect", "Fields", "Ranked"]


class Dialect(Protocol):
    """What a module under `wire/` offers. How an answer is read is the same for all: `answers`."""

    def request(self, ask: Ask, fields: Fields = ..., /) -> bytes:
        """The body of a request. The flat form alone differs by `fields`."""

    def read_request(self, body: bytes) -> Ask:
        """A request's body as the server reads it; msgspec.ValidationError where it is not one."""

    def answer(self, ask: Ask, ranked: Sequence[Ranked], tokens: int, request_id: str) -> bytes:
        """The body of a 200 answer, best document first."""


DIALECTS: dict[str, Dialect] = {
    "flat": flat,
    "served": served,
    "cohere": cohere,
    "dashscope-native": native,
    "voyage": voyage,
    "tei": tei,
}
