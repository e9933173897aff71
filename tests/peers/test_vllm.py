"""Our client scores real rows through a real vLLM server on the CPU, which runs a tiny
cross-encoder.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers import one_row, output, program, written
from peer import KEY, PEERS, SCIFACT, call, free_port, post, running

ROWS = 2
# Byte-level tokens: what is sent must fit the model's 512, for vLLM refuses what does not.
CHARACTERS = 300
METADATA = "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    script = Path(__file__).parent / "tiny_cross_encoder.py"
    call("vllm", script.read_text() + "\nprint('null')", folder)
    return folder


@pytest.fixture(scope="module")
def vllm(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # The package for CPUs goes by another name, under which vLLM looks for its version in vain.
    (packages,) = (PEERS / "vllm/lib").glob("python*/site-packages")
    (packages / "vllm-0.32.0+cpu.dist-info").mkdir(exist_ok=True)
    (packages / "vllm-0.32.0+cpu.dist-info" / "METADATA").write_text(METADATA)
    folder = tmp_path_factory.mktemp("vllm")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [PEERS / "vllm/bin/vllm", "serve", model, "--served-model-name", "tiny"]
    command += ["--runner", "pooling", "--max-model-len", 512, "--dtype", "float32"]
    command += ["--enforce-eager", "--host", "127.0.0.1", "--port", port]
    quiet = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_API_KEY": KEY}
    with running(command, f"{url}/health", folder / "log", cwd=folder, seconds=300, **quiet):
        yield url


def score(
    vllm: str, source: Path, out: Path, *more: object, key: str = KEY
) -> tuple[int, str, Any]:
    done = program(
        "run", source, "-o", out, "--provider", "vllm", "--base-url", f"{vllm}/v1",
        "--summary", "json", "--model", "tiny", *more, VLLM_API_KEY=key, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stderr, json.loads(done.stdout or "null")


def short_rows(tmp_path: Path) -> Path:
    """Real rows, their abstracts cut to what the model can read."""
    rows = pq.read_table(SCIFACT).slice(0, ROWS)
    lists = [
        [{**candidate, "text": candidate["text"][:CHARACTERS]} for candidate in candidates]
        for candidates in rows["candidates"].to_pylist()
    ]
    place = rows.schema.get_field_index("candidates")
    return written(tmp_path / "in.parquet", rows.set_column(place, "candidates", [lists]))


def test_real_rows_are_scored_as_the_server_scores_them(vllm: str, tmp_path: Path) -> None:
    source = short_rows(tmp_path)
    code, said, receipt = score(vllm, source, tmp_path / "out")
    assert (code, said) == (0, "")
    usage = 0
    found = output(tmp_path / "out").to_pylist()
    for row, scored in zip(pq.read_table(source).to_pylist(), found, strict=True):
        texts = [candidate["text"] for candidate in row["candidates"]]
        asked = {"model": "tiny", "query": row["query"], "documents": texts}
        answer = post(f"{vllm}/v1/rerank", asked)
        usage += answer["usage"]["total_tokens"]
        direct = {one["index"]: one["relevance_score"] for one in answer["results"]}
        ours = {one["index"]: one["relevance_score"] for one in scored["results"]}
        assert ours == pytest.approx(direct, abs=1e-4)
        assert scored["status"] == "scored"
    assert receipt["tokens_billed"] == usage


def test_a_pair_that_is_too_long_harms_no_other(vllm: str, tmp_path: Path) -> None:
    texts = [f"text {place}" for place in range(8)]
    texts[5] = "a long text " * 100
    source = written(tmp_path / "long.parquet", one_row("query", texts))
    code, _, _ = score(vllm, source, tmp_path / "out", "--max-failed-rows", 1)
    (row,) = output(tmp_path / "out").to_pylist()
    assert (code, row["status"]) == (0, "partial")
    unscored = [one["index"] for one in row["results"] if one["relevance_score"] is None]
    assert unscored == [5]
    assert "document 5: the endpoint answered 400" in row["error"]


def test_its_refusals_are_understood(vllm: str, tmp_path: Path) -> None:
    source = short_rows(tmp_path)
    code, said, _ = score(vllm, source, tmp_path / "key", key="sk-wrong")
    assert (code, "401" in said) == (77, True), said
    code, said, _ = score(vllm, source, tmp_path / "model", "--model", "nobody")
    assert (code, "answered 404" in said) == (69, True), said
