"""An id of any type has one form as text: in exports, judgments, joins, messages and frames."""

import datetime as dt
import json
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest
from helpers import Server, fast, inside, output, table, written
from hypothesis import given
from hypothesis import strategies as st

import batchrank
from batchrank.files.text_form import as_text, has_text_form

UUIDS = [UUID("f2345678-1234-5678-9234-567812345670"), UUID("12345678-1234-5678-1234-567812345671")]
MOMENT = dt.datetime(2024, 1, 2, 3, 4, 5)
MOMENTS = [MOMENT, MOMENT.replace(microsecond=60)]

Case = tuple[pa.Array, list[str]]
CASES: dict[str, Case] = {
    "string": (pa.array(["q 1", "é"]), ["q 1", "é"]),
    "large_string": (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
    "string_view": (pa.array(["a", "b"], pa.string_view()), ["a", "b"]),
    "dictionary": (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
    "int8": (pa.array([-1, 7], pa.int8()), ["-1", "7"]),
    "uint64": (pa.array([2**64 - 1, 7], pa.uint64()), ["18446744073709551615", "7"]),
    "double": (pa.array([7.0, 1.5]), ["7", "1.5"]),
    "bool": (pa.array([True, False]), ["true", "false"]),
    "uuid": (pa.array([one.bytes for one in UUIDS], pa.uuid()), [str(one) for one in UUIDS]),
    "binary": (pa.array([b"\xff\x00", b"ab"]), ["ff00", "6162"]),
    "large_binary": (pa.array([b"\xff\x00", b"ab"], pa.large_binary()), ["ff00", "6162"]),
    "binary_view": (pa.array([b"\xff\x00", b"ab"], pa.binary_view()), ["ff00", "6162"]),
    "fixed_size_binary": (pa.array([b"\xff\x00", b"ab"], pa.binary(2)), ["ff00", "6162"]),
    "decimal128": (
        pa.array([Decimal("1.50"), Decimal(-2)], pa.decimal128(9, 2)),
        ["1.50", "-2.00"],
    ),
    "decimal256": (pa.array([Decimal("1"), Decimal(-2)], pa.decimal256(60, 0)), ["1", "-2"]),
    "date32": (pa.array([dt.date(2024, 1, 2), dt.date(1, 1, 1)]), ["2024-01-02", "0001-01-01"]),
    "timestamp": (
        pa.array(MOMENTS, pa.timestamp("us")),
        ["2024-01-02T03:04:05", "2024-01-02T03:04:05.00006"],
    ),
    "timestamp of UTC": (
        pa.array(MOMENTS, pa.timestamp("us", "UTC")),
        ["2024-01-02T03:04:05Z", "2024-01-02T03:04:05.00006Z"],
    ),
    "timestamp of a zone": (
        pa.array(MOMENTS, pa.timestamp("ns", "Asia/Tokyo")),
        ["2024-01-02T03:04:05Z", "2024-01-02T03:04:05.00006Z"],
    ),
    "time": (
        pa.array([one.time() for one in MOMENTS], pa.time64("us")),
        ["03:04:05", "03:04:05.00006"],
    ),
}
ROWS = list(CASES)
KEYS = [name for name in CASES if name != "double"]
"""Fractions are no ids that equals are found by. (pyarrow writes no views inside structs.)"""
NO_IDS = {
    "list": pa.array([[1], [2]]),
    "struct": pa.array([{"a": 1}, {"a": 2}]),
    "map": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
    "duration": pa.array([dt.timedelta(1), dt.timedelta(2)]),
}


def with_ids(ids: pa.Array, tag: str = "ids") -> pa.Table:
    """Two rows with these query ids."""
    return table(2, tag=tag).set_column(0, "query_id", ids)


def exported(out: Path, form: str) -> list[str]:
    """The lines of an export that ends well."""
    done = inside("export", out, "--format", form)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ROWS)
def test_every_command_writes_a_query_id_alike(server: Server, tmp_path: Path, name: str) -> None:
    ids, texts = CASES[name]
    out = tmp_path / "out"
    path = written(tmp_path / "in.parquet", with_ids(ids))
    assert inside(*fast(server, out, path)).returncode == 0
    if not any(" " in text for text in texts):
        trec = [line.split(" ")[0] for line in exported(out, "trec")]
        assert trec == [text for text in texts for _ in range(3)]
    pairs = [line.split("\t")[0] for line in exported(out, "pairs")[1:]]
    assert pairs == [text for text in texts for _ in range(3)]
    found = [json.loads(line)["query_id"] for line in exported(out, "jsonl")]
    numbers = {"int8": [-1, 7], "uint64": [2**64 - 1, 7], "double": [7.0, 1.5]}
    assert found == {**numbers, "bool": [True, False]}.get(name, texts)


@pytest.mark.parametrize("name", ROWS)
def test_judgments_name_a_query_by_its_text(server: Server, tmp_path: Path, name: str) -> None:
    ids, texts = CASES[name]
    out = tmp_path / "out"
    path = written(tmp_path / "in.parquet", with_ids(ids))
    assert inside(*fast(server, out, path)).returncode == 0
    (tmp_path / "text.qrels").write_text(
        "".join(f"{text}\t0\td{row}-0\t1\n" for row, text in enumerate(texts))
    )
    same = pa.table({"query_id": ids, "doc_id": ["d0-0", "d1-0"], "relevance": [1, 1]})
    for qrels in (tmp_path / "text.qrels", written(tmp_path / "qrels.parquet", same)):
        done = inside("evaluate", out, "--qrels", qrels, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["queries"] == 2


@pytest.mark.parametrize("name", ROWS)
def test_pairs_in_parquet_keep_the_type(server: Server, tmp_path: Path, name: str) -> None:
    ids, _ = CASES[name]
    out = tmp_path / "out"
    path = written(tmp_path / "in.parquet", with_ids(ids))
    assert inside(*fast(server, out, path)).returncode == 0
    done = inside("export", out, "--format", "pairs", "-o", tmp_path / "pairs.parquet")
    assert (done.returncode, done.stderr) == (0, "")
    pairs = pa.parquet.read_table(tmp_path / "pairs.parquet")
    assert pairs.column("query_id").to_pylist() == [one for one in ids.to_pylist() for _ in "123"]
    assert inside("report", out).returncode == 0


@pytest.mark.parametrize("name", [name for name in KEYS if not name.endswith("view")])
def test_document_ids_are_their_text(server: Server, tmp_path: Path, name: str) -> None:
    ids, texts = CASES[name]
    structs = pa.StructArray.from_arrays([ids, pa.array(["one", "two"])], ["doc_id", "text"])
    lists = pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), structs)
    path = written(tmp_path / "in.parquet", table(1).set_column(2, "candidates", lists))
    assert inside(*fast(server, tmp_path / "out", path)).returncode == 0
    results = output(tmp_path / "out").column("results")[0].as_py()
    assert {one["index"]: one["doc_id"] for one in results} == dict(enumerate(texts))


@pytest.mark.parametrize("order", [[0, 0, 1, 1], [0, 1, 0, 1]], ids=["sorted", "shuffled"])
@pytest.mark.parametrize("name", KEYS)
def test_pairs_and_runs_are_joined_by_the_text(
    server: Server, tmp_path: Path, name: str, order: list[int]
) -> None:
    """The run has the type, and the corpus the text."""
    ids, texts = CASES[name]
    plain = ids.cast(pa.string()) if pa.types.is_string_view(ids.type) else ids
    plain = plain.cast(pa.binary()) if pa.types.is_binary_view(ids.type) else plain
    queries, documents = plain.take(pa.array(order)), plain.take(pa.array([0, 1, 1, 0]))
    if order[1]:
        documents = plain.take(pa.array([0, 1, 1, 0]))
    words = ["left", "right"]
    lines = pa.table(
        {
            "query_id": queries.cast(ids.type) if queries.type != ids.type else queries,
            "query": [words[row] for row in order],
            "doc_id": documents.cast(ids.type) if documents.type != ids.type else documents,
            "text": [words[at] for at in (0, 1, 1, 0)],
        }
    )
    pairs = written(tmp_path / "pairs.parquet", lines)
    assert inside(*fast(server, tmp_path / "pairs", pairs)).returncode == 0
    run = written(tmp_path / "run.parquet", lines.select(["query_id", "doc_id"]))
    beside = pa.table({"_id": texts, "text": words})
    texts_of = written(tmp_path / "texts.parquet", beside)
    done = inside(*fast(server, tmp_path / "run", run), "--queries", texts_of, "--corpus", texts_of)
    assert (done.returncode, done.stderr) == (0, "")
    for out in ("pairs", "run"):
        found = output(tmp_path / out)
        assert as_text(found.column("query_id").combine_chunks()).to_pylist() == texts
        for row in found.column("results").to_pylist():
            assert {one["doc_id"] for one in row} == set(texts)
    assert output(tmp_path / "run").equals(output(tmp_path / "pairs"))


@pytest.mark.parametrize("name", NO_IDS)
def test_what_has_no_text_is_no_id(server: Server, tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "in.parquet", with_ids(NO_IDS[name]))
    before = server.received
    for command in (fast(server, tmp_path / "out", path), ["plan", path]):
        done = inside(*command)
        assert done.returncode == 65
        assert done.stderr.count("\n") == 1
        assert "; expected ids: strings, numbers, dates or times, UUIDs or bytes." in done.stderr
    assert not (tmp_path / "out").exists()
    assert server.received == before


@pytest.mark.parametrize("name", [*ROWS, *NO_IDS])
def test_a_kept_column_of_any_type_is_written_or_refused_in_one_line(
    server: Server, tmp_path: Path, name: str
) -> None:
    column = CASES[name][0] if name in CASES else NO_IDS[name]
    out = tmp_path / "out"
    path = written(tmp_path / "in.parquet", table(2).append_column("k", column))
    assert inside(*fast(server, out, path), "--keep", "k").returncode == 0
    assert output(out).column("k").to_pylist() == column.to_pylist()
    found = [json.loads(line)["k"] for line in exported(out, "jsonl")]
    if name in CASES and not name.endswith(("binary", "view")):
        texts = [one if isinstance(one, str) else json.dumps(one) for one in found]
        assert [text.removesuffix(".0") for text in texts] == CASES[name][1]


def test_bytes_within_lists_are_refused_in_one_line(server: Server, tmp_path: Path) -> None:
    for at, name in enumerate(("uuid", "decimal256", "binary")):
        column = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), CASES[name][0])
        path = written(tmp_path / f"{at}.parquet", table(2).append_column("k", column))
        out = tmp_path / f"out{at}"
        assert inside(*fast(server, out, path), "--keep", "k").returncode == 0
        done = inside("export", out, "--format", "jsonl")
        assert done.returncode == 65
        assert "which has no form in JSON" in done.stderr


@pytest.mark.parametrize("name", ROWS)
def test_python_takes_and_gives_ids_of_any_type(name: str) -> None:
    ids, texts = CASES[name]
    found = batchrank.rerank(with_ids(ids), progress=False)["query_id"].to_list()
    values = ids.to_pylist()
    assert found in (texts, values, [one.encode() for one in texts])


def test_null_ids_stay_null(server: Server, tmp_path: Path) -> None:
    for at, kind in enumerate((pa.null(), pa.uuid(), pa.decimal256(50, 2), pa.string_view())):
        out = tmp_path / f"out{at}"
        path = written(tmp_path / f"{at}.parquet", with_ids(pa.nulls(2, kind)))
        assert inside(*fast(server, out, path)).returncode == 0
        assert [json.loads(line)["query_id"] for line in exported(out, "jsonl")] == [None, None]
        assert inside("export", out, "--format", "trec").returncode == 65
        assert inside("report", out).returncode == 0


def test_a_document_that_a_run_names_twice_is_told_by_its_text(
    server: Server, tmp_path: Path
) -> None:
    ids = pa.array([UUIDS[0].bytes] * 2, pa.uuid())
    run = written(tmp_path / "run.parquet", pa.table({"query_id": ids, "doc_id": ids}))
    texts = written(tmp_path / "t.parquet", pa.table({"_id": [str(UUIDS[0])], "text": ["x"]}))
    done = inside(*fast(server, tmp_path / "out", run), "--queries", texts, "--corpus", texts)
    assert done.returncode == 65
    assert f"query {UUIDS[0]} has document {UUIDS[0]} twice" in done.stderr


@given(st.lists(st.uuids()), st.lists(st.binary()))
def test_uuids_and_bytes_are_written_as_python_does(uuids: list[UUID], blobs: list[bytes]) -> None:
    column: Any = pa.array([one.bytes for one in uuids], pa.uuid())
    assert as_text(column).to_pylist() == [str(one) for one in uuids]
    assert as_text(pa.array(blobs, pa.binary())).to_pylist() == [one.hex() for one in blobs]


def test_every_type_has_a_form_or_is_refused_beforehand() -> None:
    for ids, texts in CASES.values():
        assert has_text_form(ids.type)
        assert as_text(ids).to_pylist() == texts
    assert not any(has_text_form(ids.type) for ids in NO_IDS.values())
