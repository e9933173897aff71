"""`evaluate` beside the measures written out in plain Python, over outputs of any shape."""

from collections.abc import Sequence
from math import log2
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pyarrow as pa
import pytest
from helpers import RESULTS, Server, inside, output, score, table, written
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrank.analysis.evaluation import Evaluation, evaluate, moved, words

Candidates = list[tuple[str | None, float | None]]
"""A row's candidates in the order of the input: doc_id and score."""


class Output(NamedTuple):
    """Rows by query, and how many of each are listed (0: all)."""

    rows: dict[str, Candidates]
    top_n: int

    def order(self, query: str) -> list[int]:
        """The places in the input, best first: ties by place, those without a score last."""
        scores = [score for _, score in self.rows[query]]
        places = range(len(scores))
        order = sorted(places, key=lambda at: (scores[at] is None, -(scores[at] or 0), at))
        return order[: self.top_n or None]

    def write(self, out: Path) -> Path:
        """The output as a run writes it, in two parts."""
        results = [
            [
                {
                    "doc_id": self.rows[query][at][0],
                    "index": at,
                    "rank": None if self.rows[query][at][1] is None else rank,
                    "relevance_score": self.rows[query][at][1],
                }
                for rank, at in enumerate(self.order(query), 1)
            ]
            for query in self.rows
        ]
        whole = pa.table({"query_id": list(self.rows), "results": pa.array(results, RESULTS)})
        written(out / "part-00000.parquet", whole.slice(0, 1))
        written(out / "part-00001.parquet", whole.slice(1))
        return out

    def is_cut(self) -> bool:
        """Whether the listed places show that others are missing."""
        orders = [self.order(query) for query in self.rows]
        return any(order and max(order) >= len(order) for order in orders)

    def ranked(self, query: str, *, by_input: bool = False) -> list[str | None]:
        order = sorted(self.order(query)) if by_input else self.order(query)
        return [self.rows[query][at][0] for at in order]


def measured(
    ranked: Sequence[str | None], grades: dict[str, int], ks: Sequence[int]
) -> dict[str, float]:
    """nDCG, MRR and recall of one query as textbooks have them."""
    once = [
        document
        for at, document in enumerate(ranked)
        if document is None or document not in ranked[:at]
    ]
    gains = [0 if document is None else max(0, grades.get(document, 0)) for document in once]
    best = sorted((max(0, grade) for grade in grades.values()), reverse=True)
    found = {}
    for k in ks:
        ideal = sum(gain / log2(at + 2) for at, gain in enumerate(best[:k]))
        found[f"nDCG@{k}"] = sum(gain / log2(at + 2) for at, gain in enumerate(gains[:k])) / ideal
        found[f"MRR@{k}"] = next((1 / (at + 1) for at, one in enumerate(gains[:k]) if one), 0.0)
        found[f"recall@{k}"] = sum(map(bool, gains[:k])) / sum(map(bool, best))
    return found


def means(each: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(one[name] for one in each) / len(each) for name in each[0]}


IDS = st.sampled_from(
    ["a", "b", "c", "d", "e f", "f\0", "f\0g", "\0", "", "\u2028", "7", "judged 0"]
)
SCORES = st.sampled_from([None, -1.5, 0.0, 0.25, 0.25, 0.5, 1.0])
ROW = st.lists(st.tuples(st.none() | IDS, SCORES), max_size=14)
QUERIES = ["q", "q\0", "q\0r", "0", "1"]
OUTPUTS = st.builds(
    Output,
    st.fixed_dictionaries(dict.fromkeys(QUERIES, ROW)),
    st.sampled_from([0, 0, 1, 2, 5]),
)
GRADES = st.dictionaries(IDS | st.just("nowhere"), st.integers(-1, 3), min_size=1, max_size=6)
QRELS = st.dictionaries(st.sampled_from([*QUERIES, "absent"]), GRADES, min_size=1)
KS = (1, 3, 10)


def judgments(folder: Path, qrels: dict[str, dict[str, int]]) -> Path:
    lines = [(query, doc, grade) for query, docs in qrels.items() for doc, grade in docs.items()]
    queries, documents, grades = (list(column) for column in zip(*lines, strict=True))
    columns = {"query_id": queries, "doc_id": documents, "relevance": grades}
    return written(folder / "qrels.parquet", pa.table(columns))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(OUTPUTS, OUTPUTS, QRELS)
def test_the_figures_are_those_of_plain_python(
    one: Output, two: Output, qrels: dict[str, dict[str, int]]
) -> None:
    """Cut rows, repeated, missing and unknown ids, ties, candidates without a score."""
    chosen = [query for query in QUERIES if max(qrels.get(query, {"": 0}).values()) > 0]
    named = [[doc for query in chosen for doc in each.ranked(query)] for each in (one, two)]
    if not chosen or any(documents and not any(map(is_id, documents)) for documents in named):
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        out, beside = one.write(folder / "out"), two.write(folder / "other")
        found = evaluate(out, judgments(folder, qrels), against=beside, ks=KS)
    ours, theirs = (
        means([measured(each.ranked(query), qrels[query], KS) for query in chosen])
        for each in (one, two)
    )
    assert found.queries == len(chosen)
    assert found.after == pytest.approx(ours, abs=1e-12)
    assert found.against is not None
    assert found.against.means == pytest.approx(theirs, abs=1e-12)
    for measure, gain in found.against.gains.items():
        assert gain.mean == pytest.approx(ours[measure] - theirs[measure], abs=1e-12)
    assert (found.top_n > 0, found.against.top_n > 0) == (one.is_cut(), two.is_cut())
    by_input = [measured(one.ranked(query, by_input=True), qrels[query], KS) for query in chosen]
    assert found.before == pytest.approx({} if one.is_cut() else means(by_input), abs=1e-12)
    assert set(found.gains) == set(found.before)
    assert found.candidates_without_id == named[0].count(None)


def is_id(document: str | None) -> bool:
    return document is not None


def judged(folder: Path, output: Output, qrels: dict[str, dict[str, int]]) -> Evaluation:
    return evaluate(output.write(folder), judgments(folder.parent, qrels))


def test_a_repeated_document_is_judged_once_by_its_best_place(tmp_path: Path) -> None:
    """b, a, a, a, c: after the first a comes c, and three of a are no gain above the ideal."""
    rows: dict[str, Candidates] = {
        "q": [("a", 0.5), ("b", 0.9), ("a", 0.4), ("a", 0.4), ("c", 0.1)]
    }
    found = judged(tmp_path / "out", Output(rows, 0), {"q": {"a": 1, "c": 1}})
    ideal = 1 + 1 / log2(3)
    assert found.after["nDCG@10"] == pytest.approx((1 / log2(3) + 1 / log2(4)) / ideal)
    assert found.before["nDCG@10"] == pytest.approx((1 + 1 / log2(4)) / ideal)


def test_an_output_of_the_top_n_is_judged_alone_and_says_so(tmp_path: Path) -> None:
    rows: dict[str, Candidates] = {"q": [("a", 0.1), ("b", 0.9), ("c", 0.5)]}
    found = judged(tmp_path / "out", Output(rows, 2), {"q": {"b": 1}})
    assert (found.before, found.gains, found.top_n) == ({}, {}, 2)
    assert words(found) == (
        "              output    95 % interval\n"
        "nDCG@10       1.0000\n"
        "MRR@10        1.0000\n"
        "recall@10     1.0000\n"
        "recall@100    1.0000\n"
        "1 judged queries; 0 without a judgment above 0, 0 judged but not in the output, both "
        "left out\n"
        "the output lists 2 candidates of a row (top_n); the input order had more, and is not "
        "judged"
    )


def test_what_a_reader_must_know_of_the_rows_is_said(tmp_path: Path) -> None:
    rows: dict[str, Candidates] = {"q": [("a", 0.1), (None, 0.9), ("c", None)]}
    found = judged(tmp_path / "out", Output(rows, 0), {"q": {"a": 1}})
    assert (found.candidates_without_id, found.queries_unscored) == (1, 1)
    assert words(found).splitlines()[-2:] == [
        "1 candidates without doc_id, counted as not relevant",
        "1 of these queries have candidates without a score, which come last in input order",
    ]


def test_a_run_knows_what_it_left_out_even_where_its_best_are_the_first(
    server: Server, tmp_path: Path
) -> None:
    """One candidate a row is listed, of rows whose first is the best: no place shows the cut."""
    rows = table(40, documents=2, tag="first")
    out, firsts = tmp_path / "whole", tmp_path / "firsts"
    score(server, written(tmp_path / "in.parquet", rows), out)
    best = [results[0]["index"] for results in output(out)["results"].to_pylist()]
    chosen = rows.filter(pa.array([index == 0 for index in best]))
    assert chosen.num_rows
    source = written(tmp_path / "first.parquet", chosen)
    score(server, source, firsts, output={"top_n": 1})
    qrels = {str(query): {"nowhere": 1} for query in chosen["query_id"].to_pylist()}
    found = evaluate(firsts, judgments(tmp_path, qrels))
    assert (found.top_n, found.before) == (1, {})
    assert moved(firsts).kendall_tau is None
    page = Path(inside("report", firsts).stdout.strip()).read_text("utf-8")
    for name, figure in (
        ("places moved, mean", "unknown"),
        ("Kendall&#x27;s tau with the input order", "unknown"),
        ("rows with others in the first 10", "an unknown share"),
        ("candidates of a row in the output, by top_n", "1"),
    ):
        assert f"{name}</th><td>{figure}</td>" in page
    score(server, source, tmp_path / "all", output={"top_n": 2})
    assert evaluate(tmp_path / "all", judgments(tmp_path, qrels)).top_n == 0


@pytest.mark.parametrize(
    ("top_n", "top_10"), [(3, "an unknown share"), (10, "100.0%")], ids=["3", "10"]
)
def test_how_far_ranks_moved_is_not_said_where_top_n_cut(
    tmp_path: Path, top_n: int, top_10: str
) -> None:
    rows: dict[str, Candidates] = {"q": [(f"d{at}", float(at)) for at in range(20)]}
    out = Output(rows, top_n).write(tmp_path / "out")
    found = moved(out)
    assert (found.mean_displacement, found.kendall_tau, found.top_n) == (None, None, top_n)
    assert (found.top_1_changed, found.top_10_changed) == (1, None if top_n < 10 else 1)
    assert inside("evaluate", out).stdout == (
        f"rows       1 with {top_n} scored candidates listed\n"
        "moved      unknown\n"
        "tau        unknown (Kendall's tau-b with the input order, mean of rows)\n"
        "top 1      another in 100.0% of rows\n"
        f"top 10     others in {top_10} of rows\n"
        "ties       0 candidates (0.0%) share their score with another listed of their row, in 0 "
        "rows\n"
        f"top_n      the output lists {top_n} candidates of a row; nobody can say how far the "
        "others moved\n"
    )
