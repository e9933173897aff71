"""What stands in the output: columns, order, ranks, nulls, statuses, words, counts and names."""

from collections.abc import Callable
from math import isnan
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import (
    CANDIDATES,
    RESULTS,
    Server,
    expected,
    expected_of,
    fast,
    one_row,
    output,
    part_bytes,
    program,
    score,
    table,
    written,
)

from batchrank.output.receipt import Receipt
from batchrank.planning.tokens import count
from batchrank.server.scorers.hash import HashScorer
from batchrank.server.settings import DEFAULT_INSTRUCT
from batchrank.server.token_counts import head

Serve = Callable[..., Server]


def row_scored(
    server: Server, tmp_path: Path, rows: pa.Table, **sections: dict[str, Any]
) -> dict[str, Any]:
    """The one output row of a one-row input."""
    score(server, written(tmp_path / "in.parquet", rows), tmp_path / "out", **sections)
    found: list[dict[str, Any]] = output(tmp_path / "out").to_pylist()
    assert len(found) == 1
    return found[0]


def test_the_columns_and_their_types_are_those_of_the_contract(
    server: Server, tmp_path: Path
) -> None:
    rows = table(3, tag="columns").append_column("lang", pa.array(["en", "de", None]))
    keep = {"keep_columns": ["lang"]}
    score(server, written(tmp_path / "in.parquet", rows), tmp_path / "out", input=keep)
    assert pq.read_schema(tmp_path / "out" / "part-00000.parquet").remove_metadata() == pa.schema(
        [
            ("query_id", pa.int64()),
            ("lang", pa.string()),
            ("results", RESULTS),
            ("status", pa.string()),
            ("error", pa.string()),
            ("requests", pa.int32()),
            ("truncated", pa.int32()),
        ]
    )


def test_every_row_comes_out_in_input_order_with_its_own_scores(
    server: Server, tmp_path: Path
) -> None:
    rows = table(200, 9, tag="order")
    score(server, written(tmp_path / "in.parquet", rows), tmp_path / "out")
    found = output(tmp_path / "out")
    assert found.column("query_id").to_pylist() == list(range(200))
    assert found.column("results").to_pylist() == [expected_of(row) for row in rows.to_pylist()]
    assert set(found.column("status").to_pylist()) == {"scored"}
    assert found.column("error").null_count == 200
    assert set(found.column("requests").to_pylist()) == {1}
    assert set(found.column("truncated").to_pylist()) == {0}


def test_equal_scores_stand_in_the_order_of_their_index(server: Server, tmp_path: Path) -> None:
    texts = ["same", "other", "same", "third", "same"]
    row = row_scored(server, tmp_path, one_row("ties", texts))
    assert row["results"] == expected("ties", texts, [f"d{place}" for place in range(5)])
    indexes = [result["index"] for result in row["results"] if texts[result["index"]] == "same"]
    assert indexes == [0, 2, 4]
    assert [result["rank"] for result in row["results"]] == [1, 2, 3, 4, 5]


def test_a_text_that_comes_twice_is_sent_once_and_scored_twice(
    server: Server, tmp_path: Path
) -> None:
    before = server.ledger()["tokens"]
    row_scored(server, tmp_path, one_row("twice once", ["word"] * 20 + ["term"]))
    # what the server adds, two documents of one token, and the query with each of them
    assert server.ledger()["tokens"] - before == 52 + 2 + 2 * count("twice once")


def test_top_n_keeps_the_best_of_each_row(server: Server, tmp_path: Path) -> None:
    rows = table(20, 8, tag="top")
    source = written(tmp_path / "in.parquet", rows)
    score(server, source, tmp_path / "out", output={"top_n": 3})
    found = output(tmp_path / "out").column("results").to_pylist()
    assert found == [expected_of(row)[:3] for row in rows.to_pylist()]


@pytest.mark.parametrize("top_n", [1, 2, 3, 9])
def test_top_n_counts_candidates_without_a_score_last(
    server: Server, tmp_path: Path, top_n: int
) -> None:
    texts = ["", "b", None, "d"]
    row = row_scored(server, tmp_path, one_row("few", texts), output={"top_n": top_n})
    assert row["results"] == expected("few", texts, ["d0", "d1", "d2", "d3"], top_n)
    assert row["status"] == "partial"


@pytest.mark.parametrize(
    ("query", "texts", "error"),
    [
        (None, ["a", "b"], "the query is null or blank"),
        ("", ["a"], "the query is null or blank"),
        (" \n\u3000", ["a"], "the query is null or blank"),
        ("q", None, "the row has no candidates"),
        ("q", [], "the row has no candidates"),
        ("q", ["", " ", None], "every candidate is empty or blank"),
        (None, None, "the query is null or blank"),
    ],
)
def test_a_row_with_nothing_to_score_is_skipped_and_nothing_is_sent(
    server: Server,
    tmp_path: Path,
    query: str | None,
    texts: list[str | None] | None,
    error: str,
) -> None:
    before = server.received
    row = row_scored(server, tmp_path, one_row(query, texts))
    unscored = [
        {"doc_id": f"d{index}", "index": index, "rank": None, "relevance_score": None}
        for index in range(len(texts or []))
    ]
    assert row == {
        "query_id": "q0",
        "results": unscored,
        "status": "skipped",
        "error": error,
        "requests": 0,
        "truncated": 0,
    }
    assert server.received == before


@pytest.mark.parametrize(
    ("texts", "error"),
    [
        (["a", ""], "document 1 is empty or blank"),
        ([None, "a", " \t"], "documents 0, 2 are empty or blank"),
        ([""] * 7 + ["a"], "documents 0, 1, 2, 3, 4 and 2 more are empty or blank"),
    ],
)
def test_a_blank_document_makes_a_row_partial_and_is_named(
    server: Server, tmp_path: Path, texts: list[str | None], error: str
) -> None:
    row = row_scored(server, tmp_path, one_row("blanks", texts))
    assert (row["status"], row["error"], row["requests"]) == ("partial", error, 1)
    assert row["results"] == expected("blanks", texts, [f"d{at}" for at in range(len(texts))])


POISON = '[[fault]]\nkind = "content_refusal"\nwhere = { marker = "poison" }\n'


def poisoned(serve: Serve, tmp_path: Path, rows: pa.Table, faults: str) -> tuple[Receipt, pa.Table]:
    """A run against a server that refuses what is poisonous."""
    server = serve(faults)
    receipt = score(server, written(tmp_path / "in.parquet", rows), tmp_path / "out")
    assert server.ledger()["faults"]["content_refusal"] > 0
    return receipt, output(tmp_path / "out")


def test_a_refused_document_is_named_and_its_row_mates_keep_their_scores(
    serve: Serve, tmp_path: Path
) -> None:
    texts = ["a", "b", "poison", "d", "e", "f", "g"]
    faults = POISON + "names_document = true\n"
    receipt, found = poisoned(serve, tmp_path, one_row("careful", texts), faults)
    row = found.to_pylist()[0]
    unscored = [text if text != "poison" else None for text in texts]
    assert row["results"] == expected("careful", unscored, [f"d{at}" for at in range(7)])
    assert (row["status"], row["requests"]) == ("partial", 1)
    assert row["error"] == (
        "document 2: the endpoint answered 400 DataInspectionFailed, document index:2"
    )
    assert (receipt.rows_partial, receipt.exit_code) == (1, 0)


def test_a_refused_document_that_is_not_named_is_found_by_halving(
    serve: Serve, tmp_path: Path
) -> None:
    texts = [f"text {at}" for at in range(16)]
    texts[11] = "poison"
    receipt, found = poisoned(serve, tmp_path, one_row("search", texts), POISON)
    row = found.to_pylist()[0]
    unscored = [text if text != "poison" else None for text in texts]
    assert row["results"] == expected("search", unscored, [f"d{at}" for at in range(16)])
    assert row["error"] == "document 11: the endpoint answered 400 DataInspectionFailed"
    assert (row["status"], row["requests"]) == ("partial", 4)
    assert receipt.requests <= 1 + 2 * 4 + 1  # the whole, then 2·log2(n) + 1


def test_a_refused_query_fails_its_row_alone(serve: Serve, tmp_path: Path) -> None:
    rows = table(30, 2, tag="neighbours")
    queries = rows.column("query").to_pylist()
    queries[17] = "poison"
    rows = rows.set_column(1, "query", pa.array(queries))
    receipt, found = poisoned(serve, tmp_path, rows, POISON)
    row = found.to_pylist()[17]
    assert (row["status"], row["requests"]) == ("failed", 0)
    assert "the endpoint answered 400 DataInspectionFailed" in row["error"]
    assert [result["index"] for result in row["results"]] == [0, 1]
    assert {result["rank"] for result in row["results"]} == {None}
    assert {result["relevance_score"] for result in row["results"]} == {None}
    others = [other for other in found.to_pylist() if other["query_id"] != 17]
    assert {other["status"] for other in others} == {"scored"}
    assert (receipt.rows_failed, receipt.rows_scored, receipt.exit_code) == (1, 29, 3)


def test_a_list_longer_than_a_request_is_split_into_balanced_requests(
    server: Server, tmp_path: Path
) -> None:
    texts = [f"document number {place}" for place in range(1200)]
    before = server.received
    row = row_scored(server, tmp_path, one_row("a long list", texts))
    assert server.received - before == 3
    assert row["results"] == expected("a long list", texts, [f"d{at}" for at in range(1200)])
    assert (row["status"], row["requests"], row["error"]) == ("scored", 3, None)


def test_a_row_is_split_by_tokens_too(server: Server, tmp_path: Path) -> None:
    texts = [f"{place} " + "word " * 500 for place in range(10)]
    limits = {"max_tokens_per_request": 2100}
    row = row_scored(server, tmp_path, one_row("heavy", texts), limits=limits)
    assert (row["status"], row["requests"]) == ("scored", 3)
    assert row["results"] == expected("heavy", texts, [f"d{at}" for at in range(10)])


def test_a_document_too_large_for_any_request_is_named(server: Server, tmp_path: Path) -> None:
    texts = ["small", "word " * 3000, "tiny"]
    limits = {"max_tokens_per_request": 1000}
    row = row_scored(server, tmp_path, one_row("sizes", texts), limits=limits)
    assert (row["status"], row["requests"]) == ("partial", 1)
    assert row["error"] == "document 1 is too large for a request with this query"
    assert [result["index"] for result in row["results"] if result["rank"] is None] == [1]


def test_texts_over_the_limit_are_counted_and_scored_as_the_server_cuts_them(
    server: Server, tmp_path: Path
) -> None:
    long = "many words here " * 2000
    row = row_scored(server, tmp_path, one_row("which", [long, "short", long, "x " + long]))
    assert (row["status"], row["truncated"]) == ("scored", 3)
    scores = {result["index"]: result["relevance_score"] for result in row["results"]}
    cut = HashScorer().scores("which", [head(long, 4000)], DEFAULT_INSTRUCT)[0]
    assert scores[0] == scores[2] == cut


def test_a_query_over_the_limit_counts_as_truncated(server: Server, tmp_path: Path) -> None:
    row = row_scored(server, tmp_path, one_row("long query " * 3000, ["a", "b"]))
    assert (row["status"], row["truncated"]) == ("scored", 1)


def test_an_input_without_rows_gives_one_empty_part(server: Server, tmp_path: Path) -> None:
    rows = table(1).append_column("lang", pa.array(["en"])).slice(0, 0)
    source = written(tmp_path / "in.parquet", rows)
    before = server.received
    done = program(*fast(server, tmp_path / "out", source), "--keep", "lang", "--allow-empty")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = pq.read_table(tmp_path / "out" / "part-00000.parquet")
    assert found.num_rows == 0
    assert found.schema.names[:3] == ["query_id", "lang", "results"]
    assert found.schema.field("results").type == RESULTS
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert server.received == before
    assert program("verify", tmp_path / "out").returncode == 0


def test_rows_without_candidates_stand_in_their_place_among_others(
    server: Server, tmp_path: Path
) -> None:
    rows = table(9, tag="gaps")
    lists = rows.column("candidates").to_pylist()
    for place in (0, 4, 8):
        lists[place] = []
    rows = rows.set_column(2, "candidates", pa.array(lists, CANDIDATES))
    source = written(tmp_path / "in.parquet", rows)
    receipt = score(server, source, tmp_path / "out", output={"rows_per_part": 3})
    found = output(tmp_path / "out").to_pylist()
    assert [row["status"] == "skipped" for row in found] == [at in (0, 4, 8) for at in range(9)]
    assert (receipt.rows_skipped, receipt.rows_scored, receipt.rows_open) == (3, 6, 0)


def test_part_k_holds_the_rows_from_k_times_rows_per_part(server: Server, tmp_path: Path) -> None:
    files = [written(tmp_path / f"{at}.parquet", table(25, tag=f"parts{at}")) for at in range(2)]
    score(server, files, tmp_path / "out", output={"rows_per_part": 20})
    assert list(part_bytes(tmp_path / "out")) == [f"part-0000{part}.parquet" for part in range(3)]
    sizes = [pq.read_metadata(path).num_rows for path in sorted(tmp_path.glob("out/part-*"))]
    assert sizes == [20, 20, 10]
    ids = pq.read_table(tmp_path / "out" / "part-00001.parquet").column("query_id").to_pylist()
    assert ids == [20, 21, 22, 23, 24, *range(15)]


def test_limit_takes_the_first_rows(server: Server, tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(50, tag="limit"))
    receipt = score(server, source, tmp_path / "out", limit_rows=12)
    assert output(tmp_path / "out").column("query_id").to_pylist() == list(range(12))
    assert receipt.rows == 12


def test_the_folder_holds_parts_receipt_and_success_and_nothing_half_done(
    server: Server, tmp_path: Path
) -> None:
    score(server, written(tmp_path / "in.parquet", table(5, tag="folder")), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    of_the_run = {"_SUCCESS", "_run.json", "_batchrank", "_batchrank.json", "_pairs"}
    assert names == {*of_the_run, "part-00000.parquet"}
    assert (tmp_path / "out" / "_batchrank").stat().st_mode & 0o777 == 0o700
    assert not list((tmp_path / "out" / "_batchrank").glob("*.part"))


@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip", "brotli", "lz4", "none"])
def test_parts_are_compressed_as_configured(
    server: Server, tmp_path: Path, compression: str
) -> None:
    source = written(tmp_path / "in.parquet", table(50, tag="compression"))
    score(server, source, tmp_path / "out", output={"compression": compression})
    column = pq.read_metadata(tmp_path / "out" / "part-00000.parquet").row_group(0).column(0)
    shown = "UNCOMPRESSED" if compression == "none" else compression.upper()
    assert column.compression == shown
    assert output(tmp_path / "out").num_rows == 50


def test_no_score_is_ever_a_nan_or_a_guess(serve: Serve, tmp_path: Path) -> None:
    """Answers that are wrong in part are asked for again, and come out right."""
    kinds = ["partial", "duplicate_index", "index_out_of_range", "nan_score", "shuffled"]
    faults = "".join(
        f'[[fault]]\nkind = "{kind}"\nwhere = {{ first = 1, probability = 0.3 }}\n'
        for kind in kinds
    )
    server = serve(faults)
    rows = table(60, 5, tag="wrong answers")
    receipt = score(server, written(tmp_path / "in.parquet", rows), tmp_path / "out")
    assert set(server.ledger()["faults"]) == set(kinds)
    found = output(tmp_path / "out")
    assert found.column("results").to_pylist() == [expected_of(row) for row in rows.to_pylist()]
    flat = found.column("results").combine_chunks().flatten().field("relevance_score")
    assert not any(isnan(score) for score in flat.to_pylist())
    harmless = server.ledger()["faults"]["shuffled"]
    assert receipt.retries == sum(server.ledger()["faults"].values()) - harmless
