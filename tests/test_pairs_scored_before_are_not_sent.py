"""`run --reuse PREVIOUS_OUT`: a pair of an earlier run takes its score, and only what is new or
changed is sent. What else is in the output is what it would be without.
"""

import json
from array import array
from datetime import UTC, datetime
from math import nan
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers import (
    Server,
    fast,
    inside,
    one_row,
    output,
    part_bytes,
    reused,
    rows_of,
    score,
    scores_of,
    table,
    written,
)

from batchrank import rerank
from batchrank.config.limits import RequestLimits
from batchrank.planning.planner import Planner
from batchrank.records import Row

COLUMNS = ["results", "status", "error", "truncated"]
Texts = list[str | None]


def nights(server: Server, folder: Path, first: pa.Table, second: pa.Table, **also: Any) -> Any:
    """Both nights scored; what the second sent and its receipt."""
    score(server, written(folder / "1.parquet", first), folder / "night1", **also)
    before = server.ledger()
    receipt = score(
        server,
        written(folder / "2.parquet", second),
        folder / "night2",
        reuse=folder / "night1",
        **also,
    )
    score(server, folder / "2.parquet", folder / "fresh", **also)
    assert output(folder / "night2").select(COLUMNS) == output(folder / "fresh").select(COLUMNS)
    return receipt, server.ledger()["received"] - before["received"] - fresh_requests(folder)


def fresh_requests(folder: Path) -> int:
    return int(json.loads((folder / "fresh" / "_run.json").read_bytes())["requests"])


def test_an_unchanged_input_sends_nothing(server: Server, tmp_path: Path) -> None:
    rows = table(30, tag="unchanged")
    receipt, sent = nights(server, tmp_path, rows, rows, output={"rows_per_part": 8})
    assert (sent, receipt.requests, receipt.tokens_billed) == (0, 0, 0)
    assert (receipt.pairs_reused, receipt.rows_reused, receipt.rows_scored) == (90, 30, 30)
    assert output(tmp_path / "night2")["requests"].to_pylist() == [0] * 30
    today = datetime.now(UTC).date()
    assert reused(tmp_path / "night2") == [[today] * 3] * 30
    assert inside("verify", tmp_path / "night2").returncode == 0


def test_rows_in_another_order_and_other_parts_are_found(server: Server, tmp_path: Path) -> None:
    rows = table(40, tag="order")
    turned = rows.take(list(range(39, -1, -1)))
    score(
        server, written(tmp_path / "1.parquet", rows), tmp_path / "1", output={"rows_per_part": 7}
    )
    written(tmp_path / "2.parquet", turned)
    receipt = score(server, tmp_path / "2.parquet", tmp_path / "2", reuse=tmp_path / "1")
    assert (receipt.requests, receipt.rows_reused) == (0, 40)
    assert scores_of(tmp_path / "2") == scores_of(tmp_path / "1")[::-1]


def test_only_the_changed_text_of_a_row_is_sent(server: Server, tmp_path: Path) -> None:
    before, after = ["wings", "bees", "steel"], ["wings", "bread", "steel", "bees"]
    receipt, sent = nights(server, tmp_path, one_row("lift", before), one_row("lift", after))
    (days,) = reused(tmp_path / "night2")
    assert [day is not None for day in days] == [True, False, True, True]
    assert (sent, receipt.pairs_reused, receipt.rows_reused) == (1, 3, 0)
    assert output(tmp_path / "night2")["requests"].to_pylist() == [1]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("lift", ["wings"]), ("lifts", ["wings"])),
        (("lift", ["wings"]), ("lift", ["wings "])),
        (("lift", ["wings"]), ("wings", ["lift"])),
        (("a", ["bc"]), ("ab", ["c"])),
        (("lift", ["café"]), ("lift", ["cafe\u0301"])),
    ],
    ids=["query", "text", "turned", "border", "normal form"],
)
def test_a_changed_query_or_text_is_another_pair(
    server: Server, tmp_path: Path, first: tuple[str, Texts], second: tuple[str, Texts]
) -> None:
    receipt, sent = nights(server, tmp_path, rows_of(first), rows_of(second))
    assert (receipt.pairs_reused, sent) == (0, 1)
    assert reused(tmp_path / "night2") == [[None]]


def test_a_text_known_under_another_query_is_not_known(server: Server, tmp_path: Path) -> None:
    first = rows_of(("lift", ["wings"]), ("bread", ["yeast"]))
    second = rows_of(("lift", ["yeast"]), ("bread", ["wings"]))
    receipt, _ = nights(server, tmp_path, first, second)
    assert receipt.pairs_reused == 0


@pytest.mark.parametrize(
    "texts",
    [["wings", "", "wings", None], ["wings", "new", " ", "new"], ["", None], ["wings"] * 3],
    ids=["blank", "blank and new", "only blank", "repeated"],
)
def test_blank_and_repeated_texts_are_what_they_always_are(
    server: Server, tmp_path: Path, texts: Texts
) -> None:
    receipt, sent = nights(server, tmp_path, one_row("lift", ["wings", ""]), one_row("lift", texts))
    assert sent == ("new" in texts)
    assert receipt.pairs_reused == texts.count("wings")


def test_a_row_without_a_query_or_candidates_is_skipped(server: Server, tmp_path: Path) -> None:
    rows = rows_of((None, ["wings"]), (" ", ["wings"]), ("lift", []))
    receipt, _ = nights(server, tmp_path, rows, rows)
    assert (receipt.rows_skipped, receipt.rows_reused, receipt.pairs_reused) == (3, 0, 0)


def test_texts_that_are_cut_are_counted_though_not_sent(server: Server, tmp_path: Path) -> None:
    rows = one_row("lift", ["wings " * 50, "bees", "steel " * 60])
    limits = {"max_tokens_per_document": 40}
    receipt, sent = nights(server, tmp_path, rows, rows, limits=limits)
    assert (sent, receipt.documents_truncated) == (0, 2)


def test_a_candidate_that_top_n_left_out_is_known_all_the_same(
    server: Server, tmp_path: Path
) -> None:
    rows = table(10, documents=6, tag="cut")
    receipt, sent = nights(server, tmp_path, rows, rows, output={"top_n": 2})
    assert (sent, receipt.pairs_reused) == (0, 60)
    assert [len(days) for days in output(tmp_path / "night2")["reused_from"].to_pylist()] == [
        2
    ] * 10


def test_all_rows_of_a_query_count(server: Server, tmp_path: Path) -> None:
    first = rows_of(("lift", ["wings", "bees"]), ("bread", ["yeast"]), ("lift", ["steel"]))
    second = rows_of(("lift", ["steel", "wings", "new", "bees"]))
    receipt, sent = nights(server, tmp_path, first, second)
    assert (receipt.pairs_reused, sent) == (3, 1)


def test_a_split_row_sends_only_what_is_new(server: Server, tmp_path: Path) -> None:
    limits = {"max_documents": 2}
    texts: Texts = [f"text {place}" for place in range(7)]
    changed: Texts = [*texts[:5], "new 1", "new 2", "new 3"]
    receipt, sent = nights(
        server, tmp_path, one_row("lift", texts), one_row("lift", changed), limits=limits
    )
    assert (sent, receipt.pairs_reused) == (2, 5)


def test_without_reuse_the_columns_are_those_of_the_contract(
    server: Server, tmp_path: Path
) -> None:
    score(server, written(tmp_path / "in.parquet", table(3, tag="plain")), tmp_path / "kept")
    score(server, tmp_path / "in.parquet", tmp_path / "not", output={"reusable": False})
    assert output(tmp_path / "kept").schema.names == [
        "query_id",
        *COLUMNS[:3],
        "requests",
        "truncated",
    ]
    assert part_bytes(tmp_path / "kept") == part_bytes(tmp_path / "not")
    assert not (tmp_path / "not" / "_pairs").exists()
    assert list((tmp_path / "kept").glob("*.parquet")) == [tmp_path / "kept" / "part-00000.parquet"]


def test_with_reuse_one_more_column_comes_last(server: Server, tmp_path: Path) -> None:
    rows = table(3, tag="column")
    nights(server, tmp_path, rows, rows)
    schema = output(tmp_path / "night2").schema
    assert schema.names[-1] == "reused_from"
    assert schema.field("reused_from").type == pa.list_(pa.date32())


def test_plan_tells_the_bill_beforehand(server: Server, tmp_path: Path) -> None:
    later = table(22, documents=4, tag="bill")
    score(server, written(tmp_path / "1.parquet", later.slice(0, 20)), tmp_path / "1")
    written(tmp_path / "2.parquet", later)
    reusing = [tmp_path / "2.parquet", "--reuse", tmp_path / "1", "--base-url", server.base_url]
    planned = inside("plan", *reusing, "--summary", "json")
    bill = json.loads(planned.stdout)
    before = server.received
    receipt = score(
        server,
        tmp_path / "2.parquet",
        tmp_path / "2",
        reuse=tmp_path / "1",
        rate={"tokens_per_minute": 1e9},
    )
    assert server.received - before == receipt.requests == bill["requests"]
    assert (bill["pairs_reused"], bill["rows_reused"]) == (
        receipt.pairs_reused,
        receipt.rows_reused,
    )
    assert receipt.pairs_reused > 0
    assert receipt.tokens_estimated == bill["tokens"]
    assert (bill["documents_not_sent"], bill["rows_skipped"]) == (0, 0)
    words = inside("plan", *reusing).stdout
    assert f"reused     {receipt.pairs_reused} pairs" in words


def test_the_command_and_the_function_take_it_too(server: Server, tmp_path: Path) -> None:
    written(tmp_path / "in.parquet", table(5, tag="ways"))
    first = inside(*fast(server, tmp_path / "1", tmp_path / "in.parquet"))
    before = server.received
    reuse = ["--reuse", tmp_path / "1", "--summary", "json"]
    second = inside(*fast(server, tmp_path / "2", tmp_path / "in.parquet"), *reuse)
    assert (first.returncode, second.returncode) == (0, 0)
    assert json.loads(second.stdout)["pairs_reused"] == 15
    frame = rerank(
        str(tmp_path / "in.parquet"),
        reuse=tmp_path / "2",
        base_url=server.base_url,
        progress=False,
    )
    assert frame.columns[-1] == "reused_from"
    assert server.received == before
    exported = inside("export", tmp_path / "2", "--format", "jsonl")
    today = datetime.now(UTC).date().isoformat()
    assert json.loads(exported.stdout.splitlines()[0])["reused_from"] == [today] * 3


def test_a_known_candidate_is_planned_as_if_it_were_not_there() -> None:
    planner = Planner(RequestLimits())
    row = planner.plan(Row(0, "q", ["a", "b", "", "c"], array("d", [nan, 0.5, nan, nan])))
    (plan,) = row.plans
    assert (list(plan.documents), plan.slots[0].positions) == (["a", "c"], [0, 3])
    assert row.note == "document 2 is empty or blank"
    alone = planner.plan(Row(0, "q", ["a", "c"]))
    assert (plan.tokens, plan.digest) == (alone.plans[0].tokens, alone.plans[0].digest)
