"""A column that somebody named is there, or the run is refused with the nearest name, unpaid."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers import Server, expected, fast, inside, output, table, written

import batchrank
from batchrank.config.settings import load
from batchrank.errors import BatchrankError

CANDIDATES = pa.list_(pa.struct([("docid", pa.string()), ("body", pa.string())]))


def rows() -> pa.Table:
    """Two rows whose candidates have fields of other names."""
    named = [
        [{"docid": one["doc_id"], "body": one["text"]} for one in row]
        for row in table(2, tag="named").column("candidates").to_pylist()
    ]
    return table(2, tag="named").set_column(2, "candidates", pa.array(named, CANDIDATES))


def pairs() -> pa.Table:
    """Four pairs of two queries."""
    return pa.table(
        {
            "query_id": ["a", "a", "b", "b"],
            "query": ["x", "x", "y", "y"],
            "doc_id": ["1", "2", "1", "2"],
            "text": ["one", "two", "one", "two"],
        }
    )


def texts(folder: Path) -> list[object]:
    """Options for the queries and the corpus of the pairs."""
    queries = pa.table({"_id": ["a", "b"], "text": ["x", "y"], "question": ["X", "Y"]})
    corpus = pa.table({"_id": ["1", "2"], "text": ["one", "two"]})
    beside = [("--queries", queries), ("--corpus", corpus)]
    return [
        one
        for option, content in beside
        for one in (option, written(folder / f"{option[2:]}.parquet", content))
    ]


Refusal = tuple[str, str, str, str]
REFUSALS: list[Refusal] = [
    ("rows", "--id-column", "qurey_id", "Did you mean query_id?"),
    ("rows", "--query-column", "qeury", "Did you mean query?"),
    ("rows", "--candidates-column", "candidate", "Did you mean candidates?"),
    ("rows", "--keep", "Query_ID", "Did you mean query_id?"),
    ("rows", "--doc-id-column", "doc_id", "Did you mean docid?"),
    ("rows", "--text-column", "bdy", "Did you mean body?"),
    ("strings", "--doc-id-column", "docid", "Texts alone have no fields."),
    ("strings", "--text-column", "text", "Texts alone have no fields."),
    ("pairs", "--id-column", "qid", "Did you mean query_id?"),
    ("pairs", "--query-column", "qery", "Did you mean query?"),
    ("pairs", "--candidates-column", "candidates", "it has query_id, query, doc_id, text."),
    ("pairs", "--doc-id-column", "docid", "Did you mean doc_id?"),
    ("pairs", "--text-column", "txt", "Did you mean text?"),
    ("pairs", "--keep", "langg", "it has query_id, query, doc_id, text."),
    ("run", "--id-column", "queryid", "Did you mean query_id?"),
    ("run", "--doc-id-column", "docid", "Did you mean doc_id?"),
    ("run", "--keep", "doc-id", "Did you mean doc_id?"),
    ("run", "--candidates-column", "candidates", "which has no column of candidates"),
    ("run", "--query-column", "quest", 'expected a column "quest"'),
    ("run", "--text-column", "txt", 'expected a column "txt"'),
]


def laid(shape: str, folder: Path) -> list[object]:
    """The arguments of an input of a shape."""
    strings = pa.array([["one", "two"]] * 2)
    tables = {
        "rows": rows(),
        "strings": rows().set_column(2, "candidates", strings),
        "pairs": pairs(),
        "run": pairs().select(["query_id", "doc_id"]),
    }
    beside = texts(folder) if shape == "run" else []
    fields = ["--text-column", "body"] if shape == "rows" else []
    return [written(folder / "in.parquet", tables[shape]), *beside, *fields]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda one: " ".join(one[:2]))
def test_an_option_names_a_column_that_is_there(
    server: Server, tmp_path: Path, refusal: Refusal
) -> None:
    shape, option, name, said = refusal
    arguments = [*laid(shape, tmp_path), option, name]
    before = server.received
    for command in (fast(server, tmp_path / "out", *arguments), ["plan", *arguments]):
        done = inside(*command)
        assert done.returncode == 65
        assert done.stderr.count("\n") == 1
        assert name in done.stderr
        assert said in done.stderr
    assert not (tmp_path / "out").exists()
    assert server.received == before


@pytest.mark.parametrize("shape", ["rows", "pairs", "run"])
def test_a_priority_column_is_there(server: Server, tmp_path: Path, shape: str) -> None:
    arguments = [*laid(shape, tmp_path), "--priority-column", "quary"]
    done = inside(*fast(server, tmp_path / "out", *arguments))
    assert done.returncode == 65
    assert 'no column "quary" for --priority-column; it has ' in done.stderr
    assert "Did you mean query" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_configuration_names_a_column_that_is_there(server: Server, tmp_path: Path) -> None:
    path = written(tmp_path / "in.parquet", table(1))
    for key, name in (("id_column", "qid"), ("doc_id_column", "docid"), ("text_column", "body")):
        (tmp_path / "c.toml").write_text(f'[input]\n{key} = "{name}"\n')
        done = inside(*fast(server, tmp_path / "out", path), "-c", tmp_path / "c.toml")
        assert done.returncode == 65
        assert f'"{name}"' in done.stderr
        assert not (tmp_path / "out").exists()


def test_a_configuration_that_repeats_a_default_name_leaves_it_optional(
    server: Server, tmp_path: Path
) -> None:
    """As configs/local.toml does, which people copy."""
    path = written(tmp_path / "in.parquet", table(1).drop_columns("query_id"))
    (tmp_path / "c.toml").write_text('[input]\nid_column = "query_id"\ndoc_id_column = "doc_id"\n')
    done = inside(*fast(server, tmp_path / "out", path), "-c", tmp_path / "c.toml")
    assert done.returncode == 0
    assert output(tmp_path / "out").column_names[0] == "row"


Call = Callable[[Any, dict[str, Any]], Any]
CALLS: dict[str, Call] = {
    "settings": lambda frame, keys: batchrank.rerank(frame, progress=False, **keys),
    "a mapping": lambda frame, keys: batchrank.rerank(frame, config={"input": keys}),
    "a configuration": lambda frame, keys: batchrank.rerank(
        frame, config=load(None, {"input": keys})
    ),
    "both": lambda frame, keys: batchrank.rerank(
        frame, config=load(None, {"input": keys}), top_n=1
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_python_names_a_column_that_is_there(call: Call) -> None:
    frame = table(1).drop_columns("query_id")
    for keys in ({"id_column": "query_id"}, {"id_column": "qid"}, {"keep_columns": ["n"]}):
        with pytest.raises(BatchrankError, match='no column "') as error:
            call(frame, keys)
        assert error.value.code == 65


def test_a_mapping_has_no_section_that_there_is_not() -> None:
    with pytest.raises(BatchrankError, match=r"unknown section inptu. Did you mean input\?"):
        batchrank.rerank(table(1), config={"inptu": {}})


def test_a_name_that_is_given_is_no_other_run(server: Server, tmp_path: Path) -> None:
    path = written(tmp_path / "in.parquet", table(2, tag="same run"))
    assert inside(*fast(server, tmp_path / "out", path)).returncode == 0
    again = inside(*fast(server, tmp_path / "out", path), "--id-column", "query_id")
    assert (again.returncode, again.stderr) == (0, "")


# Fields


def test_fields_are_chosen_as_columns_are(server: Server, tmp_path: Path) -> None:
    path = written(tmp_path / "in.parquet", rows())
    options = ["--doc-id-column", "docid", "--text-column", "body"]
    assert inside(*fast(server, tmp_path / "out", path), *options).returncode == 0
    for row, scored in zip(rows().to_pylist(), output(tmp_path / "out").to_pylist(), strict=True):
        ids, bodies = zip(*((one["docid"], one["body"]) for one in row["candidates"]), strict=True)
        assert scored["results"] == expected(row["query"], bodies, ids)


def test_pairs_of_other_names_give_their_ids(server: Server, tmp_path: Path) -> None:
    renamed = pairs().rename_columns(["qid", "question", "docid", "body"])
    path = written(tmp_path / "in.parquet", renamed)
    options = ["--id-column", "qid", "--query-column", "question"]
    options += ["--doc-id-column", "docid", "--text-column", "body"]
    assert inside(*fast(server, tmp_path / "out", path), *options).returncode == 0
    for row in output(tmp_path / "out").to_pylist():
        query = {"a": "x", "b": "y"}[row["qid"]]
        assert row["results"] == expected(query, ["one", "two"], ["1", "2"])


def test_a_query_column_that_is_named_goes_before_text(server: Server, tmp_path: Path) -> None:
    arguments = [*laid("run", tmp_path), "--query-column", "question"]
    assert inside(*fast(server, tmp_path / "out", *arguments)).returncode == 0
    asked = [row["results"] for row in output(tmp_path / "out").to_pylist()]
    assert asked == [expected(query, ["one", "two"], ["1", "2"]) for query in ("X", "Y")]


# Twice


@pytest.mark.parametrize("name", ["query", "query_id", "candidates"])
def test_a_name_that_two_columns_have_is_refused(server: Server, tmp_path: Path, name: str) -> None:
    twice = table(1)
    twice = pa.Table.from_arrays(
        [*twice.columns, twice.column(name)], names=[*twice.column_names, name]
    )
    path = written(tmp_path / "in.parquet", twice)
    for command in (fast(server, tmp_path / "out", path), ["plan", path]):
        done = inside(*command)
        assert done.returncode == 65
        assert f'in.parquet: has 2 columns "{name}"; expected one' in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_name_that_nobody_asks_for_may_come_twice(server: Server, tmp_path: Path) -> None:
    twice = table(1).append_column("n", pa.array([1])).append_column("n", pa.array(["x"]))
    path = written(tmp_path / "in.parquet", twice)
    assert inside(*fast(server, tmp_path / "out", path)).returncode == 0
    done = inside(*fast(server, tmp_path / "kept", path), "--keep", "n")
    assert done.returncode == 65
    assert 'has 2 columns "n"' in done.stderr


@pytest.mark.parametrize("name", ["query", "doc_id", "text"])
def test_pairs_with_a_name_twice_are_refused(server: Server, tmp_path: Path, name: str) -> None:
    twice = pa.Table.from_arrays(
        [*pairs().columns, pairs().column(name)], names=[*pairs().column_names, name]
    )
    path = written(tmp_path / "in.parquet", twice)
    done = inside(*fast(server, tmp_path / "out", path))
    assert done.returncode == 65
    assert f'has 2 columns "{name}"' in done.stderr


def test_a_field_that_comes_twice_is_refused(server: Server, tmp_path: Path) -> None:
    texts = [pa.array(["one"]), pa.array(["two"])]
    structs = pa.StructArray.from_arrays(texts, ["text", "text"])
    lists = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), structs)
    path = written(tmp_path / "in.parquet", table(1).set_column(2, "candidates", lists))
    done = inside(*fast(server, tmp_path / "out", path))
    assert done.returncode == 65
    assert 'with 2 fields "text"' in done.stderr
