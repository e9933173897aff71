"""What a request weighs in tokens, and its texts as they are scored.

A query or document over the limit per text is cut by the server, and both the score and the bill
are for the cut text (Model Studio, "Text rerank"). Counts are Qwen's own. Whether the real API
checks its limit per request before or after the cut is not documented; here it is after.
"""

import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import msgspec

from batchrank.config.limits import weight
from batchrank.planning import tokens

if TYPE_CHECKING:
    from gigatoken import Tokenizer

# Queries come back with every piece of their list, and whole requests when they are tried again:
# short texts are remembered (at most 8,192 of 8,000 characters), long ones are counted each time.
REMEMBERED_TEXTS = 8192
REMEMBERED_CHARACTERS = 8000


class Weighed(msgspec.Struct, frozen=True):
    """The texts as they are scored, and `query tokens x documents + sum(document tokens)`."""

    query: str
    documents: Sequence[str]
    tokens: int


class Weigher:
    """Counts and cuts texts. Safe to call from several threads."""

    def __init__(self, max_tokens_per_text: int) -> None:
        self._max_tokens = max_tokens_per_text
        self._remembered = lru_cache(REMEMBERED_TEXTS)(tokens.count)

    def weigh(self, query: str, documents: Sequence[str]) -> Weighed:
        """Each text is counted once, and tokenized a second time only to be cut."""
        query, query_tokens = self._text(query)
        texts = [self._text(document) for document in documents]
        total = weight(query_tokens, sum(count for _, count in texts), len(texts))
        return Weighed(query, [text for text, _ in texts], total)

    def _text(self, text: str) -> tuple[str, int]:
        count = self._remembered if len(text) <= REMEMBERED_CHARACTERS else tokens.count
        length = count(text)
        if length <= self._max_tokens:
            return text, length
        return head(text, self._max_tokens), self._max_tokens


def head(text: str, max_tokens: int) -> str:
    """The text of the first tokens; a character that the cut goes through is dropped whole."""
    tokenizer = _tokenizer()
    kept = tokenizer.decode(tokenizer.encode(unicodedata.normalize("NFC", text))[:max_tokens])
    return kept.decode("utf-8", "ignore")


@cache
def _tokenizer() -> "Tokenizer":
    from gigatoken import Tokenizer  # loads in 0.3 s, and few servers ever cut a text

    return Tokenizer.from_tiktoken(tokens.vocabulary_path(), pretokenizer="qwen2")
