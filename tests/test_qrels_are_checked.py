"""Qrels come as Parquet or in TREC's columns; what is wrong with them is said in one line."""

from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import RESULTS, inside, written

from batchrank.analysis.evaluation import evaluate
from batchrank.analysis.qrels import read_qrels
from batchrank.errors import InputBad, InputMissing

EXPECTED = (
    "expected Parquet with query_id, doc_id, relevance, or lines of TREC: "
    "query_id, iteration, doc_id, relevance."
)


def refused(path: Path) -> str:
    """What is said of qrels that are none, without the path."""
    with pytest.raises(InputBad) as error:
        read_qrels(path)
    return str(error.value).removeprefix(f"{path}")


def text(folder: Path, content: str) -> Path:
    path = folder / "qrels.txt"
    path.write_text(content, "utf-8")
    return path


def judgments(folder: Path, rows: list[tuple[object, object, object]]) -> Path:
    queries, documents, grades = (list(column) for column in zip(*rows, strict=True))
    columns = {"query_id": queries, "doc_id": documents, "relevance": grades}
    return written(folder / "qrels.parquet", pa.table(columns))


def output_of(folder: Path, ids: pa.Array, name: str = "query_id") -> Path:
    """An output in which each of these queries has the candidate d."""
    result = [{"doc_id": "d", "index": 0, "rank": 1, "relevance_score": 0.5}]
    columns = {name: ids, "results": pa.array([result] * len(ids), RESULTS)}
    written(folder / "out" / "part-00000.parquet", pa.table(columns))
    return folder / "out"


def test_trec_columns_and_parquet_say_the_same(tmp_path: Path) -> None:
    lines = text(tmp_path, "q1 0 d1 1\nq1\tQ0  d2 0\n\n7 0 x\u00e9 -2\n")
    table = judgments(tmp_path, [("q1", "d1", 1), ("q1", "d2", 0), ("7", "x\u00e9", -2)])
    assert read_qrels(lines) == read_qrels(table) == {"q1": {"d1": 1, "d2": 0}, "7": {"x\u00e9": 0}}


def test_ids_that_are_numbers_are_compared_as_text(tmp_path: Path) -> None:
    assert read_qrels(judgments(tmp_path, [(7, 8, 1.0)])) == {"7": {"8": 1}}


def test_ids_of_any_type_are_compared_in_their_one_form_as_text(tmp_path: Path) -> None:
    """Of outputs and of judgments alike: a UUID as everybody writes it."""
    ids = [UUID(int=number << 64) for number in (1, 2)]
    column = pa.array([one.bytes for one in ids], pa.uuid())
    out = output_of(tmp_path, column)
    columns = {"query_id": column, "doc_id": ["d", "d"], "relevance": [1, 1]}
    path = written(tmp_path / "qrels.parquet", pa.table(columns))
    assert read_qrels(path) == {str(one): {"d": 1} for one in ids}
    assert evaluate(out, path).queries == 2
    assert evaluate(out, text(tmp_path, f"{ids[0]} 0 d 1\n")).queries == 1


def test_a_missing_file_and_a_file_of_something_else_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "none"
    with pytest.raises(InputMissing, match=r"none: no such file\."):
        read_qrels(path)
    path.write_bytes(b"\xff\xfe\x00")
    assert refused(path) == f": cannot be read as qrels; {EXPECTED}"
    path.write_bytes(b"PAR1 and no more")
    assert refused(path) == f": cannot be read as qrels; {EXPECTED}"
    assert refused(tmp_path) == f": cannot be read as qrels; {EXPECTED}"


def test_columns_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "q.parquet", pa.table({"query-id": ["q"], "relevance": [1]}))
    assert refused(path) == (
        ": cannot be read as qrels; it has columns query-id, relevance, not query_id, doc_id; "
        f"{EXPECTED}"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("q 0 d 1\nq d 1\n", f", line 2: has 3 columns; {EXPECTED}"),
        ("query-id corpus-id score\n", f", line 1: has 3 columns; {EXPECTED}"),
        ("q\t0\tBoeing 747\n", ", line 1: relevance 'Boeing 747' is no whole number."),
        ("q\t0\tBoeing 747\t1\tx\n", f", line 1: has 5 columns; {EXPECTED}"),
        ("q 0 d high\n", ", line 1: relevance 'high' is no whole number."),
        ("q 0 d 0.5\n", ", line 1: relevance '0.5' is no whole number."),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, content: str, said: str) -> None:
    assert refused(text(tmp_path, content)) == said


@pytest.mark.parametrize("row", [("q", None, 1), (None, "d", 1), ("q", "d", None), ("q", "d", 0.5)])
def test_nulls_and_parts_of_grades_are_refused(
    tmp_path: Path, row: tuple[object, object, object]
) -> None:
    path = judgments(tmp_path, [row])
    assert refused(path) == ": has nulls, or grades that are no whole numbers."


@pytest.mark.parametrize("grade", [1, 2])
def test_a_pair_judged_twice_is_refused_whether_or_not_the_grades_agree(
    tmp_path: Path, grade: int
) -> None:
    path = text(tmp_path, f"q 0 d 1\nr 0 d 1\nq 0 d {grade}\ns 0 e 0\ns 0 e 0\n")
    assert refused(path) == (
        ": document 'd' of query 'q' is judged more than once, as are 1 other pairs."
    )


def test_grades_below_0_count_as_0_as_trec_eval_has_it(tmp_path: Path) -> None:
    from pytrec_eval import RelevanceEvaluator

    raw = {"q": {"a": -2, "b": 1, "d": -1}}
    lines = [("q", doc, grade) for doc, grade in raw["q"].items()]
    measures = {"ndcg_cut.10", "recall.10", "recip_rank"}
    run = {"q": {"a": 3.0, "d": 2.0, "b": 1.0}}
    read = read_qrels(judgments(tmp_path, lines))
    assert RelevanceEvaluator(read, measures).evaluate(run) == (
        RelevanceEvaluator(raw, measures).evaluate(run)
    )


def test_qrels_of_other_queries_are_refused_with_ids_of_both(tmp_path: Path) -> None:
    out = output_of(tmp_path, pa.array([101, 102, 103]), "question")
    path = text(tmp_path, "q101 0 d 1\nq102 0 d 1\n")
    with pytest.raises(InputBad) as error:
        evaluate(out, path)
    assert str(error.value) == (
        f"{path}: judges no query of {out}. Its query_id are like 'q101', 'q102'; those of {out} "
        "(column 'question', int64) like '101', '102'."
    )


def test_qrels_without_anything_relevant_are_refused(tmp_path: Path) -> None:
    out = output_of(tmp_path, pa.array(["q"]))
    path = text(tmp_path, "q 0 d 0\nother 0 d 1\n")
    with pytest.raises(InputBad) as error:
        evaluate(out, path)
    assert str(error.value) == f"{path}: has no judgment above 0 for a query of {out}."


def test_the_command_gives_one_line_and_the_code_of_bad_input(tmp_path: Path) -> None:
    out = output_of(tmp_path, pa.array(["q"]))
    done = inside("evaluate", out, "--qrels", text(tmp_path, "q d\n"))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (65, "", 1)
    done = inside("evaluate", out, "--qrels", tmp_path / "none")
    assert (done.returncode, len(done.stderr.splitlines())) == (66, 1)


def test_parquet_is_known_by_its_content(tmp_path: Path) -> None:
    path = judgments(tmp_path, [("q", "d", 1)])
    renamed = path.rename(tmp_path / "qrels.txt")
    assert pq.read_metadata(renamed).num_rows == 1
    assert read_qrels(renamed) == {"q": {"d": 1}}
