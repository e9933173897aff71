"""What an answer means: status, code and message in, a verdict out."""

import json
from itertools import islice
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrank.errors import AccountRefused, BatchrankError, ConfigInvalid, KeyRefused
from batchrank.sending.verdicts import (
    Again,
    Answered,
    GiveUp,
    Halve,
    Stop,
    Unanswered,
    Verdict,
    Without,
    judge,
    seconds,
    waits,
)
from batchrank.wire.replies import Scores

settings.register_profile("timeless", deadline=None)
settings.load_profile("timeless")

SECRET = "a text of the user's"
INVALID = "<400> InternalError.Algo.InvalidParameter: Value error, "
CONTENT = "Input or output data may contain inappropriate content."
FREE = "Free allocated quota exceeded."


def refusal(status: int, code: str, message: str, *, nested: bool = False) -> Answered:
    error = {"code": code, "message": message}
    body = {"error": {**error, "param": None, "type": code}} if nested else error
    return Answered(status, json.dumps({**body, "request_id": "r-1"}).encode())


def kind(verdict: Verdict) -> str:
    """A verdict in two words."""
    match verdict:
        case Again(throttled=throttled):
            return "throttle" if throttled else "retry"
        case Halve(size=size):
            return "halve, size" if size else "halve, content"
        case Without(index=index):
            return f"without {index}"
        case GiveUp():
            return "give up"
        case Stop(error=error):
            return f"stop, {type(error).__name__}"
    raise AssertionError(verdict)


TABLE = [
    # Throttles, both spellings; "insufficient_quota" is one of tokens a minute, not a bill.
    (429, "Throttling", "Requests throttling triggered.", "throttle"),
    (429, "Throttling", "Too many requests in route. Try again later.", "throttle"),
    (429, "Throttling.RateQuota", "Requests rate limit exceeded, please try again.", "throttle"),
    (429, "LimitRequests", "You exceeded your current requests list.", "throttle"),
    (429, "limit_requests", "You exceeded your current requests list.", "throttle"),
    (429, "Throttling.BurstRate", "Request rate increased too quickly.", "throttle"),
    (429, "limit_burst_rate", "Request rate increased too quickly.", "throttle"),
    (429, "Throttling.AllocationQuota", "Allocated quota exceeded, please", "throttle"),
    (
        429,
        "insufficient_quota",
        "You exceeded your current quota, please check your plan and billing details.",
        "throttle",
    ),
    (429, "", "", "throttle"),
    (500, "ModelServingError", "Too many requests. Your requests are being", "throttle"),
    (503, "ModelServingError", "Too many requests. Your requests are being", "throttle"),
    (400, "Throttling.RateQuota", "", "throttle"),
    # What passes by itself.
    (408, "", "", "retry"),
    (409, "", "", "retry"),
    (425, "", "", "retry"),
    (500, "InternalError", "An internal error has occured", "retry"),
    (500, "internal_error", "An internal error has occured", "retry"),
    (500, "InternalError.Algo", "", "retry"),
    (500, "InternalError.Timeout", "", "retry"),
    (500, "SystemError", "", "retry"),
    (500, "ModelServiceFailed", "", "retry"),
    (500, "RequestTimeOut", "", "retry"),
    (500, "ResponseTimeout", "", "retry"),
    (500, "", "", "retry"),
    (502, "", "", "retry"),
    (503, "ModelUnavailable", "", "retry"),
    (503, "ServiceUnavailable", "", "retry"),
    (504, "GatewayTimeout", "", "retry"),
    (529, "overloaded", "", "retry"),
    # No rerank answer, though no error either: a gateway speaks.
    (101, "", "", "retry"),
    (202, "", "", "retry"),
    (204, "", "", "retry"),
    (206, "", "", "retry"),
    # What no patience helps.
    (401, "InvalidApiKey", "Invalid API-key provided.", "stop, KeyRefused"),
    (401, "invalid_api_key", "Incorrect API key provided.", "stop, KeyRefused"),
    (401, "", "", "stop, KeyRefused"),
    (400, "InvalidApiKey", "", "stop, KeyRefused"),
    (400, "Arrearage", "Access denied, account is in good standing.", "stop, AccountRefused"),
    (402, "", "", "stop, AccountRefused"),
    (403, "AccessDenied", "", "stop, AccountRefused"),
    (403, "access_denied", "", "stop, AccountRefused"),
    (403, "AccessDenied.Unpurchased", "", "stop, AccountRefused"),
    (403, "Model.AccessDenied", "", "stop, AccountRefused"),
    (403, "Workspace.AccessDenied", "", "stop, AccountRefused"),
    (403, "AllocationQuota.FreeTierOnly", "The free tier of the", "stop, AccountRefused"),
    (403, "", "", "stop, AccountRefused"),
    (404, "ModelNotFound", "", "stop, AccountRefused"),
    (404, "model_not_found", "", "stop, AccountRefused"),
    (404, "model_not_supported", "", "stop, AccountRefused"),
    (400, "model_not_supported", "", "stop, AccountRefused"),
    (404, "WorkSpaceNotFound", "", "stop, AccountRefused"),
    (429, "CommodityNotPurchased", "", "stop, AccountRefused"),
    (429, "PrepaidBillOverdue", "", "stop, AccountRefused"),
    (429, "PostpaidBillOverdue", "", "stop, AccountRefused"),
    (429, "Throttling.AllocationQuota", FREE, "stop, AccountRefused"),
    (429, "insufficient_quota", FREE, "stop, AccountRefused"),
    (404, "NotFound", "", "stop, ConfigInvalid"),
    (404, "", "", "stop, ConfigInvalid"),
    (405, "", "", "stop, ConfigInvalid"),
    (400, "BadRequest.EmptyInput", "Required body invalid", "stop, ConfigInvalid"),
    (400, "BadRequest.EmptyModel", "Required parameter model", "stop, ConfigInvalid"),
    (400, "BadRequest.EmptyParameters", "", "stop, ConfigInvalid"),
    (400, "BadRequest.IllegalInput", "", "stop, ConfigInvalid"),
    (400, "InvalidURL", "url error", "stop, ConfigInvalid"),
    # One request, or one document of it.
    (
        400,
        "InvalidParameter",
        INVALID + "document index:9 should not be empty.: input.documents",
        "without 9",
    ),
    (
        400,
        "invalid_parameter_error",
        INVALID + "document index:0 is invalid, it should not be larger than 300000",
        "without 0",
    ),
    (400, "InvalidParameter", "document index:10 should not be empty", "give up"),
    (
        400,
        "InvalidParameter",
        INVALID
        + "batch size of documents is invalid, it should not be empty or larger than 500.: input",
        "halve, size",
    ),
    (400, "InvalidParameter", "Total tokens of the request are too many", "halve, size"),
    (400, "invalid_request_error", "maximum context length is 512 tokens", "halve, size"),
    (400, "BadRequest.TooLarge", "Payload Too Large.", "halve, size"),
    (413, "BadRequest.TooLarge", "Payload Too Large.", "halve, size"),
    (413, "", "", "halve, size"),
    (400, "DataInspectionFailed", CONTENT, "halve, content"),
    (400, "data_inspection_failed", CONTENT, "halve, content"),
    (
        400,
        "InvalidParameter",
        "<400> InternalError.Algo.DataInspectionFailed: " + CONTENT,
        "halve, content",
    ),
    # Other dialects' own.
    (498, "", "invalid token", "stop, KeyRefused"),
    (400, "no_db_connection", "No connected db.", "stop, KeyRefused"),
    (499, "", "", "retry"),
    (402, "", "Your account balance is not enough", "stop, AccountRefused"),
    (429, "", "You are using a Trial key, which is limited to 10 API calls / minute.", "throttle"),
    (
        429,
        "",
        "You are using a Trial key, which is limited to 1000 API calls / month.",
        "stop, AccountRefused",
    ),
    (422, "Validation", "batch size 50 > maximum allowed batch size 32", "halve, size"),
    (413, "Validation", "batch size 50 > maximum allowed batch size 32", "halve, size"),
    (422, "too_long", "List should have at most 2048 items", "halve, size"),
    (424, "Backend", "the backend failed", "retry"),
    (429, "Overloaded", "Model is overloaded", "throttle"),
    (503, "Unhealthy", "the backend is unhealthy", "retry"),
    (400, "BadRequestError", "This model's maximum context length is 512 tokens", "halve, size"),
    (
        500,
        "server_error",
        "input (2793 tokens) is too large to process. increase the physical batch size",
        "halve, size",
    ),
    (400, "exceed_context_size_error", "the request exceeds", "halve, size"),
    (
        400,
        "",
        "The max allowed tokens per submitted batch is 100000. Your batch has 145736",
        "halve, size",
    ),
    (404, "NotFoundError", "The model `nope` does not exist.", "stop, AccountRefused"),
    (400, "", "Invalid model: nope", "stop, AccountRefused"),
    (400, "", "Invalid model name passed in model=nope.", "stop, AccountRefused"),
    (
        400,
        "BadRequestError",
        "The model does not support Rerank (Score) API",
        "stop, AccountRefused",
    ),
    (
        501,
        "not_supported_error",
        "This server does not support reranking. Start it with `--reranking`",
        "stop, AccountRefused",
    ),
    (400, "InvalidParameter", "unknown", "give up"),
    (422, "", "", "give up"),
    (418, "", "", "give up"),
]


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize(("status", "code", "message", "verdict"), TABLE)
def test_a_refusal_means(status: int, code: str, message: str, verdict: str, nested: bool) -> None:
    assert kind(judge(refusal(status, code, message, nested=nested), 10)) == verdict


def test_an_empty_document_that_is_not_named_is_searched_for() -> None:
    """As captured in PAI-RAG#878. One such document never harms its row-mates."""
    message = "text input should not be empty.: input.documents"
    assert kind(judge(refusal(400, "InvalidParameter", message), 10)) == "halve, content"


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize(("status", "code", "message", "verdict"), TABLE)
def test_no_verdict_repeats_the_endpoints_message(
    status: int, code: str, message: str, verdict: str, nested: bool
) -> None:
    found = judge(refusal(status, code, f"{message} {SECRET}", nested=nested), 10)
    assert SECRET not in repr(found)
    assert SECRET not in _words(found)
    if code and verdict != "throttle":
        assert code in _words(found)


ENVELOPES = {
    "detail": '{"detail":"%s"}',
    "message": '{"message":"%s"}',
    "error": '{"error":"%s","error_type":"Validation"}',
    "nested": '{"error":{"message":"%s","type":"t","param":null,"code":422}}',
}


@pytest.mark.parametrize("envelope", ENVELOPES.values(), ids=ENVELOPES)
def test_every_envelope_is_understood_and_none_repeated(envelope: str) -> None:
    body = (envelope % f"batch size 50 > maximum allowed batch size 32, {SECRET}").encode()
    found = judge(Answered(422, body), 50)
    assert kind(found) == "halve, size"
    assert SECRET not in repr(found)


def test_tokens_may_come_in_a_header() -> None:
    body = b'[{"index":0,"score":0.5}]'
    assert judge(Answered(200, body, compute_tokens="17"), 1) == Scores([0.5], 17, None)
    assert judge(Answered(200, body, compute_tokens="many"), 1) == Scores([0.5], None, None)
    told = b'{"results":[{"index":0,"relevance_score":0.5}],"usage":{"total_tokens":3}}'
    assert judge(Answered(200, told, compute_tokens="17"), 1) == Scores([0.5], 3, None)


def test_no_verdict_repeats_a_proxys_page() -> None:
    for status in (400, 404, 413, 429, 502):
        assert SECRET not in repr(judge(Answered(status, f"<p>{SECRET}</p>".encode()), 3))


@given(st.text(min_size=8).filter(lambda text: text not in "the endpoint answered 400"))
def test_no_bad_answer_repeats_its_text(text: str) -> None:
    body = json.dumps({"results": [{"index": text, "relevance_score": 1}]}).encode()
    verdict = judge(Answered(200, body), 1)
    assert isinstance(verdict, Again)
    assert verdict.reason == (
        "the answer breaks the contract: not a rerank answer: "
        "Expected `int`, got `str` - at `$.results[0].index`"
    )


def _words(verdict: Verdict) -> str:
    return str(verdict.error) if isinstance(verdict, Stop) else str(getattr(verdict, "reason", ""))


WORDS: list[tuple[int, str, type[BatchrankError], str]] = [
    (
        401,
        "InvalidApiKey",
        KeyRefused,
        "the endpoint answered 401 InvalidApiKey. Is the key right, and of this region?",
    ),
    (
        400,
        "Arrearage",
        AccountRefused,
        "the endpoint answered 400 Arrearage. The endpoint will not serve this account or model.",
    ),
    (
        404,
        "",
        ConfigInvalid,
        "the endpoint answered 404. Do endpoint.base_url and endpoint.provider fit?",
    ),
]


@pytest.mark.parametrize(("status", "code", "error", "words"), WORDS)
def test_a_stop_says_what_to_look_at(
    status: int, code: str, error: type[BatchrankError], words: str
) -> None:
    verdict = judge(refusal(status, code, "m"), 1)
    assert isinstance(verdict, Stop)
    assert (type(verdict.error), str(verdict.error)) == (error, words)


def test_a_refusal_for_a_document_names_its_index_and_nothing_else() -> None:
    message = INVALID + f"document index:3 should not be empty. {SECRET}"
    assert judge(refusal(400, "InvalidParameter", message), 4) == Without(
        "the endpoint answered 400 InvalidParameter, document index:3", 3
    )


def test_an_endless_code_is_cut() -> None:
    verdict = judge(refusal(400, "x" * 500, "m"), 1)
    assert verdict == GiveUp("the endpoint answered 400 " + "x" * 80)


@pytest.mark.parametrize(
    ("exchange", "paid"),
    [
        (Unanswered("the connection was refused", sent=False), False),
        (Unanswered("no answer within 60 s", sent=True), True),
        (Answered(200, b"{"), True),
        (Answered(500, b""), False),
        (Answered(429, b""), False),
    ],
)
def test_only_what_may_have_been_billed_counts_as_possibly_paid(
    exchange: Answered | Unanswered, paid: bool
) -> None:
    verdict = judge(exchange, 2)
    assert isinstance(verdict, Again)
    assert verdict.possibly_paid is paid


DATE = "Wed, 21 Oct 2015 07:28:00 GMT"

RETRY_AFTER: list[tuple[str | None, str | None, float | None]] = [
    (None, DATE, None),
    ("0", None, 0),
    ("7", None, 7),
    (" 7 ", None, 7),
    ("2.5", None, 2.5),
    ("1e9", None, 1e9),
    ("999999999999999999999", None, 1e21),
    ("-5", None, 0),
    ("soon", None, None),
    ("", None, None),
    ("nan", None, None),
    ("inf", None, None),
    ("-inf", None, None),
    ("7 seconds", None, None),
    ("0x10", None, None),
    # An absolute date is measured from the answer's own Date: 1999 or 2015, no clock is asked.
    ("Wed, 21 Oct 2015 07:28:30 GMT", DATE, 30),
    ("Fri, 31 Dec 1999 23:59:59 GMT", "Fri, 31 Dec 1999 23:58:59 GMT", 60),
    ("Wed, 21 Oct 2015 09:28:30 +0200", DATE, 30),
    ("Wednesday, 21-Oct-15 07:28:30 GMT", DATE, 30),
    ("Wed, 21 Oct 2015 07:27:00 GMT", DATE, 0),
    ("Wed, 21 Oct 2015 07:28:30 GMT", None, None),
    ("Wed, 21 Oct 2015 07:28:30 GMT", "yesterday", None),
    ("Wed, 21 Oct 2015 07:28:30 -0000", DATE, None),
    ("Wed, 41 Oct 2015 07:28:30 GMT", DATE, None),
    ("Wed, 21 Oct 2015 27:28:30 GMT", DATE, None),
    ("Wed, 21 Oct 2015 07:28:30 +9999", DATE, None),
    ("Wed, 21 Oct 99999999999999999999 07:28:30 GMT", DATE, None),
    ("Wed, 21 Oct 2015 07:28:30 +99999999999999999", DATE, None),
]


@pytest.mark.parametrize(("retry_after", "date", "expected"), RETRY_AFTER)
def test_retry_after_asks_for(
    retry_after: str | None, date: str | None, expected: float | None
) -> None:
    assert seconds(Answered(429, b"", retry_after, date)) == expected


@pytest.mark.parametrize("status", [429, 500, 503])
def test_retry_after_is_heeded_on_whatever_is_asked_again(status: int) -> None:
    verdict = judge(Answered(status, b"", "17"), 1)
    assert isinstance(verdict, Again)
    assert verdict.after_seconds == 17


@given(st.text(max_size=40), st.none() | st.text(max_size=40))
def test_no_retry_after_raises(retry_after: str, date: str | None) -> None:
    wait = seconds(Answered(503, b"", retry_after, date))
    assert wait is None or wait >= 0


@pytest.mark.parametrize(("throttled", "base"), [(False, 0.2), (True, 1.0)])
def test_waits_are_full_jitter_under_a_ceiling_that_doubles_up_to_a_minute(
    throttled: bool, base: float
) -> None:
    longest = [0.0] * 12
    for seed in range(2000):
        for turn, wait in enumerate(islice(waits(Random(seed), throttled=throttled), 12)):
            assert 0 <= wait <= min(60, base * 2**turn)
            longest[turn] = max(longest[turn], wait)
    assert longest == pytest.approx([min(60, base * 2**turn) for turn in range(12)], rel=0.02)
