"""Every provider's requests, answers, errors, limits and bill, against our own server."""

import json
from collections.abc import Callable, Iterator
from math import ceil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers import (
    CANDIDATES,
    Server,
    expected_of,
    inside,
    output,
    program,
    serving,
    table,
    written,
)

from batchrank.config.providers import PROVIDERS

BASES = {
    "cohere": "",
    "jina": "/v1",
    "voyage": "/v1",
    "siliconflow": "/v1",
    "tei": "",
    "vllm": "",
    "infinity": "",
    "llama.cpp": "/v1",
    "litellm": "/v1",
    "dashscope": "/compatible-api/v1",
    "dashscope-native": "/api/v1",
}


def options(name: str, server: Server, *more: object) -> list[object]:
    """The options of a run against our server as if it were this provider."""
    model = [] if PROVIDERS[name].model else ["--model", "any"]
    url = server.host + BASES[name]
    rate = ["--requests-per-minute", 0, "--tokens-per-minute", 0]
    return ["--provider", name, "--base-url", url, *model, *rate, *more]


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for provider in PROVIDERS.values():
        monkeypatch.setenv(provider.api_key_env, "sk-local")


@pytest.fixture(scope="module")
def gate() -> Iterator[Server]:
    """A server that wants this key."""
    with serving("--api-key-env", "GATE", GATE="sk-local") as server:
        yield server


def test_every_provider_is_here() -> None:
    assert set(BASES) == set(PROVIDERS) - {"local"}


@pytest.mark.parametrize("name", BASES)
def test_rows_are_scored_through(gate: Server, tmp_path: Path, name: str) -> None:
    """40 documents a row: with TEI's 32 texts a request they are two."""
    rows = table(6, 40, tag=name)
    source = written(tmp_path / "in.parquet", rows)
    before = gate.ledger()
    done = inside("run", source, "-o", tmp_path / "out", *options(name, gate), "--summary", "json")
    assert (done.returncode, done.stderr) == (0, "")
    found = output(tmp_path / "out").to_pylist()
    assert [row["results"] for row in found] == [expected_of(row) for row in rows.to_pylist()]
    pieces = 2 if name == "tei" else 1
    assert [row["requests"] for row in found] == [pieces] * 6
    receipt, after = json.loads(done.stdout), gate.ledger()
    assert after["requests"] - before["requests"] == receipt["requests"] == 6 * pieces
    tokens = after["tokens"] - before["tokens"]
    if name != "cohere":  # whose answers tell searches, and no tokens
        assert receipt["tokens_billed"] == tokens
    price = PROVIDERS[name].price
    units = 6 if name == "cohere" else tokens
    assert receipt["cost_usd"] == pytest.approx(price.cost(units) if price else 0, abs=1e-6)


@pytest.mark.parametrize("name", BASES)
def test_a_wrong_key_ends_the_run(
    gate: Server, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROVIDERS[name].api_key_env, "sk-wrong")
    source = written(tmp_path / "in.parquet", table(3, tag="key"))
    done = inside("run", source, "-o", tmp_path / "out", *options(name, gate))
    assert done.returncode == 77
    assert "the endpoint answered 401" in done.stderr


@pytest.mark.parametrize("name", ["cohere", "jina", "voyage", "tei", "vllm"])
def test_broken_answers_of_any_dialect_are_asked_for_again(
    serve: Callable[..., Server], tmp_path: Path, name: str
) -> None:
    kinds = ("partial", "duplicate_index", "nan_score", "extra_results", "shuffled", "null_score")
    faults = "".join(
        f'[[fault]]\nkind = "{kind}"\nwhere = {{ probability = 0.1, first = 3 }}\n'
        for kind in kinds
    )
    rows = table(20, 6, tag=f"broken {name}")
    source = written(tmp_path / "in.parquet", rows)
    server = serve(faults)
    done = inside("run", source, "-o", tmp_path / "out", *options(name, server))
    assert (done.returncode, done.stderr) == (0, "")
    found = output(tmp_path / "out").to_pylist()
    assert [row["results"] for row in found] == [expected_of(row) for row in rows.to_pylist()]
    assert sum(server.ledger()["faults"].values()) > 5


@pytest.mark.parametrize("name", ["cohere", "jina", "voyage", "tei", "vllm"])
def test_a_refused_document_harms_no_other_in_any_envelope(
    serve: Callable[..., Server], tmp_path: Path, name: str
) -> None:
    faults = '[[fault]]\nkind = "size_refusal"\nwhere = { documents_over = 4 }\nstatus = 413\n'
    rows = table(3, 9, tag=f"large {name}")
    source = written(tmp_path / "in.parquet", rows)
    server = serve(faults)
    done = inside("run", source, "-o", tmp_path / "out", *options(name, server))
    assert (done.returncode, done.stderr) == (0, "")
    found = output(tmp_path / "out").to_pylist()
    assert [row["results"] for row in found] == [expected_of(row) for row in rows.to_pylist()]


def test_the_same_scores_give_the_same_parts_through_any_dialect(
    server: Server, tmp_path: Path
) -> None:
    """But for TEI, whose requests hold 32 texts: the column `requests` says so. Only the footers
    differ, which name the provider.
    """
    source = written(tmp_path / "in.parquet", table(5, 7, tag="same"))
    outputs = []
    for name in BASES:
        out = tmp_path / name
        assert inside("run", source, "-o", out, *options(name, server)).stderr == ""
        outputs.append(output(out))
    assert all(one.equals(outputs[0]) for one in outputs)


def lists(sizes: list[int]) -> pa.Table:
    candidates = [
        [{"doc_id": f"d{place}", "text": f"row {row} text {place}"} for place in range(size)]
        for row, size in enumerate(sizes)
    ]
    queries = [f"query {row}" for row in range(len(sizes))]
    return pa.table({"query": queries, "candidates": pa.array(candidates, CANDIDATES)})


def test_cohere_is_paid_by_the_search(server: Server, tmp_path: Path) -> None:
    sizes = [1, 100, 101, 250, 1000, 1001]
    source = written(tmp_path / "in.parquet", lists(sizes))
    searches = sum(map(ceil, [1 / 100, 1, 1.01, 2.5, 10, 5.01, 5]))  # 1,001 are two requests
    plan = inside("plan", source, *options("cohere", server), "--summary", "json")
    figures = json.loads(plan.stdout)
    assert figures["requests"] == 7
    assert figures["searches"] == searches
    assert figures["cost_usd"] == pytest.approx(searches * 0.0025)
    done = inside(
        "run", source, "-o", tmp_path / "out", *options("cohere", server), "--summary", "json"
    )  # fmt: skip
    assert json.loads(done.stdout)["cost_usd"] == pytest.approx(searches * 0.0025)


@pytest.mark.parametrize("cap", [0.0, 0.0024, 0.011, 0.05])
def test_a_cap_holds_searches_too(server: Server, tmp_path: Path, cap: float) -> None:
    source = written(tmp_path / "in.parquet", lists([50] * 12))
    arguments = ["-o", tmp_path / "out", *options("cohere", server), "--summary", "json"]
    done = inside("run", source, *arguments, "--max-cost", cap)
    spent = json.loads(done.stdout)["cost_usd"]
    assert done.returncode == (0 if cap >= 12 * 0.0025 else 4)
    assert min(cap, 12 * 0.0025) - 0.0025 < spent <= cap
    again = inside("run", source, *arguments, "--max-cost", 1)
    receipt: dict[str, Any] = json.loads(again.stdout)
    assert (again.returncode, receipt["rows_scored"]) == (0, 12)
    assert receipt["cost_usd"] == pytest.approx(12 * 0.0025)


def test_a_cap_without_a_price_is_refused(server: Server, tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", lists([1]))
    arguments = [*options("siliconflow", server), "--max-cost", 1]
    done = inside("run", source, "-o", tmp_path / "out", *arguments)
    assert done.returncode == 78
    assert "endpoint.price_usd" in done.stderr


def test_tei_gets_no_body_over_its_limit(server: Server, tmp_path: Path) -> None:
    text = "many words " * 10_000
    rows = pa.table(
        {
            "query": ["q"],
            "candidates": pa.array(
                [[{"doc_id": f"d{n}", "text": f"{n} {text}"} for n in range(40)]], CANDIDATES
            ),
        }
    )
    source = written(tmp_path / "in.parquet", rows)
    done = inside("run", source, "-o", tmp_path / "out", *options("tei", server))
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = output(tmp_path / "out").to_pylist()
    assert row["requests"] == ceil(40 / (2_000_000 // len(text)))


def test_an_error_that_echoes_the_request_is_an_error_all_the_same(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    """FastAPI answers 422 with every text in it, which is more than an answer may be."""
    message = "x" * 400_000
    server = serve(f'[[fault]]\nkind = "status"\nstatus = 422\nmessage = "{message}"\n')
    source = written(tmp_path / "in.parquet", table(1, tag="echo"))
    done = inside("run", source, "-o", tmp_path / "out", *options("infinity", server))
    assert done.returncode == 3
    (row,) = output(tmp_path / "out").to_pylist()
    assert row["error"].endswith("the endpoint answered 422")
    assert server.received == 1


def test_the_providers_are_listed() -> None:
    shown = json.loads(program("providers", "--json").stdout)
    assert {one["provider"] for one in shown} == set(PROVIDERS)
    for one in shown:
        assert one["source"] and one["score"] and one["api_key_env"]
    whole = [one["model"] for one in shown if one["scores_lists"]]
    assert whole == ["jina-reranker-v3"]
    words = program("providers")
    assert words.returncode == 0
    for name in PROVIDERS:
        assert f"\n{name} " in words.stdout
    assert "$2.5 / 1,000 searches" in words.stdout
