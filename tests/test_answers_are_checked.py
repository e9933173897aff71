"""An answer is whole, or it is a failure: never a wrong score, never a guess."""

import json
from math import isfinite
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrank.errors import ConfigInvalid
from batchrank.sending.verdicts import (
    Again,
    Answered,
    GiveUp,
    Halve,
    Stop,
    Unanswered,
    Without,
    judge,
)
from batchrank.wire.replies import BadAnswer, Refusal, Scores, read

settings.register_profile("timeless", deadline=None)
settings.load_profile("timeless")

GOOD = [{"index": 1, "relevance_score": 0.25}, {"index": 0, "relevance_score": 0.5}]


def flat(*results: Any) -> bytes:
    return json.dumps({"results": list(results), "usage": {"total_tokens": 9}}).encode()


def scored(index: Any, score: Any = 0.5) -> dict[str, Any]:
    return {"index": index, "relevance_score": score}


BAD = {
    "partial": (flat(scored(0)), "1 results for 2 documents"),
    "empty": (flat(), "0 results for 2 documents"),
    "extra": (flat(scored(0), scored(1), scored(2)), "3 results for 2 documents"),
    "duplicated": (flat(scored(0), scored(0)), "index 0 comes twice"),
    "out of range": (flat(scored(0), scored(2)), "index 2 is out of range for 2 documents"),
    "negative": (flat(scored(0), scored(-1)), "index -1 is out of range for 2 documents"),
    "huge index": (
        flat(scored(0), scored(2**80)),
        f"index {2**80} is out of range for 2 documents",
    ),
    "string index": (flat(scored("0"), scored(1)), "Expected `int`, got `str`"),
    "float index": (flat(scored(0.0), scored(1)), "Expected `int`, got `float`"),
    "true index": (flat(scored(True), scored(0)), "Expected `int`, got `bool`"),
    "null index": (flat(scored(None), scored(0)), "Expected `int`, got `null`"),
    "no index": (flat({"relevance_score": 1}, scored(0)), "missing required field `index`"),
    "NaN": (flat(scored(0, float("nan")), scored(1)), "not a rerank answer"),
    "Infinity": (flat(scored(0, float("inf")), scored(1)), "not a rerank answer"),
    "beyond double": (flat(scored(0), scored(1)).replace(b"0.5", b"1e999"), "Number out of range"),
    "null score": (flat(scored(0, None), scored(1)), "Expected `float`, got `null`"),
    "string score": (flat(scored(0, "0.5"), scored(1)), "Expected `float`, got `str`"),
    "no score": (flat({"index": 0}, scored(1)), "missing required field `relevance_score`"),
    "another's score key": (flat({"index": 0, "score": 1}, scored(1)), "missing required field"),
    "results of null": (b'{"results":null}', "no results in the answer"),
    "results of text": (b'{"results":"all"}', "Expected `array | null`, got `str`"),
    "no results": (b'{"id":"1","usage":{"total_tokens":3}}', "no results in the answer"),
    "empty object": (b"{}", "no results in the answer"),
    "empty output": (b'{"output":{}}', "no results in the answer"),
    "an empty list": (b"[]", "0 results for 2 documents"),
    "a bare list by the longer name": (
        json.dumps(GOOD).encode(),
        "missing required field `score`",
    ),
    "a bare list with a gap": (b'[{"index":1,"score":1}]', "1 results for 2 documents"),
    "a bare list with a NaN": (b'[{"index":1,"score":NaN}]', "not a rerank answer"),
    "data with a gap": (
        b'{"data":[{"index":1,"relevance_score":1}]}',
        "1 results for 2 documents",
    ),
    "a number": (b"7", "Expected `object`, got `int`"),
    "nothing": (b"", "not a rerank answer"),
    "truncated": (flat(*GOOD)[:-20], "not a rerank answer"),
    "trailing": (flat(*GOOD) + b"}", "trailing characters"),
    "HTML": (b"<html><body>502 Bad Gateway</body></html>", "JSON is malformed"),
    "not UTF-8": (b'{"message":"\xff\xfe"}', "not a rerank answer"),
    "half a surrogate": (b'{"message":"\\ud800"}', "not a rerank answer"),
    "gzip": (b"\x1f\x8b\x08\x00\x00", "JSON is malformed"),
}


@pytest.mark.parametrize(("body", "what"), BAD.values(), ids=BAD)
def test_a_bad_answer_is_named_and_asked_for_again(body: bytes, what: str) -> None:
    with pytest.raises(BadAnswer) as error:
        read(body, 2)
    assert what in str(error.value)
    assert judge(Answered(200, body), 2) == Again(
        f"the answer breaks the contract: {error.value}",
        possibly_paid=True,
        answered=True,
        broken=True,
        at_risk=True,
    )


def test_the_same_good_answer_passes_in_any_order_and_either_form() -> None:
    for results in (GOOD, GOOD[::-1]):
        for body in ({"results": results}, {"output": {"results": results}}):
            assert read(json.dumps(body).encode(), 2) == Scores([0.5, 0.25], None, None)


@pytest.mark.parametrize("score", [0, 1, -3.2, 1e-308, 1.7976931348623157e308, 0.9079864152388608])
def test_any_finite_score_is_kept_to_the_last_bit(score: float) -> None:
    assert read(flat(scored(0, score)), 1) == Scores([score], 9, None)


@pytest.mark.parametrize("opening", [b'{"x":', b'{"results":[{"index":0,"x":'])
def test_an_answer_nested_too_deep_is_a_bad_answer(opening: bytes) -> None:
    assert isinstance(judge(Answered(200, opening + b"[" * 100_000), 1), Again)
    assert isinstance(judge(Answered(400, opening + b"[" * 100_000), 1), GiveUp | Halve)
    assert isinstance(judge(Answered(502, opening + b"[" * 100_000), 1), Again)


USAGES: dict[str, tuple[str, int | None]] = {
    "nothing": ("0", None),
    "null": ("null", None),
    "text": ('"17"', 17),
    "words": ('"many"', None),
    "a fraction": ("16.5", 17),
    "a list": ("[17]", None),
    "negative": ("-5", -5),
    "a truth": ("true", -1),
    "NaN": ("NaN", -1),
    "infinite": ("1e999", -1),
    "30 digits": ("9" * 30, int("9" * 30)),
    "5,000 digits": ("9" * 5000, 10**18),
    "minus 5,000 digits": ("-" + "9" * 5000, -1),
}
"""Tokens as an answer says them, and as they are read: what is absurd is told by `Price`."""


@pytest.mark.parametrize(("said", "read_as"), USAGES.values(), ids=USAGES)
def test_scores_are_read_however_the_usage_is_said(said: str, read_as: int | None) -> None:
    result = '"results":[{"index":0,"relevance_score":1}]'
    for usage in ('"usage":{"total_tokens":%s}', '"meta":{"tokens":{"input_tokens":%s}}'):
        answer = read(f"{{{result},{usage % said}}}".encode(), 1)
        assert isinstance(answer, Scores)
        assert (answer.relevance_scores, answer.tokens) == ([1.0], read_as)


def test_a_usage_that_is_no_object_says_nothing() -> None:
    for usage in ('"usage":[]', '"usage":"many"', '"meta":5', '"meta":{"billed_units":5}'):
        body = f'{{"results":[{{"index":0,"relevance_score":1}}],{usage}}}'
        answer = read(body.encode(), 1)
        assert isinstance(answer, Scores)
        assert (answer.tokens, answer.searches) == (None, None)


@pytest.mark.parametrize("digits", ["9" * 400, "9" * 5000])
@pytest.mark.parametrize("status", [200, 400, 404, 500])
def test_a_number_of_any_length_in_a_refusal_has_a_verdict(digits: str, status: int) -> None:
    for body in (
        f'{{"code":"{digits}","message":"x"}}',
        f'{{"code":{digits},"message":"x"}}',
        f'{{"error":{{"code":{digits},"message":"x"}}}}',
        f'{{"code":"InvalidParameter","message":"document index: {digits} is refused"}}',
        f'{{"results":[{{"index":{digits},"relevance_score":1}}]}}',
        f'{{"results":[{{"index":0,"relevance_score":{digits}}}]}}',
    ):
        verdict = judge(Answered(status, body.encode(), digits, digits, digits), 2)
        assert not isinstance(verdict, Scores)


def test_a_header_of_many_digits_is_read_as_an_absurd_count() -> None:
    body = b'[{"index":0,"score":1}]'
    verdict = judge(Answered(200, body, compute_tokens="9" * 5000), 1)
    assert isinstance(verdict, Scores) and verdict.tokens == 10**18


ENVELOPES = {
    "flat": '{"code":"%s","message":"%s","request_id":"r"}',
    "nested": '{"error":{"code":"%s","message":"%s","param":null,"type":"t"},"request_id":"r"}',
    "flat with output": '{"code":"%s","message":"%s","request_id":"r","output":null}',
}


@pytest.mark.parametrize("envelope", ENVELOPES.values(), ids=ENVELOPES)
@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("Throttling.RateQuota", Again),
        ("limit_requests", Again),
        ("InternalError", Again),
        ("InvalidApiKey", Stop),
        ("Arrearage", Stop),
        ("DataInspectionFailed", Halve),
        ("InvalidParameter", (GiveUp, Halve)),
    ],
)
def test_an_error_inside_a_200_means_what_it_says(
    envelope: str, code: str, verdict: type | tuple[type, ...]
) -> None:
    body = (envelope % (code, "words")).encode()
    assert read(body, 2) == Refusal(code, "words", "r")
    assert isinstance(judge(Answered(200, body), 2), verdict)


def test_an_error_beside_an_empty_list_of_results_is_an_error() -> None:
    body = b'{"results":[],"code":"Throttling.RateQuota","message":"m"}'
    verdict = judge(Answered(200, body), 2)
    assert isinstance(verdict, Again)
    assert verdict.throttled


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_stops_the_job(status: int) -> None:
    verdict = judge(Answered(status, b""), 1)
    assert isinstance(verdict, Stop)
    assert isinstance(verdict.error, ConfigInvalid)
    assert str(verdict.error) == (
        f"the endpoint answered {status}, a redirect, which is not followed: it would take texts "
        "and key to another address. Set endpoint.base_url to the final one."
    )


@pytest.mark.parametrize("sent", [True, False])
def test_no_answer_is_asked_for_again_and_counted_paid_if_it_was_sent(sent: bool) -> None:
    assert judge(Unanswered("no answer within 60 s", sent), 3) == Again(
        "no answer within 60 s", possibly_paid=sent, at_risk=sent
    )


FIELDS = st.sampled_from(
    ["results", "output", "index", "relevance_score", "usage", "total_tokens", "code", "error"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=12,
)
VERDICTS = Scores | Again | Halve | Without | GiveUp | Stop


@given(JSON, st.integers(1, 3), st.sampled_from([200, 400, 429, 500]))
def test_any_json_has_a_verdict_and_any_scores_are_whole(
    answer: Any, documents: int, status: int
) -> None:
    verdict = judge(Answered(status, json.dumps(answer).encode()), documents)
    assert isinstance(verdict, VERDICTS)
    if isinstance(verdict, Scores):
        assert len(verdict.relevance_scores) == documents
        assert all(map(isfinite, verdict.relevance_scores))


@given(st.binary(max_size=60), st.sampled_from([200, 204, 400, 413, 422, 429, 500, 502]))
def test_any_bytes_have_a_verdict(body: bytes, status: int) -> None:
    assert isinstance(judge(Answered(status, body), 2), VERDICTS)


@given(st.data())
def test_a_damaged_good_answer_is_either_right_or_refused(data: st.DataObject) -> None:
    """One byte of a good body changed: the scores are whole, or there are none."""
    body = bytearray(flat(*GOOD))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    verdict = judge(Answered(200, bytes(body)), 2)
    assert isinstance(verdict, VERDICTS)
    if isinstance(verdict, Scores):
        assert len(verdict.relevance_scores) == 2
