"""Rerank APIs as bytes: a request to and from JSON, an answer to and from JSON.

One file per dialect; the client and the local server share this one text. Nothing here sends,
and nothing here knows what an error means (that is `retry`).
"""

from collections.abc import Sequence
from typing import Protocol

from batchrank.wire import flat, native
from batchrank.wire.answers import Ask, Ranked

__all__ = ["DIALECTS", "Ask", "Dialect", "Ranked"]


class Dialect(Protocol):
    """What a module under `wire/` offers. `PATH` follows the base URL."""

    PATH: str

    def request(self, ask: Ask) -> bytes:
        """The body of a request."""

    def read_request(self, body: bytes) -> Ask:
        """A request's body as the server reads it; msgspec.ValidationError where it is not one."""

    def answer(self, ask: Ask, ranked: Sequence[Ranked], tokens: int, request_id: str) -> bytes:
        """The body of a 200 answer, best document first."""


DIALECTS: dict[str, Dialect] = {"flat": flat, "dashscope-native": native}
