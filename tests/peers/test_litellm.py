"""`litellm.rerank` asks our server in six providers' ways; our client asks a LiteLLM proxy that
has our server behind it.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import Server, expected_of, output, program
from peer import KEY, PEERS, SCIFACT, call, free_port, running

from batchrank.server.scorers.hash import HashScorer
from batchrank.server.settings import DEFAULT_INSTRUCT

QUERY = "What is a reranking model?"
DOCUMENTS = ["They order candidates.", "A quantum computer.", "Text to vectors.", "Pizza."]
ROWS = 10
ROUTES = {
    "cohere/rerank-v3.5": "/v2/rerank",
    "jina_ai/jina-reranker-v2-base-multilingual": "",
    "dashscope/qwen3-rerank": "/compatible-api/v1",
    "voyage/rerank-2.5": "/v1",
    "hosted_vllm/any": "",
    "infinity/any": "",
}
CODE = """
import json, sys
import litellm
model, url, key, query, *documents = sys.argv[1:]
try:
    answer = litellm.rerank(
        model=model, query=query, documents=documents, top_n=3, api_base=url, api_key=key,
        # Infinity echoes a string where vLLM has an object; on their path ours does as vLLM.
        return_documents=not model.startswith("infinity"),
    )
    print(json.dumps([[one["index"], one["relevance_score"]] for one in answer.results]))
except Exception as error:
    print(json.dumps([type(error).__name__, getattr(error, "status_code", None)]))
"""


@pytest.mark.parametrize("model", ROUTES)
def test_litellm_reranks_as(gate: Server, model: str) -> None:
    found = call("litellm", CODE, model, gate.host + ROUTES[model], KEY, QUERY, *DOCUMENTS)
    scores = HashScorer().scores(QUERY, DOCUMENTS, DEFAULT_INSTRUCT)
    expected = sorted(([index, score] for index, score in enumerate(scores)), key=lambda o: -o[1])
    assert found == expected[:3]


@pytest.fixture(scope="module")
def proxy(gate: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A proxy with a key of its own, and one name for each way to our server."""
    folder = tmp_path_factory.mktemp("litellm")
    models = "".join(
        f"  - model_name: {model.partition('/')[0]}\n    litellm_params:\n      model: {model}\n"
        f"      api_base: {gate.host}{path}\n      api_key: {KEY}\n"
        for model, path in ROUTES.items()
    )
    (folder / "config.yaml").write_text(
        f"model_list:\n{models}general_settings:\n  master_key: sk-proxy\n"
    )
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [PEERS / "litellm/bin/litellm", "--config", folder / "config.yaml"]
    command += ["--host", "127.0.0.1", "--port", port]
    with running(command, f"{url}/health/liveliness", folder / "log", cwd=folder):
        yield url


def score(proxy: str, out: Path, model: str, key: str = "sk-proxy") -> tuple[int, str]:
    done = program(
        "run", SCIFACT, "-o", out, "--limit", ROWS, "--provider", "litellm", "--base-url", proxy,
        "--model", model, LITELLM_API_KEY=key, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("model", ROUTES)
def test_our_client_scores_real_rows_through_the_proxy(
    proxy: str, tmp_path: Path, model: str
) -> None:
    assert score(proxy, tmp_path / "out", model.partition("/")[0]) == (0, "")
    rows = pq.read_table(SCIFACT).slice(0, ROWS).to_pylist()
    found = output(tmp_path / "out").to_pylist()
    assert [row["results"] for row in found] == [expected_of(row) for row in rows]
    assert [row["status"] for row in found] == ["scored"] * ROWS


def test_the_proxys_refusals_are_understood(proxy: str, tmp_path: Path) -> None:
    code, said = score(proxy, tmp_path / "key", "cohere", key="sk-wrong")
    assert (code, "401" in said or "400" in said) == (77, True), said
    code, said = score(proxy, tmp_path / "model", "nobody")
    assert code == 69, said
