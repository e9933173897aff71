"""The vendor's own SDKs work against the local server, unchanged but for the base URL."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from batchrank.server.app import ServerSettings, serving
from batchrank.server.scorers.hash import HashScorer

openai = pytest.importorskip("openai")
dashscope = pytest.importorskip("dashscope")

QUERY = "What is a reranking model?"
DOCUMENTS = ["They order candidates.", "A quantum computer.", "Text to vectors.", "Pizza."]
INSTRUCT = "Retrieve semantically similar text."


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """A server with a key, in a loop of its own: the SDKs block."""
    started: list[str] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with serving(ServerSettings(api_key="sk-local"), HashScorer()) as url:
            started.append(url)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    yield started[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


@pytest.fixture
def native(host: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(dashscope, "base_http_api_url", f"{host}/api/v1")
    return dashscope.TextReRank


def expected() -> list[tuple[int, float]]:
    scores = HashScorer().scores(QUERY, DOCUMENTS, INSTRUCT)
    return sorted(enumerate(scores), key=lambda pair: -pair[1])


def test_openai_posts_a_rerank(host: str) -> None:
    body = {
        "model": "qwen3-rerank",
        "query": QUERY,
        "documents": DOCUMENTS,
        "top_n": 2,
        "instruct": INSTRUCT,
    }
    with openai.OpenAI(base_url=f"{host}/compatible-api/v1", api_key="sk-local") as client:
        answer: Any = client.post("/reranks", body=body, cast_to=object)
    found = [(result["index"], result["relevance_score"]) for result in answer["results"]]
    assert found == expected()[:2]
    assert answer["object"] == "list" and answer["usage"]["total_tokens"] > 52


def test_openai_reads_the_errors(host: str) -> None:
    url = f"{host}/compatible-api/v1"
    with (
        openai.OpenAI(base_url=url, api_key="sk-wrong") as client,
        pytest.raises(openai.AuthenticationError, match=r"Invalid API-key provided\."),
    ):
        client.post("/reranks", body={}, cast_to=object)
    with (
        openai.OpenAI(base_url=url, api_key="sk-local") as client,
        pytest.raises(openai.BadRequestError, match=r"document index:1 should not be empty\."),
    ):
        body = {"model": "qwen3-rerank", "query": "q", "documents": ["a", ""]}
        client.post("/reranks", body=body, cast_to=object)


def test_dashscope_reranks(native: Any) -> None:
    answer = native.call(
        model="qwen3-rerank",
        query=QUERY,
        documents=DOCUMENTS,
        top_n=3,
        return_documents=True,
        instruct=INSTRUCT,
        api_key="sk-local",
    )
    assert answer.status_code == 200 and answer.request_id
    found = [(result.index, result.relevance_score) for result in answer.output.results]
    assert found == expected()[:3]
    # By key: as an attribute the SDK's class default, None, hides what came.
    assert answer.output.results[0]["document"]["text"] == DOCUMENTS[found[0][0]]
    assert answer.usage.total_tokens > 52


def test_dashscope_needs_no_parameter_and_reads_the_errors(native: Any) -> None:
    answer = native.call(
        model=native.Models.gte_rerank_v2, query="q", documents=["a", "b"], api_key="sk-local"
    )
    assert (answer.status_code, len(answer.output.results)) == (200, 2)
    answer = native.call(model="qwen3-rerank", query="q", documents=["a"], api_key="sk-wrong")
    assert (answer.status_code, answer.code) == (401, "InvalidApiKey")
    assert answer.message == "Invalid API-key provided."
    answer = native.call(model="nope", query="q", documents=["a"], api_key="sk-local")
    assert (answer.status_code, answer.code) == (404, "ModelNotFound")
