"""How relevant a document is to a query, by the scorer that the local server has by default.

A score is the lexical scorer's relevance plus half the similarity that a small learned encoder
finds. Pointwise: it depends on its query and its document alone, so splitting, merging, reordering
and repeating change nothing, to the last bit. The encoder learnt English and helps only where both
texts are mostly Latin letters; it is spared pairs that have almost no word in common.

nDCG@10 as stored -> by the lexical scorer -> as scored here (`python -m bench quality`):
TREC DL 2019 0.506 -> 0.581 -> 0.665, SciFact 0.679 -> 0.685 -> 0.706, Cranfield 0.519 -> 0.524 ->
0.531, QMSum 0.553 -> 0.611 -> 0.628, MedQuAD 0.432 -> 0.524 -> 0.546. The encoder was trained on MS
MARCO, from which the texts of the first set are.
"""

import re
from collections.abc import Sequence
from threading import Lock
from typing import Protocol

import regex

from batchrank.server.scorers.lexical import LexicalScorer, score_of
from batchrank.server.scorers.sparse_encoder import SparseEncoder

ENCODER_WEIGHT = 0.5  # anything from 0.4 to 1.0 does as well
LEAST_RELEVANCE = 0.2  # below it a pair is not encoded; half of SciFact's and QMSum's are not
STEEPNESS, MIDPOINT = 5.0, 0.55

_ASCII_LETTER = re.compile(r"[A-Za-z]")
_NO_LETTER = regex.compile(r"\P{L}+")
_NOT_LATIN = regex.compile(r"\P{Latin}+")


class Scorer(Protocol):
    """What the server asks for scores."""

    def scores(self, query: str, documents: Sequence[str], instruct: str) -> list[float]:
        """A score in 0..1 for each document, in their order."""
        ...


class EmbeddedScorer:
    """Score by words and by the learned encoder. Loading takes 0.7 s: keep it."""

    def __init__(self) -> None:
        self._lexical = LexicalScorer()
        self._encoder = SparseEncoder()
        self._turn = Lock()

    def scores(self, query: str, documents: Sequence[str], instruct: str) -> list[float]:
        """A score with 9 decimals for each document. `instruct` has no effect.

        A score is no probability. Scores of queries in Latin letters and of others lie on two
        scales, since only the former have a share of the encoder's.
        """
        relevances = self._lexical.relevances(query, documents)
        if not is_mostly_latin(query):
            return [score_of(x) for x in relevances]
        near = [
            place
            for place, (x, text) in enumerate(zip(relevances, documents, strict=True))
            if x >= LEAST_RELEVANCE and is_mostly_latin(text)
        ]
        with self._turn:
            asked = self._encoder.query(query)
            texts = self._encoder.texts([documents[place] for place in near])
            for place, text in zip(near, texts, strict=True):
                relevances[place] += ENCODER_WEIGHT * self._encoder.similarity(asked, text)
        return [score_of(x, STEEPNESS, MIDPOINT) for x in relevances]


def is_mostly_latin(text: str) -> bool:
    """Whether a text has letters, and at least half of them are Latin."""
    if text.isascii():
        return _ASCII_LETTER.search(text) is not None
    letters = _NO_LETTER.sub("", text)
    return len(letters) > 0 and 2 * len(_NOT_LATIN.sub("", letters)) >= len(letters)
