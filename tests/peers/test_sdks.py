"""The SDKs `cohere` and `voyageai` work against our server, unchanged but for the base URL."""

import pytest
from helpers import Server
from peer import KEY, call

from batchrank.server.scorers.hash import HashScorer
from batchrank.server.settings import DEFAULT_INSTRUCT

QUERY = "What is a reranking model?"
DOCUMENTS = ["They order candidates.", "A quantum computer.", "Text to vectors.", "Pizza."]
SCORES = HashScorer().scores(QUERY, DOCUMENTS, DEFAULT_INSTRUCT)
EXPECTED = sorted(([index, score] for index, score in enumerate(SCORES)), key=lambda one: -one[1])

ARGUMENTS = "import json, sys; url, key, query, *documents = sys.argv[1:]\n"
COHERE = f"""{ARGUMENTS}
import cohere
client = cohere.ClientV2(api_key=key, base_url=url)
try:
    answer = client.rerank(model="rerank-v4.0-pro", query=query, documents=documents, top_n=3)
    found = [[one.index, one.relevance_score] for one in answer.results]
    print(json.dumps([found, answer.meta.billed_units.search_units, answer.id is not None]))
except cohere.core.ApiError as error:
    print(json.dumps([type(error).__name__, error.status_code, error.body["message"]]))
"""
COHERE_V1 = f"""{ARGUMENTS}
import cohere
client = cohere.Client(api_key=key, base_url=url)
answer = client.rerank(
    model="rerank-v3.5", query=query, documents=documents, return_documents=True
)
print(json.dumps([[one.index, one.relevance_score, one.document.text] for one in answer.results]))
"""
VOYAGE = f"""{ARGUMENTS}
import voyageai
client = voyageai.Client(api_key=key, base_url=url + "/v1")
try:
    answer = client.rerank(query, documents, model="rerank-2.5", top_k=None)
    found = [[one.index, one.relevance_score, one.document] for one in answer.results]
    print(json.dumps([found, answer.total_tokens]))
except voyageai.error.VoyageError as error:
    print(json.dumps([type(error).__name__, error.http_status, str(error)]))
"""


def test_cohere_reranks(gate: Server) -> None:
    found = call("sdks", COHERE, gate.host, KEY, QUERY, *DOCUMENTS)
    assert found == [EXPECTED[:3], 1, True]


def test_coheres_older_client_reranks_too(gate: Server) -> None:
    found = call("sdks", COHERE_V1, gate.host, KEY, QUERY, *DOCUMENTS)
    assert found == [[index, score, DOCUMENTS[index]] for index, score in EXPECTED]


def test_voyage_reranks(gate: Server) -> None:
    found, tokens = call("sdks", VOYAGE, gate.host, KEY, QUERY, *DOCUMENTS)
    assert found == [[index, score, DOCUMENTS[index]] for index, score in EXPECTED]
    assert tokens > 52


ERRORS = [
    (COHERE, "sk-wrong", DOCUMENTS, ["UnauthorizedError", 401], "Invalid API-key provided."),
    (COHERE, KEY, ["a", " "], ["BadRequestError", 400], "document index:1 should not be empty."),
    (VOYAGE, "sk-wrong", DOCUMENTS, ["AuthenticationError", 401], "Invalid API-key provided."),
    (
        VOYAGE,
        KEY,
        ["a", " "],
        ["InvalidRequestError", 400],
        "document index:1 should not be empty.",
    ),
]


@pytest.mark.parametrize(("code", "key", "documents", "kind", "message"), ERRORS)
def test_the_sdks_read_the_errors(
    gate: Server, code: str, key: str, documents: list[str], kind: list[object], message: str
) -> None:
    *found, said = call("sdks", code, gate.host, key, QUERY, *documents)
    assert found == kind
    assert message in said
