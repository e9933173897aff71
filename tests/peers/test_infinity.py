"""Our client scores real rows through a real Infinity server, which runs a tiny cross-encoder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import CANDIDATES, output, program, written
from peer import KEY, PEERS, SCIFACT, call, free_port, post, running

ROWS = 5
BY_HAND = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, query, *documents = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
scores = []
for document in documents:
    pair = tokenizer(query, document, truncation=True, max_length=512, return_tensors="pt")
    with torch.inference_mode():
        scores.append(torch.sigmoid(model(**pair).logits).item())
print(json.dumps(scores))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    script = Path(__file__).parent / "tiny_cross_encoder.py"
    call("infinity", script.read_text() + "\nprint('null')", folder)
    return folder


@pytest.fixture(scope="module")
def infinity(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("infinity")
    port = free_port()
    command = [PEERS / "infinity/bin/infinity_emb", "v2", "--model-id", model]
    command += ["--served-model-name", "tiny", "--engine", "torch", "--device", "cpu"]
    command += ["--no-bettertransformer", "--no-model-warmup", "--host", "127.0.0.1"]
    url = f"http://127.0.0.1:{port}"
    health, log = f"{url}/health", folder / "log"
    with running([*command, "--port", port], health, log, cwd=folder, INFINITY_API_KEY=KEY):
        yield url


def score(
    infinity: str, source: Path, out: Path, *more: object, key: str = KEY
) -> tuple[int, str, Any]:
    done = program(
        "run", source, "-o", out, "--provider", "infinity", "--base-url", infinity,
        "--summary", "json", *more, INFINITY_API_KEY=key, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stderr, json.loads(done.stdout or "null")


def test_real_rows_are_scored_as_the_server_scores_them(
    infinity: str, model: Path, tmp_path: Path
) -> None:
    code, said, receipt = score(infinity, SCIFACT, tmp_path / "out", "--limit", ROWS)
    assert (code, said) == (0, "")
    rows = pq.read_table(SCIFACT).slice(0, ROWS).to_pylist()
    found = output(tmp_path / "out").to_pylist()
    usage = 0
    for row, scored in zip(rows, found, strict=True):
        texts = [candidate["text"] for candidate in row["candidates"]]
        answer = post(
            f"{infinity}/rerank", {"model": "tiny", "query": row["query"], "documents": texts}
        )
        usage += answer["usage"]["total_tokens"]
        direct = {one["index"]: one["relevance_score"] for one in answer["results"]}
        ours = {one["index"]: one["relevance_score"] for one in scored["results"]}
        assert ours == pytest.approx(direct, abs=1e-5)
        assert scored["status"] == "scored" and scored["requests"] == 1
    assert receipt["tokens_billed"] == usage
    assert receipt["cost_usd"] == 0
    texts = [candidate["text"] for candidate in rows[0]["candidates"][:5]]
    by_hand = call("infinity", BY_HAND, model, rows[0]["query"], *texts)
    first = {one["index"]: one["relevance_score"] for one in found[0]["results"]}
    assert [first[index] for index in range(5)] == pytest.approx(by_hand, abs=1e-4)


def test_more_documents_than_it_takes_are_halved(infinity: str, tmp_path: Path) -> None:
    """Its 422 is pydantic's: `too_long`, and every text echoed."""
    candidates = [{"doc_id": None, "text": f"text {place}"} for place in range(2100)]
    rows = pa.table({"query": ["q"], "candidates": pa.array([candidates], CANDIDATES)})
    source = written(tmp_path / "in.parquet", rows)
    config = tmp_path / "more.toml"
    config.write_text("[limits]\nmax_documents = 5000\n")
    code, said, _ = score(infinity, source, tmp_path / "out", "-c", config)
    assert (code, said) == (0, "")
    (row,) = output(tmp_path / "out").to_pylist()
    assert (row["status"], row["requests"], len(row["results"])) == ("scored", 2, 2100)


def test_a_wrong_key_is_understood(infinity: str, tmp_path: Path) -> None:
    code, said, _ = score(infinity, SCIFACT, tmp_path / "key", "--limit", 1, key="sk-wrong")
    assert (code, "401" in said) == (77, True), said
