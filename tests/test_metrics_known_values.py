"""nDCG@10, MRR@10 and recall@k of outputs small enough to be judged by hand."""

from math import log2
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrank.analysis.evaluation import Evaluation, evaluate, words
from batchrank.errors import OutputUnusable

RESULTS = pa.list_(
    pa.struct(
        [
            ("doc_id", pa.string()),
            ("index", pa.int32()),
            ("rank", pa.int32()),
            ("relevance_score", pa.float64()),
        ]
    )
)
Rows = dict[str, list[tuple[str | None, int]]]
"""Each query's candidates, best first, as (doc_id, position in the input)."""


def write(out: Path, rows: Rows, identity: str = "query_id", part: int = 0) -> None:
    results = [
        [
            {"doc_id": doc, "index": index, "rank": rank, "relevance_score": 1 / rank}
            for rank, (doc, index) in enumerate(candidates, 1)
        ]
        for candidates in rows.values()
    ]
    columns: dict[str, Any] = {
        identity: pa.array(list(rows), pa.string()),
        "results": pa.array(results, RESULTS),
        "status": pa.array(["scored"] * len(rows)),
        "error": pa.nulls(len(rows), pa.string()),
        "requests": pa.array([1] * len(rows), pa.int32()),
        "truncated": pa.array([0] * len(rows), pa.int32()),
    }
    pq.write_table(pa.table(columns), out / f"part-{part:05}.parquet")


def judge(folder: Path, rows: Rows, qrels: dict[str, dict[str, int]]) -> Evaluation:
    write(folder, rows)
    return evaluate(folder, judgments(folder, qrels))


def judgments(folder: Path, qrels: dict[str, dict[str, int]]) -> Path:
    lines = [(query, doc, grade) for query, docs in qrels.items() for doc, grade in docs.items()]
    names = ["query_id", "doc_id", "relevance"]
    path = folder / "qrels.parquet"
    pq.write_table(
        pa.table(dict(zip(names, map(list, zip(*lines, strict=True)), strict=True))), path
    )
    return path


def test_three_documents_with_grades_worked_out_by_hand(tmp_path: Path) -> None:
    """Output b, c, a; input a, b, c; grades a 0, b 3, c 1, and d 2, which was no candidate."""
    found = judge(
        tmp_path, {"q": [("b", 1), ("c", 2), ("a", 0)]}, {"q": {"a": 0, "b": 3, "c": 1, "d": 2}}
    )
    ideal = 3 + 2 / log2(3) + 1 / log2(4)
    assert found.after["nDCG@10"] == pytest.approx((3 + 1 / log2(3)) / ideal, abs=1e-6)
    assert found.before["nDCG@10"] == pytest.approx((3 / log2(3) + 1 / log2(4)) / ideal, abs=1e-6)
    assert (found.after["MRR@10"], found.before["MRR@10"]) == (1, 0.5)
    assert found.after["recall@10"] == pytest.approx(2 / 3)
    assert found.before["recall@100"] == pytest.approx(2 / 3)
    counts = (found.queries, found.queries_not_judged, found.judged_queries_not_in_output)
    assert counts == (1, 0, 0)


@pytest.mark.parametrize(
    ("place", "ndcg", "mrr", "recall"),
    [
        (1, 1, 1, 1),
        (2, 1 / log2(3), 0.5, 1),
        (4, 1 / log2(5), 0.25, 1),
        (10, 1 / log2(11), 0.1, 1),
        (11, 0, 0, 0),
    ],
)
def test_the_only_relevant_document_at_a_place(
    tmp_path: Path, place: int, ndcg: float, mrr: float, recall: float
) -> None:
    candidates: list[tuple[str | None, int]] = [(f"d{number}", number) for number in range(12)]
    candidates.insert(place - 1, candidates.pop(11))
    found = judge(tmp_path, {"q": candidates}, {"q": {"d11": 1}})
    assert found.after["nDCG@10"] == pytest.approx(ndcg, abs=1e-6)
    assert found.after["MRR@10"] == pytest.approx(mrr, abs=1e-6)
    assert found.after["recall@10"] == recall
    assert found.after["recall@100"] == 1
    assert found.before["nDCG@10"] == 0


def test_means_are_over_the_judged_queries_and_the_others_are_counted(tmp_path: Path) -> None:
    rows: Rows = {
        "best": [("a", 0), ("b", 1)],
        "second": [("b", 1), ("a", 0)],
        "none relevant": [("a", 0)],
        "unjudged": [("a", 0)],
    }
    qrels = {"best": {"a": 1}, "second": {"a": 1}, "none relevant": {"a": 0}, "absent": {"x": 2}}
    found = judge(tmp_path, rows, qrels)
    assert found.after["nDCG@10"] == pytest.approx((1 + 1 / log2(3)) / 2, abs=1e-6)
    assert found.after["MRR@10"] == pytest.approx(0.75)
    assert found.before["MRR@10"] == 1
    assert (found.queries, found.queries_not_judged) == (2, 2)
    assert found.judged_queries_not_in_output == 1


def test_ties_and_signs_of_scores_play_no_part(tmp_path: Path) -> None:
    """The order of the output counts, whatever the scores are."""
    write(tmp_path, {"q": [("b", 1), ("a", 0)]})
    path = tmp_path / "part-00000.parquet"
    table = pq.read_table(path)
    entries = table.column("results").to_pylist()
    for entry in entries[0]:
        entry["relevance_score"] = -3.2
    table = table.set_column(1, "results", pa.array(entries, RESULTS))
    pq.write_table(table, path)
    found = evaluate(tmp_path, judgments(tmp_path, {"q": {"b": 1}}))
    assert found.after["MRR@10"] == 1


def test_several_parts_and_a_kept_column_are_read(tmp_path: Path) -> None:
    write(tmp_path, {"1": [("a", 0)]})
    write(tmp_path, {"2": [("b", 1), ("a", 0)]}, part=1)
    found = evaluate(tmp_path, judgments(tmp_path, {"1": {"a": 1}, "2": {"a": 1}}))
    assert found.after["MRR@10"] == pytest.approx(0.75)


def test_ids_may_be_numbers_and_have_any_name(tmp_path: Path) -> None:
    write(tmp_path, {"7": [("1", 0), ("2", 1)]}, identity="question")
    path = tmp_path / "qrels.parquet"
    pq.write_table(pa.table({"query_id": [7], "doc_id": [2], "relevance": [1]}), path)
    assert evaluate(tmp_path, path).after["MRR@10"] == 0.5


def test_an_output_of_the_top_n_is_not_compared_with_an_input_that_is_not_in_it(
    tmp_path: Path,
) -> None:
    """The best two of a hundred: where the other relevant ones were, nobody can say."""
    found = judge(tmp_path, {"q": [("x", 57), ("y", 3)]}, {"q": {"x": 1}})
    assert found.after["MRR@10"] == 1
    assert (found.before, found.gains, found.top_n) == ({}, {}, 2)


def test_a_skipped_row_counts_as_a_query_of_the_output(tmp_path: Path) -> None:
    found = judge(tmp_path, {"q": [("a", 0)], "empty": []}, {"q": {"a": 1}, "empty": {"a": 1}})
    assert found.judged_queries_not_in_output == 0


def test_the_table_in_words(tmp_path: Path) -> None:
    found = judge(tmp_path, {"q": [("b", 1), ("a", 0)], "r": [("a", 0)]}, {"q": {"b": 1}})
    assert words(found) == (
        "            input order   output    95 % interval     gain      95 % interval       p\n"
        "nDCG@10          0.6309   1.0000                   +0.3691                     1.0000\n"
        "MRR@10           0.5000   1.0000                   +0.5000                     1.0000\n"
        "recall@10        1.0000   1.0000                   +0.0000                     1.0000\n"
        "recall@100       1.0000   1.0000                   +0.0000                     1.0000\n"
        "1 judged queries; 1 without a judgment above 0, 0 judged but not in the output, both "
        "left out"
    )


def test_an_output_without_ids_is_refused(tmp_path: Path) -> None:
    path = judgments(tmp_path, {"q": {"a": 1}})
    with pytest.raises(OutputUnusable) as error:
        evaluate(tmp_path, path)
    assert str(error.value) == f"{tmp_path}: has no parts; is it the output of `batchrank run`?"
    write(tmp_path, {"q": [("a", 0)]}, identity="row")
    with pytest.raises(OutputUnusable) as error:
        evaluate(tmp_path, path)
    assert str(error.value) == f"{tmp_path}: has no query ids, so no judgments fit it."
    write(tmp_path, {"q": [(None, 0)]})
    with pytest.raises(OutputUnusable) as error:
        evaluate(tmp_path, path)
    assert str(error.value) == f"{tmp_path}: has candidates without doc_id, so no judgments fit it."
