"""What a request costs, in the unit that its provider counts: tokens, or Cohere's searches."""

from math import ceil, inf
from typing import Literal

import msgspec

from batchrank.wire.cohere import most_searches, searches
from batchrank.wire.replies import Scores

IMPLAUSIBLE = 10
"""What is said to be billed beyond so many times the most that a request can cost is no bill."""

BASE_TOKENS = 52
DOCUMENT_TOKENS = 18
"""What the server adds to the formula, at the most: 52 were seen with three documents, which is
39 + 13 for prompt and instruct, or 17 for each document and 1 (three captured replies)."""


def ceiling(tokens: int, documents: int) -> int:
    """The most that a request of this weight can be billed."""
    return tokens + BASE_TOKENS + DOCUMENT_TOKENS * documents


class Price(msgspec.Struct, frozen=True):
    """US dollars for a million tokens, or for a thousand searches; units are single ones.

    Tokens are counted here with Qwen's vocabulary. `margin` is how many times more of them another
    provider's own tokenizer is taken to make at the most; `per_request` and `per_document` are what
    the server is thought to add to them.
    """

    usd: float = 0.0
    unit: Literal["tokens", "searches"] = "tokens"
    margin: float = 1.0
    per_request: int = 0
    per_document: int = 0

    def cost(self, units: int) -> float:
        """US dollars for so many tokens, or searches."""
        return units * self.usd / self._per

    def affordable(self, usd: float) -> float:
        """How many units so much buys: without end, where they cost nothing."""
        return usd * self._per / self.usd if self.usd else inf

    def likely(self, tokens: int, documents: int) -> int:
        """The units of a request, before it is sent."""
        return tokens if self.unit == "tokens" else searches(tokens, documents)

    def most(self, tokens: int, documents: int) -> int:
        """The most units that a request can be billed."""
        counted = ceiling if self.unit == "tokens" else most_searches
        return counted(self._most_counted(tokens, documents), documents)

    def plausible(self, answer: Scores, tokens: int, documents: int) -> Scores:
        """The answer itself, or, where what it says it used is absurd, one that says the most that
        the request can have used instead.
        """
        used, searched = answer.tokens, answer.searches
        if searched is None and (used is None or 0 <= used <= tokens * IMPLAUSIBLE):  # mostly
            return answer
        counted = self._most_counted(tokens, documents)
        most, most_searched = ceiling(counted, documents), most_searches(counted, documents)
        if used is not None and not 0 <= used <= IMPLAUSIBLE * most:
            used = most
        if searched is not None and not 0 <= searched <= IMPLAUSIBLE * most_searched:
            searched = most_searched
        if (used, searched) == (answer.tokens, answer.searches):
            return answer
        return msgspec.structs.replace(answer, tokens=used, searches=searched)

    def _most_counted(self, tokens: int, documents: int) -> int:
        """The most tokens of a request's texts, by the provider's own tokenizer."""
        return ceil(tokens * self.margin) + self.per_document * documents

    def billed(self, answer: Scores) -> int | None:
        """The units that an answer says it was billed; None where it does not say."""
        return answer.tokens if self.unit == "tokens" else answer.searches

    @property
    def _per(self) -> float:
        return 1e6 if self.unit == "tokens" else 1e3
