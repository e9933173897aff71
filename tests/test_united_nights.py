"""Rows that share requests, an earlier run's scores and several workers, all at once: what is known
is not sent, what is new is sent once for all rows of a query, and each worker asks for its own.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Server, fast, inside, output, rows_of, score, scores_of, written
from test_united_rows import POISON, nested, rows, shared

SHARDS = 3
QUERIES, RETRIEVERS, CANDIDATES = 20, 4, 6
NEW, POISONED = (*range(10), 13), (0, 7, 13)
UNITED: dict[str, Any] = {"endpoint": {"unite_rows": True}}


def first_night() -> list[dict[str, Any]]:
    """The rows of each query one after the other, two queries a part."""
    return sorted(rows("nights", QUERIES), key=lambda row: int(row["query_id"].split("-")[0]))


def second_night() -> list[dict[str, Any]]:
    """Some queries have a new text in all their rows, a few of them a poisonous one besides."""
    content = first_night()
    for row in content:
        query = int(row["query_id"].split("-")[0])
        if query in NEW:
            row["candidates"].append({"doc_id": "new", "text": f"new of {query}"})
        if query in POISONED:
            row["candidates"].append({"doc_id": "bad", "text": f"poison of {query}"})
    return content


def test_shards_send_what_is_new_once_for_all_rows_and_ask_again_for_nothing_else(
    serve: Callable[..., Server], server: Server, tmp_path: Path
) -> None:
    """A request for each new text, so that a row has scores of three kinds when it is asked again:
    of the night before, of this one, and none.
    """
    known = written(tmp_path / "1.parquet", nested(first_night()))
    source = written(tmp_path / "2.parquet", nested(second_night()))
    small = tmp_path / "small.toml"
    small.write_text(f"[output]\nrows_per_part = {2 * RETRIEVERS}\n[limits]\nmax_documents = 1\n")
    night, out = tmp_path / "night1", tmp_path / "night2"
    assert inside(*fast(server, night, known), "--unite-rows").returncode == 0
    asked = ["-c", small, "--unite-rows", "--reuse", night]

    url = ["--base-url", server.base_url]
    bill = json.loads(inside("plan", source, *asked, *url, "--summary", "json").stdout)
    new = len(NEW) + len(POISONED)
    assert bill["requests"] == new
    assert bill["pairs_reused"] == QUERIES * RETRIEVERS * CANDIDATES
    assert bill["rows_reused"] == (QUERIES - len(NEW)) * RETRIEVERS

    def work(own: Server, *options: object) -> list[int]:
        return [
            inside(*fast(own, out, source), *asked, "--shard", f"{n}/{SHARDS}", *options).returncode
            for n in range(SHARDS)
        ]

    poisoned, well = serve(POISON), serve()
    assert work(poisoned)[-1] == 3
    assert (poisoned.received, poisoned.ledger()["unique"]) == (new, len(NEW))
    before = output(out).to_pylist()
    assert output(out).column_names[-2:] == ["request_ids", "reused_from"]
    assert [row["status"] for row in before].count("partial") == len(POISONED) * RETRIEVERS
    assert sorted(map(len, shared(out).values())) == [RETRIEVERS] * len(NEW)

    assert work(well, "--retry-failed")[-1] == 0
    assert (well.received, well.ledger()["unique"]) == (len(POISONED), len(POISONED))
    after = output(out).to_pylist()
    assert {row["status"] for row in after} == {"scored"}
    assert sorted(map(len, shared(out).values())) == [RETRIEVERS] * new
    for row in after:
        old = [one["doc_id"] not in ("new", "bad") for one in row["results"]]
        assert [day is not None for day in row["reused_from"]] == old
    assert inside("verify", out).returncode == 0
    assert inside(*fast(well, tmp_path / "fresh", source), "-c", small).returncode == 0
    assert scores_of(out) == scores_of(tmp_path / "fresh")

    third = inside(*fast(well, tmp_path / "night3", source), "--unite-rows", "--reuse", out)
    fresh = json.loads((tmp_path / "fresh" / "_run.json").read_bytes())["requests"]
    assert (third.returncode, well.received) == (0, len(POISONED) + fresh)
    assert scores_of(tmp_path / "night3") == scores_of(out)


@pytest.mark.parametrize("retried", [False, True])
def test_a_row_that_was_scored_among_texts_of_others_is_not_taken_whole(
    serve: Callable[..., Server], tmp_path: Path, retried: bool
) -> None:
    """The same holds of rows that are only written again, because others of their part failed."""
    content = [("lift", ["wings", "air"]), ("lift", ["air", "bees"]), ("bread", ["yeast"])]
    content += [("tea", ["poison"] if retried else ["leaves"])]
    source = written(tmp_path / "in.parquet", rows_of(*content))
    poisoned, well = serve(POISON), serve()
    score(poisoned, source, tmp_path / "night1", **UNITED)
    if retried:
        assert score(well, source, tmp_path / "night1", retry_failed=True, **UNITED).exit_code == 0
    earlier: dict[str, Any] = {"reuse": tmp_path / "night1", "reuse_rows_only": True}
    receipt = score(well, source, tmp_path / "night2", **earlier, **UNITED)
    assert (receipt.pairs_reused, receipt.rows_reused, receipt.requests) == (2, 2, 1)
