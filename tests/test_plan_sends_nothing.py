"""`plan` foresees rows, requests, tokens, cost and time; it sends nothing and writes nothing."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import (
    CANDIDATES,
    DATA,
    PROGRAM,
    Server,
    clean,
    fast,
    inside,
    namespaced,
    one_row,
    program,
    table,
    written,
)

SETS = ["cmrc2018", "cranfield", "dl19", "qmsum", "scifact"]
PRICE = 0.1 / 1e6


def planned(*arguments: object) -> dict[str, Any]:
    """The figures of `plan --summary json`, which is one line."""
    done = inside("plan", *arguments, "--summary", "json")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def test_plan_sends_nothing_and_writes_nothing(server: Server, tmp_path: Path) -> None:
    source = written(tmp_path / "in" / "in.parquet", table(300, tag="plan"))
    before, stamp = server.received, source.stat().st_mtime_ns
    done = subprocess.run(
        [*PROGRAM, "plan", source, "--base-url", server.base_url],
        capture_output=True,
        text=True,
        env={**clean(), "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert server.received == before
    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert everything == [source]
    assert source.stat().st_mtime_ns == stamp


def test_plan_needs_no_network_and_no_key(tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(10, tag="offline"))
    code, stderr = namespaced("true", ["plan", source, "--provider", "dashscope"], network=False)
    assert (code, stderr) == (0, "")


def test_requests_rows_and_documents_are_those_of_the_run(server: Server, tmp_path: Path) -> None:
    lists = [
        [{"doc_id": None, "text": f"text {place}"} for place in range(1200)],
        [],
        [{"doc_id": "a", "text": ""}, {"doc_id": "b", "text": "b"}],
        [{"doc_id": "a", "text": "twice"}, {"doc_id": "b", "text": "twice"}],
        [{"doc_id": "a", "text": "long words " * 4000}, {"doc_id": "b", "text": "b"}],
        [{"doc_id": "a", "text": " "}],
    ]
    rows = pa.table(
        {
            "query_id": range(6),
            "query": [f"query {row}" for row in range(6)],
            "candidates": pa.array(lists, CANDIDATES),
        }
    )
    source = written(tmp_path / "in.parquet", rows)
    figures, before = planned(source), server.ledger()
    done = program(*fast(server, tmp_path / "out", source), "--summary", "json")
    after, receipt = server.ledger(), json.loads(done.stdout)
    assert figures["rows"] == 6
    assert figures["rows_skipped"] == receipt["rows_skipped"] == 2
    assert figures["rows_split"] == 1
    assert figures["documents"] == 1207
    assert figures["documents_not_sent"] == 2
    assert figures["documents_truncated"] == receipt["documents_truncated"] == 1
    assert figures["requests"] == figures["requests_lower_bound"] == 6
    assert after["requests"] - before["requests"] == 6
    billed = after["tokens"] - before["tokens"]
    assert figures["tokens"] + figures["tokens_server_constant"] == billed
    assert figures["cost_usd"] == pytest.approx(billed * PRICE, abs=1e-6)


@pytest.mark.parametrize("name", SETS)
def test_tokens_agree_with_the_bill_on_real_texts(
    server: Server, tmp_path: Path, name: str
) -> None:
    path = DATA / name / "rows.parquet"
    if not path.exists():
        pytest.skip(f"no {path}")
    rows = pq.read_table(path).slice(0, 2 if name == "qmsum" else 10)
    source = written(tmp_path / "in.parquet", rows)
    figures, before = planned(source), server.ledger()
    assert program(*fast(server, tmp_path / "out", source)).returncode == 0
    after = server.ledger()
    billed = after["tokens"] - before["tokens"]
    assert figures["requests"] == after["requests"] - before["requests"]
    assert figures["tokens"] + figures["tokens_server_constant"] == pytest.approx(billed, rel=0.01)


def test_a_sample_says_its_error_and_the_truth_lies_within(tmp_path: Path) -> None:
    """Rows differ a lot in size and grow along the file; three errors cover nearly any sample."""
    lists = [
        [
            {"doc_id": None, "text": f"{row} {place} " + "word " * ((row * 7 + place) % 90)}
            for place in range(1 + row % 13)
        ]
        for row in range(2000)
    ]
    rows = pa.table(
        {
            "query": [f"query number {row}" for row in range(2000)],
            "candidates": pa.array(lists, CANDIDATES),
        }
    )
    source = written(tmp_path / "in.parquet", rows, row_group_size=250)
    truth = planned(source)
    for sample in (64, 256, 1000):
        figures = planned(source, "--sample", sample)
        assert figures["rows"] == 2000
        assert figures["sampled_rows"] == pytest.approx(sample, rel=0.2)
        for name in ("requests", "tokens"):
            allowed = 1.5 * figures["sample_error"][name] * figures[name] + 1
            assert abs(figures[name] - truth[name]) <= allowed, (sample, name)
    assert truth["sample_error"] is None and truth["sampled_rows"] is None


@pytest.mark.parametrize(
    "name",
    [
        "scifact",
        pytest.param(
            "cranfield",
        ),
    ],
)
def test_a_sample_of_real_texts_covers_the_truth(name: str) -> None:
    path = DATA / name / "rows.parquet"
    if not path.exists():
        pytest.skip(f"no {path}")
    truth, figures = planned(path), planned(path, "--sample", 96)
    allowed = 1.5 * figures["sample_error"]["tokens"] * figures["tokens"]
    assert abs(figures["tokens"] - truth["tokens"]) <= allowed


def test_a_sample_as_large_as_the_input_is_the_truth(tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(40, tag="whole"))
    assert planned(source, "--sample", 40) == planned(source)


def test_a_sample_of_one_row_still_gives_figures(tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(40, tag="one"))
    assert planned(source, "--sample", 1)["rows"] == 40
    assert planned(written(tmp_path / "1.parquet", table(1)), "--sample", 1)["rows"] == 1


def test_an_input_without_rows_costs_nothing(tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(1).slice(0, 0))
    figures = planned(source, "--allow-empty")
    assert (figures["rows"], figures["requests"], figures["cost_usd"]) == (0, 0, 0)


def test_time_and_the_binding_limit_follow_the_rates(tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(100, tag="rates"))
    assert planned(source)["limited_by"] == "requests per minute"
    slow = planned(source, "--requests-per-minute", 10)
    assert slow["limited_by"] == "requests per minute"
    assert slow["seconds"] == pytest.approx(100 / 10 * 60, rel=0.1)
    tokens = planned(source, "--tokens-per-minute", 500)
    assert tokens["limited_by"] == "tokens per minute"
    assert tokens["seconds"] >= tokens["tokens"] / 500 * 60
    none = planned(source, "--requests-per-minute", 0)
    assert none["seconds"] is None


def test_plan_prints_every_setting_and_never_a_header_value(tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(2))
    config = tmp_path / "c.toml"
    config.write_text('[endpoint]\nheaders = { X-Token = "hush-hush" }\n')
    done = inside("plan", source, "-c", config, "--top-n", 3)
    assert done.returncode == 0
    for line in (
        "  endpoint.model = 'qwen3-rerank'",
        "  endpoint.headers = {'X-Token': 'set'}",
        "  limits.max_tokens_per_request = 120000",
        "  rate.requests_per_minute = 5400.0",
        "  output.top_n = 3",
        "  output.rows_per_part = 10000",
    ):
        assert line in done.stdout.splitlines()
    assert "hush" not in done.stdout
    assert "hush" not in inside("plan", source, "-c", config, "--summary", "json").stdout


def test_plan_says_in_words_what_the_json_says(tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", one_row("q", ["text", ""]))
    lines = inside("plan", source).stdout.splitlines()
    assert lines[0] == "rows       1, 0 to be split, 0 to be skipped"
    assert lines[1] == "documents  2, 0 to be cut, 1 not sent"
    assert lines[2] == "requests   1; no fewer than 1"
    assert lines[3].startswith("tokens     2, and about 52 that the server adds")
    assert lines[4] == "cost       $0.0000 at the hosted price; local, so free"


def test_limit_plans_the_first_rows_alone(tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(100, tag="first"))
    assert planned(source, "--limit", 10)["requests"] == 10
