"""Answers read and checked: the same reader for every dialect, since peers mix their shapes.

Results stand under `results`, `output.results` or `data`, or are a bare list; their scores are
called `relevance_score`, or `score`. Each shape has a decoder of its own: telling them apart costs
the usual answer nothing.

A body is a `Scores` only when each of the request's documents has exactly one finite score under
an index that is an int and in range; it is a `Refusal` when it carries an error, whatever the HTTP
status; anything else raises `BadAnswer`. A gap is never read as a 0, nor a missing list as empty.
What a server says is escaped here.
"""

from collections.abc import Sequence
from math import ceil, isfinite, nan

import msgspec

from batchrank.errors import escape
from batchrank.wire.envelopes import normalize, replace_nan, strip_lead


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
    """A whole answer: a score per document in request order, and what was billed if told: tokens,
    or searches.
    """

    relevance_scores: list[float]
    tokens: int | None
    request_id: str | None
    searches: int | None = None


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


class _Detail(msgspec.Struct, frozen=True):
    """One of pydantic's complaints, as FastAPI answers 422 with them."""

    type: str = ""
    msg: str = ""


class _Result(msgspec.Struct, frozen=True, gc=False):
    index: int
    relevance_score: float


class _Named(msgspec.Struct, frozen=True, gc=False, rename={"relevance_score": "score"}):
    """A result whose score goes by the shorter name."""

    index: int
    relevance_score: float


class _Output(msgspec.Struct, frozen=True):
    results: list[_Result] | None = None


class _Billed(msgspec.Struct, frozen=True):
    search_units: float | None = None
    total_tokens: int | None = None


class _Meta(msgspec.Struct, frozen=True):
    """Where Cohere tells its searches, and LiteLLM the tokens."""

    billed_units: _Billed | None = None
    tokens: Usage | None = None


class _Body(msgspec.Struct, frozen=True):
    """Every field that an answer or an error of any form may have; `tokens` is SiliconFlow's."""

    results: list[_Result] | None = None
    output: _Output | None = None
    data: list[_Result] | None = None
    usage: Usage | None = None
    tokens: Usage | None = None
    meta: _Meta | None = None
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
    error_type: str | None = None
    detail: list[_Detail] | str | None = None
    request_id: str | None = None
    id: str | None = None


class _NamedBody(_Body, frozen=True):
    results: list[_Named] | None = None  # type: ignore[assignment]
    data: list[_Named] | None = None  # type: ignore[assignment]


_body = msgspec.json.Decoder(_Body)
_named_body = msgspec.json.Decoder(_NamedBody)
_bare = msgspec.json.Decoder(list[_Named])
_error_body = msgspec.json.Decoder(_ErrorBody)


def read(body: bytes, documents: int) -> Scores | Refusal:
    """The answer of HTTP status 200 to a request of so many documents. Raises `BadAnswer`."""
    try:
        if body[:1] not in (b"{", b"["):
            body = strip_lead(body)
        if body[:1] == b"[":
            return Scores(_in_order(_bare.decode(body), documents), None, None)
        answer = _decoded(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # Not the decoder's own words on values: they quote paths only, never the text.
        raise BadAnswer(f"not a rerank answer: {escape(str(error))}") from None
    results = answer.results
    if results is None:
        results = answer.data if answer.output is None else answer.output.results
    if not results and (answer.error is not None or answer.code or answer.message):
        return _refusal(answer)
    if results is None:
        raise BadAnswer("no results in the answer")
    return Scores(
        _in_order(results, documents),
        _billed(answer),
        answer.request_id or answer.id,
        _searches(answer.meta),
    )


def _decoded(body: bytes) -> _Body:
    """Decode an answer: as most are, with the shorter name, or with an odd envelope made usual."""
    try:
        return _body.decode(body)
    except msgspec.ValidationError:
        pass
    except msgspec.DecodeError as error:
        try:
            body = replace_nan(body)
        except ValueError:
            raise error from None
    try:
        return _named_body.decode(body)
    except msgspec.ValidationError:
        body = normalize(body)
    try:
        return _body.decode(body)
    except msgspec.ValidationError as error:
        try:
            return _named_body.decode(body)
        except msgspec.ValidationError as of_named:
            raise (of_named if b'"score"' in body else error) from None


def read_refusal(body: bytes) -> Refusal:
    """The error of any other status; an unreadable body (a proxy's HTML) gives empty texts."""
    try:
        return _refusal(_decoded_error(strip_lead(body)))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Refusal("", "", None)


def _decoded_error(body: bytes) -> _ErrorBody:
    try:
        return _error_body.decode(body)
    except msgspec.ValidationError:
        return _error_body.decode(normalize(body))


def _billed(answer: _Body) -> int | None:
    """The tokens that an answer says it used, however absurd; 0 says nothing."""
    meta = answer.meta
    usage = answer.usage or answer.tokens or (None if meta is None else meta.tokens)
    if usage is not None:
        return usage.total_tokens or usage.input_tokens or usage.prompt_tokens or None
    billed = None if meta is None else meta.billed_units
    return None if billed is None else billed.total_tokens or None


def _searches(meta: _Meta | None) -> int | None:
    if meta is None or meta.billed_units is None:
        return None
    units = meta.billed_units.search_units
    return ceil(units) if units else None


def _refusal(body: _Body | _ErrorBody) -> Refusal:
    code, message = body.code, body.message
    if isinstance(body.error, str):
        message = message or body.error
    elif body.error is not None:
        code = code or body.error.code
        message = message or body.error.message
        if isinstance(body, _ErrorBody) and not _is_word(code):  # then it only repeats the status
            code = body.error.type or code
        code = code or body.error.type
    if isinstance(body, _ErrorBody):
        code = code or body.error_type
        if isinstance(body.detail, str):
            message = message or body.detail
        elif body.detail:
            code, message = code or body.detail[0].type, message or body.detail[0].msg
    return Refusal(escape(str(code or "")), escape(message or ""), body.request_id or body.id)


def _is_word(code: str | int | None) -> bool:
    return isinstance(code, str) and bool(code) and not code.isdecimal()


def _in_order(results: Sequence[_Result | _Named], documents: int) -> list[float]:
    """A score per document. Checked as a whole, which is six times as fast as one by one: where as
    many finite scores as there are documents leave no place empty, and the places come to what
    they must in all, each was named once (a place below 0 is one from the end). Only what fails
    is looked at again, to say what is wrong with it.
    """
    ordered, places = [nan] * documents, 0
    try:
        for result in results:
            place = result.index
            ordered[place] = result.relevance_score
            places += place
    except IndexError:
        _check(results, documents)
    if not (
        len(results) == documents
        and places == documents * (documents - 1) // 2
        and isfinite(sum(ordered))
    ):
        _check(results, documents)
    return ordered


def _check(results: Sequence[_Result | _Named], documents: int) -> None:
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
