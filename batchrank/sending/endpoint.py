"""What sending is handed: the endpoint as a few calls, so that it can be another's in a test."""

from collections.abc import Sequence
from typing import Protocol

from batchrank.sending.verdicts import Exchange, Verdict


class Endpoint(Protocol):
    """What dispatch is handed: a request's bytes, leave to send it, the sending of it."""

    def encode(self, query: str, documents: Sequence[str]) -> bytes:
        """The body of a request."""

    async def admit(self, tokens: int, documents: int) -> float:
        """Wait for a request's turn; the instant of its permission."""

    async def exchange(self, body: bytes, documents: int) -> Exchange:
        """Send a body; what came back."""

    def learn(self, verdict: Verdict, sent_at: float, tokens: int, documents: int) -> None:
        """What became of a request admitted at that instant with so many tokens."""
