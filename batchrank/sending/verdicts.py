"""What an exchange with the endpoint means, and how long to wait before the next.

A table of values: status, code and message in, a verdict out. This file sends nothing, sleeps
never and reads no clock. Sources of codes and texts: Model Studio, "Error messages" and "Status
codes"; dashscope SDK 2.0.2 (`v2/errors.py`); the captured refusals named beside the patterns.
"""

import re
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from math import isfinite, nan
from random import Random

import msgspec

from batchrank.errors import (
    AccountRefused,
    BatchrankError,
    ConfigInvalid,
    KeyRefused,
    escape,
)
from batchrank.wire.envelopes import whole_number
from batchrank.wire.replies import BadAnswer, Refusal, Scores, read, read_refusal

MAX_ATTEMPTS = 10
"""Failures that may be held against a request before it is given up: with one in five failing at
random, one request in ten million is."""

MAX_ATTEMPTS_ALONE = 100
"""Exchanges of one request that may fail while nothing else succeeds either: an outage, unless it
is the last request left, which must not keep the run from ever ending."""

_CAP_SECONDS = 60.0
_THROTTLE_BASE_SECONDS = 1.0
_BASE_SECONDS = 0.2


class Answered(msgspec.Struct, frozen=True):
    """A whole HTTP answer, of whatever status, with three of its headers: `Retry-After`, the `Date`
    that an absolute one is measured from, so that no clock need agree with the server's, and
    `x-compute-tokens`, which is where Text Embeddings Inference says what it read.
    `encoding`: how the body is encoded still, since that is not known here.
    """

    status: int
    body: bytes
    retry_after: str | None = None
    date: str | None = None
    compute_tokens: str | None = None
    encoding: str | None = None


class Unanswered(msgspec.Struct, frozen=True):
    """No whole answer came. `sent`: the request may have arrived, and may be billed. `hopeless`:
    nor will one ever.
    """

    reason: str
    sent: bool
    hopeless: bool = False


Exchange = Answered | Unanswered


class Again(msgspec.Struct, frozen=True):
    """Send it again. `throttled`: the endpoint asked for less, so everybody waits. `answered`: the
    endpoint itself dealt with this request and failed, whatever becomes of the others. `broken`:
    what it answered is no rerank answer. `at_risk`: it may be billed, whether its outcome is known
    (an error of a gateway, behind which it was scored) or not. `blamed`: this request is known to
    fail while others are scored, so its failure says little about the endpoint.
    """

    reason: str
    throttled: bool = False
    possibly_paid: bool = False
    answered: bool = False
    broken: bool = False
    at_risk: bool = False
    blamed: bool = False
    after_seconds: float | None = None

    @property
    def sent(self) -> bool:
        """Whether the request, or a part of it, reached the endpoint."""
        return self.possibly_paid or self.answered or self.at_risk or self.throttled


class Halve(msgspec.Struct, frozen=True):
    """Too large, or something in it is refused: send its halves. `size`: it was too large.
    `tried`: it has failed as often as is allowed, so a part that fails as well is halved at once.
    """

    reason: str
    size: bool
    tried: bool = False


class Without(msgspec.Struct, frozen=True):
    """The refusal names one document: send the others."""

    reason: str
    index: int


class GiveUp(msgspec.Struct, frozen=True):
    """This request will never be answered."""

    reason: str


class Stop(msgspec.Struct, frozen=True):
    """No request of this job will be answered, unless others were. `reason` is the reply in words,
    without advice; `sent`: the request was.
    """

    error: BatchrankError
    reason: str = ""
    sent: bool = True


Verdict = Scores | Again | Halve | Without | GiveUp | Stop

_KEY_CODES = {"invalidapikey", "invalid_api_key", "no_db_connection"}
"""The last is what a LiteLLM proxy without a database answers to any key but its own."""
_KEY_STATUSES = {401, 498}
"""498 is Cohere's for a key that is none."""
_RETRIED_STATUSES = {408, 409, 424, 425, 429, 499, 500, 502, 503, 504, 529}
"""424 is Text Embeddings Inference's for a backend that failed, 499 Cohere's for a request given
up."""

_ACCOUNT_CODES = re.compile(
    r"(?i)arrearage|accessdenied|access_denied|unpurchased|notpurchased|billoverdue|freetieronly"
    r"|modelnotfound|model_not_found|model_not_supported|workspacenotfound|workspace_not_found"
)
_ACCOUNT_MESSAGES = re.compile(
    r"(?i)free\b.*quota.*(exceeded|exhausted)|free tier.*exhausted"
    r"|limited to .{1,9} api calls / month"
)
_MODEL_MESSAGES = re.compile(
    r"(?i)^invalid model|^the model `.{1,200}` does not exist|invalid model name passed"
    r"|does not support .?rerank|this server does not support reranking"
)
"""Infinity, vLLM, the LiteLLM proxy; vLLM and llama.cpp on a model that is no reranker."""
_REQUEST_SHAPE_CODES = re.compile(r"(?i)badrequest\.(empty|illegalinput)|invalidurl")
_THROTTLES = re.compile(
    r"(?i)^throttling|^limit_?requests|^limit_burst|^insufficient_quota|^modelservingerror"
)
_PASSING_CODES = re.compile(
    r"(?i)^internal|^internal_error|systemerror|modelservicefailed|timeout|modelunavailable"
    r"|serviceunavailable|modelservingerror"
)
_CONTENT_CODES = re.compile(r"(?i)data_?inspection_?failed")
_SIZE_CODES = re.compile(
    r"(?i)toolarge|too_large|too_long|exceed_context|context_length|contextwindow"
)
_SIZE_TEXT = re.compile(r"(?i)larger than|length|too (long|large)|exceed|token|batch size|at most")
_SIZE_STATUSES = {400, 422}
_TOO_LARGE = re.compile(r"(?i)is too large to process")
"""llama.cpp answers 500 to `input (2793 tokens) is too large to process. increase the physical
batch size`, and would answer so for ever."""
_EMPTY_TEXT = re.compile(r"(?i)input should not be empty")
"""`text input should not be empty.: input.documents`, as captured in aigc-apps/PAI-RAG#878."""
_NAMED = re.compile(r"document index:\s*(\d{1,9})(?!\d)")
"""`document index:9 should not be empty` and `document index:0 is invalid, it should not be
larger than 300000`, as captured in Tencent/WeKnora#806 and apecloud/ApeRAG#1071."""


def judge(exchange: Exchange, documents: int) -> Verdict:
    """What to do after an exchange about a request of so many documents."""
    if isinstance(exchange, Unanswered):
        if exchange.hopeless:
            return Stop(ConfigInvalid(f"{exchange.reason}."), exchange.reason, exchange.sent)
        return Again(exchange.reason, possibly_paid=exchange.sent, at_risk=exchange.sent)
    if exchange.status == 200:
        return _judge_ok(exchange, documents)
    if 300 <= exchange.status < 400:
        said = f"the endpoint answered {exchange.status}"
        return Stop(ConfigInvalid(_redirect(exchange)), said)
    if exchange.status < 300:
        said = f"the endpoint answered {exchange.status}, which no rerank API does"
        return Again(said, possibly_paid=True, answered=True, broken=True, at_risk=True)
    return _judge_refusal(exchange, read_refusal(exchange.body), documents)


def _judge_ok(exchange: Answered, documents: int) -> Verdict:
    try:
        answer = read(exchange.body, documents)
    except BadAnswer as error:
        reason = error if exchange.encoding is None else _encoding(exchange.encoding)
        said = f"the answer breaks the contract: {reason}"
        return Again(said, possibly_paid=True, answered=True, broken=True, at_risk=True)
    if isinstance(answer, Refusal):
        if re.fullmatch("[45][0-9][0-9]", answer.code):
            exchange = msgspec.structs.replace(exchange, status=int(answer.code))
        return _judge_refusal(exchange, answer, documents)
    if answer.tokens is None and (exchange.compute_tokens or "").isdecimal():
        tokens = whole_number(exchange.compute_tokens or "")
        return msgspec.structs.replace(answer, tokens=tokens or None)
    return answer


def _judge_refusal(exchange: Answered, refusal: Refusal, documents: int) -> Verdict:
    status, code, message = exchange.status, refusal.code, refusal.message
    said = _said(status, refusal)
    if status in _KEY_STATUSES or code.lower() in _KEY_CODES:
        return Stop(KeyRefused(f"{said}. Is the key right, and of this region?"), said)
    of_account = status in {200, 403, 429} and _ACCOUNT_MESSAGES.search(message)
    of_model = status in {400, 404, 501} and _MODEL_MESSAGES.search(message)
    if status in {402, 403} or _ACCOUNT_CODES.search(code) or of_account or of_model:
        message = f"{said}. The endpoint will not serve this account or model."
        return Stop(AccountRefused(message), said)
    if status in {404, 405} or _REQUEST_SHAPE_CODES.search(code):
        message = f"{said}. Do endpoint.base_url and endpoint.provider fit?"
        return Stop(ConfigInvalid(message), said)
    if status == 429 or _THROTTLES.search(code):
        return Again(said, throttled=True, after_seconds=seconds(exchange))
    if _TOO_LARGE.search(message):
        return Halve(said, size=True)
    if status in _RETRIED_STATUSES or status >= 500 or _PASSING_CODES.search(code):
        return Again(
            said, answered=status in {200, 424, 500}, at_risk=True, after_seconds=seconds(exchange)
        )
    return _judge_content(status, code, message, said, documents)


def _judge_content(status: int, code: str, message: str, said: str, documents: int) -> Verdict:
    """A refusal of this one request: for its size, for one of its documents, or for good."""
    named = _NAMED.search(message)
    if named and int(named[1]) < documents:
        return Without(said, int(named[1]))
    if any(p.search(t) for p, t in ((_CONTENT_CODES, code + message), (_EMPTY_TEXT, message))):
        return Halve(said, size=False)
    too_large = status in _SIZE_STATUSES and _SIZE_TEXT.search(message)
    if status == 413 or _SIZE_CODES.search(code) or too_large:
        return Halve(said, size=True)
    if status == 200 and not code:
        return Again(said)
    return GiveUp(said)


def _said(status: int, refusal: Refusal) -> str:
    """The refusal in words: never the message, which may quote a document."""
    named = _NAMED.search(refusal.message)
    which = f", {named[0]}" if named else ""
    code = f" {refusal.code[:80]}" if refusal.code else ""
    return f"the endpoint answered {status}{code}{which}"


def _encoding(name: str) -> str:
    return f"it comes with Content-Encoding {escape(name[:40])}, though identity was asked for"


def _redirect(exchange: Answered) -> str:
    return (
        f"the endpoint answered {exchange.status}, a redirect, which is not followed: it would "
        "take texts and key to another address. Set endpoint.base_url to the final one."
    )


def seconds(exchange: Answered) -> float | None:
    """The wait that a Retry-After header asks for; None where there is none that can be read."""
    if exchange.retry_after is None:
        return None
    try:
        wait = float(exchange.retry_after)
    except ValueError:
        wait = _until(exchange.retry_after, exchange.date)
    return max(wait, 0.0) if isfinite(wait) else None


def _until(moment: str, date: str | None) -> float:
    """Seconds from the answer's own `Date` to an HTTP date; NaN where either is unreadable."""
    try:
        return (parsedate_to_datetime(moment) - parsedate_to_datetime(date or "")).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return nan


def waits(random: Random, *, throttled: bool) -> Iterator[float]:
    """Seconds to wait before each further try: full jitter under a doubling ceiling."""
    ceiling = _THROTTLE_BASE_SECONDS if throttled else _BASE_SECONDS
    while True:
        yield random.uniform(0, ceiling)
        ceiling = min(_CAP_SECONDS, ceiling * 2)
