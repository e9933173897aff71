"""Answers read and checked: the same reader for every dialect, since peers mix their shapes.

A body is a `Scores` only when each of the request's documents has exactly one finite score under
an index that is an int and in range; it is a `Refusal` when it carries an error, whatever the HTTP
status; anything else raises `BadAnswer`. A gap is never read as a 0, nor a missing list as empty.
"""

from collections.abc import Sequence
from math import isfinite

import msgspec


class Ask(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a request asks in any dialect; encoded, it is the flat form. `top_n` None: all."""

    model: str
    query: str
    documents: Sequence[str]
    top_n: int | None = None
    instruct: str | None = None
    return_documents: bool = False


class Ranked(msgspec.Struct, frozen=True, omit_defaults=True):
    """One result. `document` is echoed only when asked for."""

    index: int
    relevance_score: float
    document: dict[str, str] | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens billed; which of the three fields is there depends on model and route."""

    total_tokens: int | None = None
    input_tokens: int | None = None
    prompt_tokens: int | None = None


class Scores(msgspec.Struct, frozen=True):
    """A whole answer: a score per document in request order, and the tokens billed if told."""

    relevance_scores: list[float]
    tokens: int | None
    request_id: str | None


class Refusal(msgspec.Struct, frozen=True):
    """An error envelope, flat or nested; either of the two texts may be empty."""

    code: str
    message: str
    request_id: str | None


class BadAnswer(ValueError):
    """The body is neither an answer to this request nor an error; says what is wrong with it."""


class _Error(msgspec.Struct, frozen=True):
    code: str | int | None = None
    type: str | None = None
    message: str | None = None


class _Result(msgspec.Struct, frozen=True, gc=False):
    index: int
    relevance_score: float


class _Output(msgspec.Struct, frozen=True):
    results: list[_Result] | None = None


class _Body(msgspec.Struct, frozen=True):
    """Every field that an answer or an error of either form may have."""

    results: list[_Result] | None = None
    output: _Output | None = None
    usage: Usage | None = None
    code: str | int | None = None
    message: str | None = None
    error: _Error | str | None = None
    request_id: str | None = None
    id: str | None = None


class _ErrorBody(msgspec.Struct, frozen=True):
    """What is read of a body whose status is an error: `results` may be anything there."""

    code: str | int | None = None
    message: str | None = None
    error: _Error | str | None = None
    request_id: str | None = None
    id: str | None = None


_body = msgspec.json.Decoder(_Body)
_error_body = msgspec.json.Decoder(_ErrorBody)


def read(body: bytes, documents: int) -> Scores | Refusal:
    """The answer of HTTP status 200 to a request of so many documents. Raises `BadAnswer`."""
    try:
        answer = _body.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # Not the decoder's own words on values: they quote paths only, never the text.
        raise BadAnswer(f"not a rerank answer: {error}") from None
    results = answer.results
    if results is None and answer.output is not None:
        results = answer.output.results
    if not results and (answer.error is not None or answer.code or answer.message):
        return _refusal(answer)
    if results is None:
        raise BadAnswer("no results in the answer")
    return Scores(
        _in_order(results, documents), _billed(answer.usage), answer.request_id or answer.id
    )


def read_refusal(body: bytes) -> Refusal:
    """The error of any other status; an unreadable body (a proxy's HTML) gives empty texts."""
    try:
        return _refusal(_error_body.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Refusal("", "", None)


def _billed(usage: Usage | None) -> int | None:
    if usage is None:
        return None
    tokens = usage.total_tokens or usage.input_tokens or usage.prompt_tokens
    return tokens if tokens is not None and tokens >= 0 else None


def _refusal(body: _Body | _ErrorBody) -> Refusal:
    code, message = body.code, body.message
    if isinstance(body.error, str):
        message = message or body.error
    elif body.error is not None:
        code = code or body.error.code or body.error.type
        message = message or body.error.message
    return Refusal(str(code or ""), message or "", body.request_id or body.id)


def _in_order(results: Sequence[_Result], documents: int) -> list[float]:
    """A score per document. Checked as a whole, which is four times as fast as one by one; only
    what fails is looked at again, to say what is wrong with it.
    """
    places = [result.index for result in results]
    scores = [result.relevance_score for result in results]
    whole = len(places) == documents and len(set(places)) == documents
    if not (whole and min(places) == 0 and max(places) == documents - 1 and isfinite(sum(scores))):
        _check(results, documents)
    ordered = scores.copy()
    for place, score in zip(places, scores, strict=True):
        ordered[place] = score
    return ordered


def _check(results: Sequence[_Result], documents: int) -> None:
    """Raise for a gap, an index out of range or twice, a score that is not finite."""
    if len(results) != documents:
        raise BadAnswer(f"{len(results)} results for {documents} documents")
    seen = set()
    for result in results:
        index = result.index
        if not 0 <= index < documents:
            raise BadAnswer(f"index {index} is out of range for {documents} documents")
        if index in seen:
            raise BadAnswer(f"index {index} comes twice")
        if not isfinite(result.relevance_score):
            raise BadAnswer(f"the score of index {index} is not finite")
        seen.add(index)
