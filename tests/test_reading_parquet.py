"""Every form of input that is accepted comes out with the right scores; the rest is refused."""

import datetime
import os
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import (
    CANDIDATES,
    Server,
    expected,
    expected_of,
    one_row,
    output,
    program,
    score,
    table,
    written,
)

from batchrank.errors import BatchrankError, ExitCode, InputBad
from batchrank.input.parquet_rows import open_source
from batchrank.input.schema import Columns

COLUMNS = Columns("query_id", "query", "candidates", ())
TEXTS = [["red fox", "blue whale", "grüne Eule"], ["一只猫", "a dog", "🦊"], ["x", "y", "z"]]
QUERIES = ["which animal", "哪种动物", "letters"]
TEXT_TYPES = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
}
# pyarrow 26 cannot write views of strings inside structs, so no test can read them.
FIELD_TYPES = [name for name in TEXT_TYPES if name != "string_view"]
LISTS: dict[str, Callable[[pa.DataType], pa.DataType]] = {
    "list": pa.list_,
    "large_list": pa.large_list,
    "list_view": pa.list_view,
    "large_list_view": pa.large_list_view,
    "fixed_size_list": lambda item: pa.list_(item, 3),
}


def structs(ids: bool = True) -> list[list[dict[str, Any]]]:
    """The candidates as structs, ids like `1-2`."""
    return [
        [
            {**({"doc_id": f"{row}-{place}"} if ids else {}), "text": text}
            for place, text in enumerate(texts)
        ]
        for row, texts in enumerate(TEXTS)
    ]


def rows_of(candidates: pa.Array, queries: pa.Array | None = None) -> pa.Table:
    """A table with these candidates."""
    queries = pa.array(QUERIES[: len(candidates)]) if queries is None else queries
    ids = pa.array(range(len(candidates)), pa.int64())
    return pa.table({"query_id": ids, "query": queries, "candidates": candidates})


def scored(server: Server, tmp_path: Path, rows: pa.Table, **options: Any) -> list[dict[str, Any]]:
    """The output rows of an input table."""
    score(server, written(tmp_path / "in.parquet", rows, **options), tmp_path / "out")
    return output(tmp_path / "out").to_pylist()


def wanted(ids: bool = True) -> list[list[dict[str, Any]]]:
    """The results of the canonical rows."""
    return [
        expected(query, texts, [f"{row}-{place}" if ids else None for place in range(len(texts))])
        for row, (query, texts) in enumerate(zip(QUERIES, TEXTS, strict=True))
    ]


@pytest.mark.parametrize("text", FIELD_TYPES)
@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_structs_is_read_in_any_physical_form(
    server: Server, tmp_path: Path, kind: str, text: str
) -> None:
    item = pa.struct([("doc_id", TEXT_TYPES[text]), ("text", TEXT_TYPES[text])])
    rows = scored(server, tmp_path, rows_of(pa.array(structs(), LISTS[kind](item))))
    assert [row["results"] for row in rows] == wanted()
    assert {row["status"] for row in rows} == {"scored"}


@pytest.mark.parametrize("text", TEXT_TYPES)
@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_texts_is_read_in_any_physical_form(
    server: Server, tmp_path: Path, kind: str, text: str
) -> None:
    rows = scored(server, tmp_path, rows_of(pa.array(TEXTS, LISTS[kind](TEXT_TYPES[text]))))
    assert [row["results"] for row in rows] == wanted(ids=False)


@pytest.mark.parametrize("text", TEXT_TYPES)
def test_a_query_is_read_in_any_physical_form(server: Server, tmp_path: Path, text: str) -> None:
    queries = pa.array(QUERIES, TEXT_TYPES[text])
    rows = scored(server, tmp_path, rows_of(pa.array(structs(), CANDIDATES), queries))
    assert [row["results"] for row in rows] == wanted()


@pytest.mark.parametrize(
    "fields",
    [
        [("text", pa.string()), ("doc_id", pa.string())],
        [("score", pa.float64()), ("text", pa.string()), ("doc_id", pa.string())],
        [("doc_id", pa.string()), ("more", pa.list_(pa.int8())), ("text", pa.string())],
    ],
    ids=["text first", "a field before", "a field between"],
)
def test_the_fields_of_a_struct_may_stand_in_any_order(
    server: Server, tmp_path: Path, fields: list[tuple[str, pa.DataType]]
) -> None:
    rows = scored(server, tmp_path, rows_of(pa.array(structs(), pa.list_(pa.struct(fields)))))
    assert [row["results"] for row in rows] == wanted()


def test_a_struct_without_doc_id_gives_null_ids(server: Server, tmp_path: Path) -> None:
    kind = pa.list_(pa.struct([("text", pa.string())]))
    rows = scored(server, tmp_path, rows_of(pa.array(structs(ids=False), kind)))
    assert [row["results"] for row in rows] == wanted(ids=False)


@pytest.mark.parametrize("kind", [pa.int64(), pa.int8(), pa.uint64()], ids=str)
def test_a_doc_id_may_be_an_integer(server: Server, tmp_path: Path, kind: pa.DataType) -> None:
    item = pa.struct([("doc_id", kind), ("text", pa.string())])
    candidates = [[{"doc_id": 7, "text": "a"}, {"doc_id": None, "text": "b"}]]
    rows = scored(server, tmp_path, rows_of(pa.array(candidates, pa.list_(item))))
    assert rows[0]["results"] == expected(QUERIES[0], ["a", "b"], ["7", None])


@pytest.mark.parametrize("kind", [name for name in LISTS if name != "fixed_size_list"])
@pytest.mark.parametrize("text", FIELD_TYPES)
def test_null_lists_structs_texts_and_ids_are_read_as_nothing(
    server: Server, tmp_path: Path, kind: str, text: str
) -> None:
    item = pa.struct([("doc_id", TEXT_TYPES[text]), ("text", TEXT_TYPES[text])])
    good = {"doc_id": "g", "text": "good"}
    candidates = [
        [good, None, {"doc_id": None, "text": "nameless"}],
        None,
        [],
        [{"doc_id": "n", "text": None}, good, None],
        [None, None],
    ]
    queries = pa.array(["q0", "q1", "q2", "q3", "q4"])
    array = pa.array(candidates, LISTS[kind](item))
    rows = scored(server, tmp_path, rows_of(array, queries))
    assert [row["results"] for row in rows] == [
        expected("q0", ["good", None, "nameless"], ["g", None, None]),
        [],
        [],
        expected("q3", [None, "good", None], ["n", "g", None]),
        expected("q4", [None, None], [None, None]),
    ]
    statuses = [row["status"] for row in rows]
    assert statuses == ["partial", "skipped", "skipped", "partial", "skipped"]


def test_null_lists_of_fixed_size_are_read_as_nothing(server: Server, tmp_path: Path) -> None:
    candidates = pa.array([["a", "b"], None, ["c", None]], pa.list_(pa.string(), 2))
    rows = scored(server, tmp_path, rows_of(candidates))
    assert [row["results"] for row in rows] == [
        expected(QUERIES[0], ["a", "b"], [None, None]),
        [],
        expected(QUERIES[2], ["c", None], [None, None]),
    ]


@pytest.mark.parametrize("kind", [pa.list_(pa.null()), CANDIDATES], ids=str)
def test_a_column_of_nothing_but_nulls_is_skipped(
    server: Server, tmp_path: Path, kind: pa.DataType
) -> None:
    rows = scored(server, tmp_path, rows_of(pa.array([[None], None, []], kind)))
    assert [len(row["results"]) for row in rows] == [1, 0, 0]
    assert {row["status"] for row in rows} == {"skipped"}


@pytest.mark.parametrize("rows_per_part", [1, 7, 100])
def test_batches_are_cut_at_the_borders_of_parts(
    server: Server, tmp_path: Path, rows_per_part: int
) -> None:
    rows = table(100, tag=f"cut{rows_per_part}")
    source = written(tmp_path / "in.parquet", rows, row_group_size=30)
    score(server, source, tmp_path / "out", output={"rows_per_part": rows_per_part})
    found = output(tmp_path / "out")
    assert found.column("query_id").to_pylist() == list(range(100))
    assert found.column("results").to_pylist() == [expected_of(row) for row in rows.to_pylist()]


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(["b", None, "a"]),
        pa.array([3, 1, 2], pa.int32()),
        pa.array([2**64 - 1, 0, None], pa.uint64()),
        pa.array(["x", "y", "x"], pa.large_string()),
        pa.array(["x", "y", "x"]).dictionary_encode(),
        pa.array([b"\xff", b"", None], pa.binary()),
    ],
    ids=lambda array: str(array.type),
)
def test_a_query_id_comes_out_as_it_is(server: Server, tmp_path: Path, ids: pa.Array) -> None:
    rows = rows_of(pa.array(structs(), CANDIDATES)).set_column(0, "query_id", ids)
    scored(server, tmp_path, rows)
    found = output(tmp_path / "out")
    assert found.schema.names[0] == "query_id"
    assert found.schema.field("query_id").type == ids.type
    assert found.column("query_id").to_pylist() == ids.to_pylist()


def test_without_an_id_column_rows_are_numbered_through_all_files(
    server: Server, tmp_path: Path
) -> None:
    rows = rows_of(pa.array(structs(), CANDIDATES)).drop_columns("query_id")
    files = [written(tmp_path / f"{name}.parquet", rows) for name in "ab"]
    score(server, files, tmp_path / "out", output={"rows_per_part": 2})
    found = output(tmp_path / "out")
    assert found.schema.names[0] == "row"
    assert found.schema.field("row").type == pa.int64()
    assert found.column("row").to_pylist() == [0, 1, 2, 3, 4, 5]


def test_other_column_names_are_read_and_the_id_keeps_its_name(
    server: Server, tmp_path: Path
) -> None:
    rows = rows_of(pa.array(structs(), CANDIDATES)).rename_columns(["qid", "frage", "docs"])
    source = written(tmp_path / "in.parquet", rows)
    names = {"id_column": "qid", "query_column": "frage", "candidates_column": "docs"}
    score(server, source, tmp_path / "out", input=names)
    found = output(tmp_path / "out")
    assert found.schema.names == ["qid", "results", "status", "error", "requests", "truncated"]
    assert found.column("results").to_pylist() == wanted()


ZONED = datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC)
KEPT = {
    "zoned": pa.array([ZONED, None, ZONED], pa.timestamp("us", tz="Asia/Shanghai")),
    "nanoseconds": pa.array([1, None, -1], pa.timestamp("ns")),
    "day": pa.array([datetime.date(1999, 12, 31), None, None], pa.date32()),
    "time": pa.array([1, 2, None], pa.time64("us")),
    "span": pa.array([1, None, 3], pa.duration("ms")),
    "price": pa.array([Decimal("1.50"), None, Decimal("-0.01")], pa.decimal128(20, 2)),
    "huge": pa.array([Decimal(10) ** 50, None, Decimal(-1)], pa.decimal256(60, 0)),
    "nested": pa.array(
        [{"a": [1, None], "b": {"c": "x"}}, None, {"a": [], "b": None}],
        pa.struct([("a", pa.list_(pa.int16())), ("b", pa.struct([("c", pa.string())]))]),
    ),
    "pairs": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int32())),
    "category": pa.array(["u", "v", "u"]).dictionary_encode(),
    "blob": pa.array([b"\x00\xff", None, b""], pa.binary()),
    "hash": pa.array([b"1234", None, b"abcd"], pa.binary(4)),
    "half": pa.array([1.5, None, -2.0], pa.float16()),
    "real": pa.array([0.1, float("inf"), None], pa.float64()),
    "flag": pa.array([True, None, False]),
    "tiny": pa.array([-128, None, 127], pa.int8()),
    "count": pa.array([2**32 - 1, None, 0], pa.uint32()),
    "view": pa.array(["long enough to be out of line", None, "v"], pa.string_view()),
    "void": pa.nulls(3),
    "vector": pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2)),
}


def test_kept_columns_come_out_unchanged_in_the_order_asked_for(
    server: Server, tmp_path: Path
) -> None:
    rows = rows_of(pa.array(structs(), CANDIDATES))
    for name, column in KEPT.items():
        rows = rows.append_column(name, column)
    source = written(tmp_path / "in.parquet", rows)
    keep = list(reversed(KEPT))
    score(server, source, tmp_path / "out", input={"keep_columns": keep})
    found, given = output(tmp_path / "out"), pq.read_table(source)
    assert found.schema.names[: len(keep) + 1] == ["query_id", *keep]
    for name in keep:
        assert found.schema.field(name).type == given.schema.field(name).type, name
        assert found.column(name).equals(given.column(name)), name


def test_a_dictionary_that_differs_from_row_group_to_row_group_comes_out_right(
    server: Server, tmp_path: Path
) -> None:
    rows = table(40, tag="dictionaries")
    names = [f"name {row // 3}" for row in range(40)]
    rows = rows.append_column("kind", pa.array(names).dictionary_encode())
    source = written(tmp_path / "in.parquet", rows, row_group_size=7)
    score(
        server,
        source,
        tmp_path / "out",
        input={"keep_columns": ["kind"]},
        output={"rows_per_part": 11},
    )
    assert output(tmp_path / "out").column("kind").to_pylist() == names


def test_a_file_that_polars_wrote_is_read(server: Server, tmp_path: Path) -> None:
    rows = rows_of(pa.array(structs(), CANDIDATES))
    frame = pl.DataFrame(rows.to_pylist()).with_columns(
        kind=pl.Series(["u", None, "u"], dtype=pl.Categorical), tags=pl.Series([["a"], [], None])
    )
    frame.write_parquet(tmp_path / "in.parquet")
    keep = {"keep_columns": ["kind", "tags"]}
    score(server, tmp_path / "in.parquet", tmp_path / "out", input=keep)
    found = pl.read_parquet(tmp_path / "out" / "part-*.parquet")
    assert found["results"].to_list() == wanted()
    assert found.select("query_id", "kind", "tags").equals(frame.select("query_id", "kind", "tags"))


def test_the_query_and_the_candidates_may_be_kept_too(server: Server, tmp_path: Path) -> None:
    rows = rows_of(pa.array(structs(), CANDIDATES))
    source = written(tmp_path / "in.parquet", rows)
    score(server, source, tmp_path / "out", input={"keep_columns": ["candidates", "query"]})
    found = output(tmp_path / "out")
    assert found.column("query").to_pylist() == QUERIES
    assert found.column("candidates").to_pylist() == structs()
    assert found.column("results").to_pylist() == wanted()


def test_a_kept_column_cannot_share_the_name_of_the_row_number(
    server: Server, tmp_path: Path
) -> None:
    rows = rows_of(pa.array(structs(), CANDIDATES)).rename_columns(["row", "query", "candidates"])
    source = written(tmp_path / "in.parquet", rows)
    before = server.received
    with pytest.raises(BatchrankError) as refusal:
        score(server, source, tmp_path / "out", input={"keep_columns": ["row"]})
    assert refusal.value.code in {ExitCode.INPUT_BAD, ExitCode.CONFIG_INVALID}
    assert server.received == before


# Files, folders, globs


def ids_of(inputs: list[str]) -> list[int]:
    """The query ids of all rows, in order, as the source reads them."""
    source = open_source(inputs, COLUMNS)
    chunks = source.chunks(0, source.total_rows, 10_000)
    return [value for chunk in chunks for value in chunk.kept.column(0).to_pylist()]


def numbered(path: Path, first: int, count: int = 2) -> Path:
    """A file whose ids are `first` and those after it."""
    ids = pa.array(range(first, first + count), pa.int64())
    return written(path, table(count, tag=path.name).set_column(0, "query_id", ids))


def test_files_are_read_in_the_order_given(tmp_path: Path) -> None:
    files = [numbered(tmp_path / f"{name}.parquet", first) for name, first in [("b", 0), ("a", 10)]]
    assert ids_of([str(path) for path in files]) == [0, 1, 10, 11]


def test_folders_and_globs_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name, first in [("b", 10), ("a", 0), ("deep/c", 20)]:
        numbered(tmp_path / "in" / f"{name}.parquet", first)
    assert ids_of([str(tmp_path / "in")]) == [0, 1, 10, 11, 20, 21]
    assert ids_of([str(tmp_path / "in" / "*.parquet")]) == [0, 1, 10, 11]
    assert ids_of([str(tmp_path / "in" / "**" / "*.parquet")]) == [0, 1, 10, 11, 20, 21]


def test_hidden_files_and_folders_of_a_folder_are_left_out(tmp_path: Path) -> None:
    for name in ["a", "_b", ".c", "_temporary/d", ".hidden/e"]:
        numbered(tmp_path / "in" / f"{name}.parquet", 0 if name == "a" else 100)
    (tmp_path / "in" / "_SUCCESS").touch()
    (tmp_path / "in" / "notes.txt").write_text("not Parquet")
    assert ids_of([str(tmp_path / "in")]) == [0, 1]


def test_a_folder_whose_own_name_begins_with_a_dot_is_read(tmp_path: Path) -> None:
    numbered(tmp_path / ".cache" / "a.parquet", 0)
    assert ids_of([str(tmp_path / ".cache")]) == [0, 1]


def test_a_file_name_with_pattern_characters_is_a_file_name(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a[1].parquet", 5)
    assert ids_of([str(path)]) == [5, 6]


def test_files_may_hold_their_candidates_in_different_forms(server: Server, tmp_path: Path) -> None:
    one = written(tmp_path / "a.parquet", rows_of(pa.array(structs(), CANDIDATES)))
    two = written(tmp_path / "b.parquet", rows_of(pa.array(TEXTS, pa.large_list(pa.string()))))
    score(server, [one, two], tmp_path / "out")
    found = output(tmp_path / "out").column("results").to_pylist()
    assert found == wanted() + wanted(ids=False)


def test_a_file_without_rows_between_others_changes_nothing(server: Server, tmp_path: Path) -> None:
    rows = rows_of(pa.array(structs(), CANDIDATES))
    files = [
        written(tmp_path / "a.parquet", rows),
        written(tmp_path / "b.parquet", rows.slice(0, 0)),
        written(tmp_path / "c.parquet", rows),
    ]
    score(server, files, tmp_path / "out")
    assert output(tmp_path / "out").column("results").to_pylist() == wanted() + wanted()


@pytest.mark.parametrize("row_group_size", [1, 97, 3000])
def test_rows_do_not_depend_on_the_size_of_row_groups(tmp_path: Path, row_group_size: int) -> None:
    rows = table(3000, tag="groups")
    path = written(tmp_path / "in.parquet", rows, row_group_size=row_group_size)
    source = open_source([str(path)], COLUMNS)
    read = [row for chunk in source.chunks(0, 3000, 1000) for row in chunk.rows]
    assert [row.index for row in read] == list(range(3000))
    assert [row.query for row in read] == rows.column("query").to_pylist()
    assert [list(row.texts) for row in read] == [
        [candidate["text"] for candidate in candidates]
        for candidates in rows.column("candidates").to_pylist()
    ]


@pytest.mark.parametrize(("first", "stop"), [(0, 1), (5, 5), (149, 151), (299, 300), (150, 300)])
def test_any_range_of_rows_can_be_read_alone(tmp_path: Path, first: int, stop: int) -> None:
    paths = [numbered(tmp_path / f"{at}.parquet", at, 100) for at in (0, 100, 200)]
    source = open_source([str(path) for path in paths], COLUMNS)
    chunks = list(source.chunks(first, stop, 60))
    assert [row.index for chunk in chunks for row in chunk.rows] == list(range(first, stop))
    ids = [value for chunk in chunks for value in chunk.kept.column("query_id").to_pylist()]
    assert ids == list(range(first, stop))


# Refusals


def refused(inputs: list[str], columns: Columns = COLUMNS) -> tuple[str, int]:
    """The message and code that opening and reading these inputs ends with."""
    with pytest.raises(BatchrankError) as refusal:
        source = open_source(inputs, columns)
        for _ in source.chunks(0, source.total_rows, 10_000):
            pass
    return str(refusal.value), refusal.value.code


def test_a_missing_column_is_refused_with_those_that_are_there(tmp_path: Path) -> None:
    path = written(tmp_path / "in.parquet", table(2).drop_columns("candidates"))
    assert refused([str(path)]) == (
        'in.parquet: no column "candidates"; it has query_id, query. See README, Input.',
        ExitCode.INPUT_BAD,
    )


def test_a_missing_kept_column_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "in.parquet", table(2))
    columns = Columns("query_id", "query", "candidates", ["lang"])
    assert refused([str(path)], columns) == (
        'in.parquet: no column "lang"; it has query_id, query, candidates. See README, Input.',
        ExitCode.INPUT_BAD,
    )


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.int64()),
        pa.string(),
        pa.list_(pa.struct([("doc_id", pa.string())])),
        pa.list_(pa.struct([("text", pa.binary())])),
        pa.list_(pa.struct([("doc_id", pa.float64()), ("text", pa.string())])),
        pa.list_(pa.list_(pa.string())),
        pa.map_(pa.string(), pa.string()),
    ],
    ids=str,
)
def test_candidates_of_another_type_are_refused(tmp_path: Path, kind: pa.DataType) -> None:
    path = written(tmp_path / "in.parquet", rows_of(pa.array([None], kind)))
    shown = pq.read_schema(path).field("candidates").type
    assert refused([str(path)]) == (
        f'in.parquet: column "candidates" is {shown}; expected list<struct<doc_id, text>> or '
        "list<string>. See README, Input.",
        ExitCode.INPUT_BAD,
    )


def test_a_query_that_is_no_text_is_refused(tmp_path: Path) -> None:
    rows = rows_of(pa.array(structs(), CANDIDATES), pa.array([1, 2, 3]))
    assert refused([str(written(tmp_path / "in.parquet", rows))]) == (
        'in.parquet: column "query" is int64; expected string.',
        ExitCode.INPUT_BAD,
    )


@pytest.mark.parametrize("content", [b"", b"PAR1", b"query,candidates\n" * 100, b"PAR1" * 50])
def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "in.parquet"
    path.write_bytes(content)
    message, code = refused([str(path)])
    assert message.startswith(f"{path}: not a readable Parquet file: ")
    assert "\n" not in message
    assert code == ExitCode.INPUT_BAD


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = written(tmp_path / "in.parquet", table(500))
    os.truncate(path, int(path.stat().st_size * share))
    message, code = refused([str(path)])
    assert message.startswith(f"{path}: not a readable Parquet file: ")
    assert code == ExitCode.INPUT_BAD


def test_a_damaged_page_is_refused_when_it_is_reached(tmp_path: Path) -> None:
    path = written(tmp_path / "in.parquet", table(2000), compression="zstd")
    whole = path.read_bytes()
    middle = len(whole) // 2  # texts are there; numbers would be read wrong without a word
    path.write_bytes(whole[:middle] + bytes(500) + whole[middle + 500 :])
    message, code = refused([str(path)])
    assert message.startswith(f"{path}: cannot be read: ")
    assert code == ExitCode.INPUT_BAD


def test_a_missing_file_folder_or_match_is_refused_with_66(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for argument, message in [
        (tmp_path / "none.parquet", "no such file or folder."),
        (tmp_path / "empty", "no *.parquet file in this folder."),
        (tmp_path / "none-*.parquet", "no file matches this pattern."),
    ]:
        assert refused([str(argument)]) == (f"{argument}: {message}", ExitCode.INPUT_MISSING)


@pytest.mark.parametrize("how", ["same name", "symlink", "hard link", "folder and file"])
def test_a_file_given_twice_is_refused(tmp_path: Path, how: str) -> None:
    path = written(tmp_path / "in" / "a.parquet", table(2))
    again = {
        "same name": path,
        "symlink": tmp_path / "b.parquet",
        "hard link": tmp_path / "c.parquet",
        "folder and file": tmp_path / "in",
    }[how]
    if how == "symlink":
        again.symlink_to(path)
    elif how == "hard link":
        os.link(path, again)
    message, code = refused([str(path), str(again)])
    assert message.endswith(": given twice; its rows would be scored and paid for twice.")
    assert code == ExitCode.INPUT_BAD


def test_files_whose_ids_differ_in_type_are_refused(tmp_path: Path) -> None:
    one = written(tmp_path / "a.parquet", table(2))
    two = written(tmp_path / "b.parquet", table(2).set_column(0, "query_id", pa.array(["x", "y"])))
    assert refused([str(one), str(two)]) == (
        'b.parquet: column "query_id" is string, and int64 in the first file; one output needs '
        "one type.",
        ExitCode.INPUT_BAD,
    )


@pytest.mark.parametrize("first", ["with", "without"])
def test_files_with_and_without_ids_are_refused(tmp_path: Path, first: str) -> None:
    with_ids = written(tmp_path / "with.parquet", table(2))
    without = written(tmp_path / "without.parquet", table(2).drop_columns("query_id"))
    files = [with_ids, without] if first == "with" else [without, with_ids]
    second, kinds = files[1].name, ("absent", "int64")
    mine, theirs = kinds if first == "with" else reversed(kinds)
    assert refused([str(path) for path in files]) == (
        f'{second}: column "query_id" is {mine}, and {theirs} in the first file; one output '
        "needs one type.",
        ExitCode.INPUT_BAD,
    )


def test_files_whose_kept_columns_differ_in_type_are_refused(tmp_path: Path) -> None:
    one = written(tmp_path / "a.parquet", table(1).append_column("n", pa.array([1])))
    two = written(tmp_path / "b.parquet", table(1).append_column("n", pa.array([1.0])))
    columns = Columns("query_id", "query", "candidates", ["n"])
    assert refused([str(one), str(two)], columns) == (
        'b.parquet: column "n" is double, and int64 in the first file; one output needs one type.',
        ExitCode.INPUT_BAD,
    )


def invalid(valid: pa.Array) -> pa.Array:
    """The texts with their first byte broken: no UTF-8 any more, and nobody has checked."""
    data = bytearray(valid.buffers()[2])
    data[0] = 0xFF
    buffers = [*valid.buffers()[:2], pa.py_buffer(bytes(data))]
    return pa.Array.from_buffers(valid.type, len(valid), buffers)


@pytest.mark.parametrize(
    "where",
    [
        "query",
        "text",
        pytest.param(
            "doc_id",
        ),
    ],
)
def test_text_that_is_not_utf_8_is_refused_without_quoting_it(tmp_path: Path, where: str) -> None:
    texts = {name: pa.array([f"secret {name}"]) for name in ("query", "text", "doc_id")}
    texts[where] = invalid(texts[where])
    items = pa.StructArray.from_arrays([texts["doc_id"], texts["text"]], ["doc_id", "text"])
    candidates = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), items)
    path = written(tmp_path / "in.parquet", rows_of(candidates, texts["query"]))
    message, code = refused([str(path)])
    assert message.startswith(f"{path}: ")
    assert "secret" not in message
    assert code == ExitCode.INPUT_BAD


def test_a_refusal_is_one_line_and_its_code_on_the_command_line(tmp_path: Path) -> None:
    path = written(tmp_path / "in.parquet", table(2).drop_columns("query"))
    done = program("plan", path)
    assert (done.returncode, done.stdout) == (65, "")
    assert done.stderr == (
        'batchrank: in.parquet: no column "query"; it has query_id, candidates. '
        "See README, Input.\n"
    )


# Memory

_WRITE = """
import sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
rows, documents, size, group = 20_000, 100, 400, int(sys.argv[2])
pool = np.random.default_rng(7).integers(97, 123, (4096, size), np.uint8)
chosen = np.random.default_rng(8).integers(0, 4096, rows * documents)
offsets = pa.py_buffer(np.arange(0, rows * documents * size + 1, size, np.int32))
texts = pa.StringArray.from_buffers(rows * documents, offsets, pa.py_buffer(pool[chosen]))
lists = pa.ListArray.from_arrays(np.arange(0, rows * documents + 1, documents, np.int32), texts)
table = pa.table({"query_id": np.arange(rows), "query": ["q"] * rows, "candidates": lists})
pq.write_table(table, sys.argv[1], row_group_size=group, use_dictionary=False,
               compression="lz4", write_statistics=False)
"""
_READ = """
import sys
from batchrank.input.schema import Columns
from batchrank.input.parquet_rows import open_source
source = open_source([sys.argv[1]], Columns("query_id", "query", "candidates", ()))
rows = sum(len(chunk.rows) for chunk in source.chunks(0, source.total_rows, 10_000))
assert rows == 20_000
status = open("/proc/self/status").read()
print(status.split("VmHWM:")[1].split()[0])
"""


def test_memory_does_not_follow_the_row_group(tmp_path: Path) -> None:
    """800 MB of text, as one row group and as twenty."""

    def peak(group: int) -> int:
        path = str(tmp_path / f"{group}.parquet")
        subprocess.run([sys.executable, "-c", _WRITE, path, str(group)], check=True)
        reader = [sys.executable, "-c", _READ, path]
        done = subprocess.run(reader, check=True, capture_output=True, text=True)
        os.unlink(path)
        return int(done.stdout)

    small, large = peak(1_000), peak(20_000)
    print(f"VmHWM: {small:,} kB in groups of 1,000 rows, {large:,} kB in one group of 20,000")
    assert large <= 1.25 * small


@pytest.mark.parametrize(
    ("dictionary", "said"),
    [(True, "more than 64 MB once it is decoded"), (False, "and a row may take 64")],
    ids=["not told", "told by the footer"],
)
def test_rows_too_large_to_be_read_are_refused(tmp_path: Path, dictionary: bool, said: str) -> None:
    """Texts that repeat take no room in the file, and the footer does not tell of it."""
    texts = ["a megabyte " * 95_000] * 70
    options = {"use_dictionary": dictionary, "data_page_size": 1 << 30}
    path = written(tmp_path / "in.parquet", one_row("query", texts), **options)
    with pytest.raises(InputBad, match=said):
        list(open_source([str(path)], COLUMNS).chunks(0, 1, 1))
