"""Part files that differ in what loses no value are one table, and so are folders `key=value`."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from helpers import Server, fast, inside, output, part_bytes, table, written
from hypothesis import given
from hypothesis import strategies as st

from batchrank.input import Inputs, open_inputs
from batchrank.input.input_columns import one_type
from batchrank.input.schema import Columns


def pairs(first: int) -> pa.Table:
    """The four pairs of two queries."""
    return pa.table(
        {
            "query_id": pa.array([first, first, first + 1, first + 1], pa.int64()),
            "query": [f"query {first}"] * 2 + [f"query {first + 1}"] * 2,
            "doc_id": ["a", "b"] * 2,
            "text": ["one", "two"] * 2,
            "k": pa.array([first, None, first + 1, None], pa.int64()),
        }
    )


def rows(first: int) -> pa.Table:
    """Two rows."""
    numbered = table(2, tag=f"rows {first}")
    numbered = numbered.set_column(0, "query_id", pa.array([first, first + 1], pa.int64()))
    return numbered.append_column("k", pa.array([first, None], pa.int64()))


def changed(data: pa.Table, name: str, kind: pa.DataType, nullable: bool = True) -> pa.Table:
    """The table with a column of another type."""
    at = data.schema.get_field_index(name)
    column = data.column(name).combine_chunks()
    if pa.types.is_null(kind):
        column = pa.nulls(len(column))
    elif pa.types.is_dictionary(kind):
        column = column.cast(pa.string()).dictionary_encode()
    else:
        column = column.cast(kind)
    return data.set_column(at, pa.field(name, kind, nullable=nullable), column)


def scored(server: Server, out: Path, *arguments: object) -> pa.Table:
    """The output of a run that ends well."""
    done = inside(*fast(server, out, *arguments))
    assert (done.returncode, done.stderr) == (0, "")
    assert inside("verify", out).returncode == 0
    return output(out)


DICTIONARY = pa.dictionary(pa.int32(), pa.string())
TEXTS = [pa.string(), pa.large_string(), pa.string_view(), DICTIONARY]
SAME = [
    ("query", pa.large_string()),
    ("query", pa.string_view()),
    ("query", DICTIONARY),
    ("query_id", pa.int32()),
    ("query_id", pa.uint8()),
    ("k", pa.int32()),
    ("k", pa.null()),
]


@pytest.mark.parametrize("order", [1, -1], ids=["first", "second"])
@pytest.mark.parametrize(("name", "kind"), SAME, ids=str)
@pytest.mark.parametrize("shape", ["pairs", "rows"])
def test_files_whose_columns_differ_give_what_files_alike_give(
    server: Server, tmp_path: Path, shape: str, name: str, kind: pa.DataType, order: int
) -> None:
    make = pairs if shape == "pairs" else rows
    other, same = changed(make(3), name, kind), make(1)
    alike = make(3)
    if pa.types.is_null(kind):
        alike = alike.set_column(
            alike.schema.get_field_index("k"), "k", pa.nulls(len(alike), pa.int64())
        )
    for folder, tables in (("in", [same, other]), ("alike", [same, alike])):
        for at, data in enumerate(tables[::order]):
            written(tmp_path / folder / f"{at}.parquet", data)
    expected = scored(server, tmp_path / "expected", tmp_path / "alike", "--keep", "k")
    found = scored(server, tmp_path / "out", tmp_path / "in", "--keep", "k")
    assert found.to_pylist() == expected.to_pylist()
    assert found.schema == expected.schema


@pytest.mark.parametrize("order", [1, -1], ids=["first", "second"])
@pytest.mark.parametrize("shape", ["pairs", "rows", "scattered"])
def test_files_that_differ_in_nullability_are_one_table(
    server: Server, tmp_path: Path, shape: str, order: int
) -> None:
    tables = [rows(1), rows(3)] if shape == "rows" else [pairs(1), pairs(3)]
    if shape == "scattered":  # the queries of both files come in turns
        tables = [tables[0].take([0, 2]), pa.concat_tables([tables[1], tables[0].take([1, 3])])]
    tables = [one.drop_columns("k") for one in tables]
    fields = [field.with_nullable(False) for field in tables[1].schema]
    strict = tables[1].cast(pa.schema(fields))
    for folder, second in (("in", strict), ("alike", tables[1])):
        for at, data in enumerate([tables[0], second][::order]):
            written(tmp_path / folder / f"{at}.parquet", data)
    scored(server, tmp_path / "expected", tmp_path / "alike")
    scored(server, tmp_path / "out", tmp_path / "in")
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "expected")


@pytest.mark.parametrize("kind", TEXTS, ids=str)
def test_ids_of_any_kind_of_string_are_one_column(
    server: Server, tmp_path: Path, kind: pa.DataType
) -> None:
    for at, mine in enumerate([pa.string(), kind, pa.string()]):
        named = changed(changed(pairs(10 * at), "query_id", pa.string()), "doc_id", mine)
        written(tmp_path / "in" / f"{at}.parquet", changed(named, "query_id", mine))
    found = scored(server, tmp_path / "out", tmp_path / "in")
    assert found.column("query_id").to_pylist() == ["0", "1", "10", "11", "20", "21"]
    assert found.schema.field("query_id").type == pa.string()


def test_a_run_in_files_that_differ_is_one_run(server: Server, tmp_path: Path) -> None:
    names = ["query_id", "doc_id"]
    written(tmp_path / "run" / "0.parquet", pairs(1).select(names))
    other = changed(changed(pairs(3), "query_id", pa.int16()), "doc_id", pa.large_string())
    written(tmp_path / "run" / "1.parquet", other.select(names))
    queries = pa.table({"_id": ["1", "2", "3", "4"], "text": [f"query {n}" for n in "1234"]})
    corpus = pa.table({"_id": ["a", "b"], "text": ["one", "two"]})
    beside = ["--queries", written(tmp_path / "q.parquet", queries)]
    beside += ["--corpus", written(tmp_path / "c.parquet", corpus)]
    found = scored(server, tmp_path / "out", tmp_path / "run", *beside)
    assert found.column("query_id").to_pylist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([pa.int64(), pa.string()], None),
        ([pa.int64(), pa.float64()], None),
        ([pa.uint64(), pa.int64()], None),
        ([pa.uint32(), pa.int32()], pa.int64()),
        ([pa.float32(), pa.float64()], pa.float64()),
        ([pa.binary(3), pa.string()], None),
        ([pa.binary(3), pa.binary(4)], pa.binary()),
        ([pa.decimal128(5, 2), pa.decimal128(9, 4)], pa.decimal128(9, 4)),
        ([pa.timestamp("ms"), pa.timestamp("us")], pa.timestamp("us")),
        ([pa.timestamp("ms", "UTC"), pa.timestamp("us")], None),
        ([pa.date32(), pa.timestamp("us")], None),
        ([pa.null(), pa.uuid(), pa.null()], pa.uuid()),
        ([pa.null(), pa.null()], pa.null()),
        ([pa.list_(pa.int32()), pa.list_(pa.int64())], pa.list_(pa.int64())),
        ([pa.list_(pa.int32()), pa.list_(pa.string())], None),
    ],
    ids=str,
)
def test_the_one_type_of_many(kinds: Sequence[pa.DataType], expected: pa.DataType | None) -> None:
    assert one_type(kinds) == expected
    assert one_type(kinds[::-1]) == expected


@given(st.lists(st.sampled_from([pa.int8(), pa.int16(), pa.uint8(), pa.uint32()]), min_size=1))
def test_no_integer_is_too_large_for_the_one_type(kinds: list[pa.DataType]) -> None:
    together = one_type(kinds)
    for kind in kinds:
        low, high = (0, 2**kind.bit_width - 1) if "u" in str(kind) else (-(2**7), 2**7 - 1)
        values = pa.array([low, high], kind)
        assert values.cast(together).to_pylist() == [low, high]


def test_types_that_are_two_are_refused_before_anything_is_sent(
    server: Server, tmp_path: Path
) -> None:
    written(tmp_path / "in" / "0.parquet", rows(1))
    written(tmp_path / "in" / "1.parquet", changed(rows(3), "k", pa.string()))
    before = server.received
    for command in (fast(server, tmp_path / "out", tmp_path / "in"), ["plan", tmp_path / "in"]):
        done = inside(*command, "--keep", "k")
        assert done.returncode == 65
        assert '1.parquet: column "k" is string, and int64 in the first file' in done.stderr
    assert server.received == before
    assert not (tmp_path / "out").exists()


# Folders that are called `key=value`


def partitioned(folder: Path) -> Path:
    """Rows of three days in two languages."""
    for at, (day, lang) in enumerate([("1", "en"), ("2", "de"), ("10", "a%2Fb")]):
        written(folder / f"day={day}" / f"lang={lang}" / "part-0.parquet", rows(10 * at))
    return folder


def test_folders_give_columns_that_can_be_kept(server: Server, tmp_path: Path) -> None:
    folder = partitioned(tmp_path / "in")
    found = scored(server, tmp_path / "out", folder, "--keep", "day", "--keep", "lang")
    assert found.schema.field("day").type == pa.int64()
    assert dict(zip(found["query_id"].to_pylist(), found["day"].to_pylist(), strict=True)) == {
        **{0: 1, 1: 1},
        **{10: 2, 11: 2},
        **{20: 10, 21: 10},
    }
    assert set(found["lang"].to_pylist()) == {"en", "de", "a/b"}
    by_pattern = scored(
        server, tmp_path / "2", folder / "*" / "*" / "*.parquet", "--keep", "day", "--keep", "lang"
    )
    assert by_pattern.equals(found)


def test_folders_give_ids_and_priorities(server: Server, tmp_path: Path) -> None:
    for day in ("1", "2"):
        one = rows(1).slice(0, 1).drop_columns("query_id")
        written(tmp_path / "in" / f"day={day}" / "0.parquet", one)
    found = scored(
        server, tmp_path / "out", tmp_path / "in", "--id-column", "day", "--priority-column", "day"
    )
    assert found.column("day").to_pylist() == [1, 2]


def test_the_rows_of_the_highest_folder_go_first(tmp_path: Path) -> None:
    folder = partitioned(tmp_path / "in")
    columns = Columns("query_id", "query", "candidates", (), priority="day")
    priorities = [list(some) for some in open_inputs(Inputs([str(folder)]), columns).priorities()]
    assert priorities == [[1, 1], [10, 10], [2, 2]]  # by path, as the rows come


def test_folders_give_columns_to_pairs(server: Server, tmp_path: Path) -> None:
    for at, day in enumerate(["2024-01-01", "__HIVE_DEFAULT_PARTITION__"]):
        written(tmp_path / "in" / f"day={day}" / "0.parquet", pairs(10 * at))
    found = scored(server, tmp_path / "out", tmp_path / "in", "--keep", "day")
    assert found.column("day").to_pylist() == ["2024-01-01"] * 2 + [None] * 2
    assert found.schema.field("day").type == pa.string()


def test_a_value_that_only_looks_like_a_number_stays_text(server: Server, tmp_path: Path) -> None:
    for day in ("007", "8"):
        written(tmp_path / "in" / f"day={day}" / "0.parquet", rows(int(day)))
    found = scored(server, tmp_path / "out", tmp_path / "in", "--keep", "day")
    assert set(found.column("day").to_pylist()) == {"007", "8"}


def test_a_column_of_the_file_goes_before_its_folders(server: Server, tmp_path: Path) -> None:
    written(tmp_path / "in" / "k=9" / "0.parquet", rows(1))
    found = scored(server, tmp_path / "out", tmp_path / "in", "--keep", "k")
    assert found.column("k").to_pylist() == [1, None]


def test_a_folder_without_the_key_is_refused(server: Server, tmp_path: Path) -> None:
    folder = partitioned(tmp_path / "in")
    written(folder / "other.parquet", rows(90))
    done = inside(*fast(server, tmp_path / "out", folder), "--keep", "lang")
    assert done.returncode == 65
    assert 'no column "lang"' in done.stderr
