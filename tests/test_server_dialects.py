"""The local server speaks the other dialects too: each path its answer and its error envelope."""

import json
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from helpers import Server

from batchrank.planning import tokens
from batchrank.server.scorers.hash import HashScorer
from batchrank.server.settings import DEFAULT_INSTRUCT

TEXTS = ["a bear", "ein Bär 🐼", "pizza"]
SCORES = HashScorer().scores("panda", TEXTS, DEFAULT_INSTRUCT)
ORDER = sorted(range(3), key=lambda index: -SCORES[index])
TOKENS = 3 * tokens.count("panda") + sum(map(tokens.count, TEXTS)) + 52
FLAT: dict[str, Any] = {"model": "any", "query": "panda", "documents": TEXTS}
TEI: dict[str, Any] = {"query": "panda", "texts": TEXTS}


def post(server: Server, path: str, body: Any) -> tuple[int, Any, Any]:
    """Status, JSON and headers of an answer."""
    request = Request(server.host + path, json.dumps(body).encode(), method="POST")
    try:
        with urlopen(request) as answer:
            return answer.status, json.load(answer), answer.headers
    except HTTPError as error:
        return error.code, json.load(error), error.headers


def results(score: str = "relevance_score") -> list[dict[str, Any]]:
    return [{"index": index, score: SCORES[index]} for index in ORDER]


def test_v2_rerank_answers_as_cohere(server: Server) -> None:
    status, answer, _ = post(server, "/v2/rerank", FLAT)
    assert status == 200 and len(answer.pop("id")) == 36
    version = {"version": "2", "is_experimental": False}
    meta = {"api_version": version, "billed_units": {"search_units": 1}}
    assert answer == {"results": results(), "meta": meta}
    many = {**FLAT, "documents": [f"text {n}" for n in range(101)]}
    assert post(server, "/v2/rerank", many)[1]["meta"]["billed_units"] == {"search_units": 2}


USAGE = {"total_tokens": TOKENS}


@pytest.mark.parametrize(
    ("path", "kind", "usage"),
    [
        ("/v1/rerank", "list", USAGE),
        ("/rerank", "rerank", {"prompt_tokens": TOKENS, **USAGE}),
    ],
)
def test_v1_rerank_answers_as_jina_and_rerank_as_servers_of_ones_own(
    server: Server, path: str, kind: str, usage: dict[str, int]
) -> None:
    status, answer, _ = post(server, path, {**FLAT, "top_n": 2, "return_documents": True})
    assert status == 200 and len(answer.pop("id")) == 36
    best = [{**one, "document": {"text": TEXTS[one["index"]]}} for one in results()[:2]]
    assert answer == {"object": kind, "results": best, "model": "any", "usage": usage}


@pytest.mark.parametrize(
    "field", [{"top_k": None}, {"truncation": True}, {"model": "rerank-2.5-lite"}]
)
def test_v1_rerank_answers_as_voyage_to_voyages_fields(
    server: Server, field: dict[str, Any]
) -> None:
    status, answer, _ = post(server, "/v1/rerank", {**FLAT, **field})
    usage = {"total_tokens": TOKENS}
    assert (status, answer) == (
        200,
        {
            "object": "list",
            "data": results(),
            "model": field.get("model", "any"),
            "usage": usage,
        },
    )
    asked = {**FLAT, "top_k": 1, "return_documents": True}
    (best,) = post(server, "/v1/rerank", asked)[1]["data"]
    assert best == {**results()[0], "document": TEXTS[ORDER[0]]}


def test_rerank_answers_as_tei_to_texts(server: Server) -> None:
    status, answer, headers = post(server, "/rerank", TEI)
    assert (status, answer) == (200, results("score"))
    assert headers["x-compute-tokens"] == str(TOKENS)
    _, answer, _ = post(server, "/rerank", {**TEI, "return_text": True})
    assert [one["text"] for one in answer] == [TEXTS[index] for index in ORDER]


def test_vllm_and_siliconflow_call_the_instruction_otherwise(server: Server) -> None:
    plain = post(server, "/rerank", FLAT)[1]["results"]
    told = post(server, "/rerank", {**FLAT, "instruction": "find prose"})[1]["results"]
    scores = HashScorer().scores("panda", TEXTS, "find prose")
    assert {one["index"]: one["relevance_score"] for one in told} == dict(enumerate(scores))
    assert {one["index"] for one in plain} == {0, 1, 2}


EMPTY = "document index:1 should not be empty.: input.documents"
ENVELOPES = {
    "/v2/rerank": lambda answer: answer["message"],
    "/v1/rerank": lambda answer: answer["detail"],
    "/rerank": lambda answer: answer["error"]["message"],
}


@pytest.mark.parametrize("path", ENVELOPES)
def test_errors_come_in_the_dialects_own_envelope(server: Server, path: str) -> None:
    status, answer, _ = post(server, path, {**FLAT, "documents": ["a", " "]})
    assert status == 400
    assert ENVELOPES[path](answer).endswith(EMPTY)
    assert set(answer) - {"id"} == {
        {"/v2/rerank": "message", "/v1/rerank": "detail"}.get(path, "error")
    }
    missing = {"query": "q", "documents": ["d"]}
    status, answer, _ = post(server, path, missing)
    assert (status, ENVELOPES[path](answer)) == (
        400,
        'Required parameter "model" missing from request.',
    )


def test_an_openai_envelope_has_the_type_and_the_status(server: Server) -> None:
    _, answer, _ = post(server, "/rerank", {**FLAT, "documents": []})
    assert answer["error"].pop("message")
    assert answer["error"] == {"type": "InvalidParameter", "param": None, "code": 400}


def test_tei_refuses_more_than_32_texts(server: Server) -> None:
    status, answer, _ = post(server, "/rerank", {**TEI, "texts": ["t"] * 33})
    said = "batch size 33 > maximum allowed batch size 32"
    assert (status, answer) == (422, {"error": said, "error_type": "Validation"})
    assert post(server, "/rerank", {"texts": ["t"]})[:2] == (
        400,
        {"error": "Required input parameter missing from request.", "error_type": "Validation"},
    )
