"""Pairs and ids are scored as the same data nested would be, to the byte, in bounded memory."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers import (
    Server,
    fast,
    inside,
    killed,
    output,
    part_bytes,
    started,
    table,
    until,
    written,
)
from pyarrow.parquet import ParquetWriter

from batchrank.input import Inputs, open_inputs
from batchrank.input.schema import Columns
from batchrank.input.spill import Nameless

Serve = Callable[..., Server]
PARTS = "[output]\nrows_per_part = 7\n"


def pairs_of(rows: pa.Table) -> pa.Table:
    """Nested rows as long pairs, in order."""
    lines = [
        {
            "query_id": row["query_id"],
            "query": row["query"],
            **candidate,
            **({"lang": row["lang"]} if "lang" in row else {}),
        }
        for row in rows.to_pylist()
        for candidate in row["candidates"]
    ]
    kinds = {"query_id": rows.schema.field("query_id").type}
    schema = [(name, kinds.get(name, pa.string())) for name in lines[0]]
    return pa.Table.from_pylist(lines, pa.schema(schema))


def shuffled(lines: pa.Table, seed: int = 7) -> pa.Table:
    """The lines in another order, those of one query keeping theirs."""
    queries = lines.column("query_id").to_pylist()
    turns = queries[:]
    Random(seed).shuffle(turns)
    waiting: dict[Any, list[int]] = {}
    for at, query in enumerate(queries):
        waiting.setdefault(query, []).append(at)
    return lines.take(pa.array([waiting[query].pop(0) for query in turns]))


def by_first(rows: pa.Table, lines: pa.Table) -> pa.Table:
    """The nested rows in the order in which their queries first come in the lines."""
    first: dict[Any, int] = {}
    for query in lines.column("query_id").to_pylist():
        first.setdefault(query, len(first))
    order = sorted(range(rows.num_rows), key=lambda at: first[rows.column("query_id")[at].as_py()])
    return rows.take(pa.array(order))


@pytest.fixture
def parts(tmp_path: Path) -> list[object]:
    """Options that make parts of seven rows."""
    path = tmp_path / "parts.toml"
    path.write_text(PARTS)
    return ["-c", path]


def scored(server: Server, out: Path, *arguments: object) -> dict[str, bytes]:
    """The parts of a run that ends well."""
    done = inside(*fast(server, out, *arguments))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert inside("verify", out).returncode == 0
    return part_bytes(out)


def refused(server: Server, out: Path, *arguments: object) -> str:
    """The line that a run ends with before it has sent anything or made an output."""
    before = server.received
    done = inside(*fast(server, out, *arguments))
    assert done.returncode == 65, done.stderr
    assert server.received == before
    assert not out.exists()
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("batchrank: ").removesuffix("\n")


# Pairs


@pytest.mark.parametrize("row_group_size", [1, 4, 1000])
@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_pairs_make_the_parts_that_nested_rows_make(
    server: Server, tmp_path: Path, parts: list[object], order: str, row_group_size: int
) -> None:
    rows = table(60, 5, tag="pairs").append_column(
        "lang", pa.array([f"l{n % 3}" for n in range(60)])
    )
    lines = pairs_of(rows)
    if order == "shuffled":
        lines = shuffled(lines)
    nested = written(tmp_path / "nested.parquet", by_first(rows, lines))
    long = written(tmp_path / "pairs.parquet", lines, row_group_size=row_group_size)
    keep = [*parts, "--keep", "lang"]
    assert scored(server, tmp_path / "long", long, *keep) == scored(
        server, tmp_path / "out", nested, *keep
    )


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
@pytest.mark.parametrize(
    "kind",
    [pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.large_string(), pa.int8()],
    ids=str,
)
def test_a_kept_column_is_what_it_was_in_the_first_line(
    tmp_path: Path, kind: pa.DataType, order: str
) -> None:
    lines = pairs_of(table(30, 5, tag="kept"))
    if order == "shuffled":
        lines = shuffled(lines)
    numbers = pa.array([str(n % 99) for n in range(150)])
    values = numbers.dictionary_encode() if pa.types.is_dictionary(kind) else numbers.cast(kind)
    path = written(tmp_path / "in.parquet", lines.append_column("k", values), row_group_size=40)
    columns = Columns("query_id", "query", "candidates", ["k"])
    chunks = list(open_inputs(Inputs([str(path)]), columns).chunks(0, 30, 7))
    ids = lines.column("query_id").to_pylist()
    found = {row["query_id"]: str(row["k"]) for chunk in chunks for row in chunk.kept.to_pylist()}
    assert found == {query: str(ids.index(query) % 99) for query in ids}
    assert chunks[0].kept.schema.field("k").type == kind
    pa.Table.from_batches([chunk.kept for chunk in chunks]).combine_chunks()


def test_queries_that_reach_over_files_are_one_row(
    server: Server, tmp_path: Path, parts: list[object]
) -> None:
    rows = table(30, 7, tag="files")
    lines = pairs_of(rows)
    files = [
        written(tmp_path / f"{at}.parquet", lines.slice(start, 50))
        for at, start in enumerate(range(0, len(lines), 50))
    ]
    nested = scored(server, tmp_path / "out", written(tmp_path / "n.parquet", rows), *parts)
    assert scored(server, tmp_path / "long", *files, *parts) == nested


def test_many_groups_are_read_from_any_row_on(tmp_path: Path) -> None:
    """Beyond 1,024 rows reading begins at a mark."""
    lines = pairs_of(table(5000, 2, tag="marks"))
    for at, each in enumerate((lines, shuffled(lines))):
        path = written(tmp_path / f"{at}.parquet", each, row_group_size=777)
        source = open_inputs(Inputs([str(path)]), Columns("query_id", "query", "candidates", []))
        assert source.total_rows == 5000
        whole = [row for chunk in source.chunks(0, 5000, 100) for row in chunk.rows]
        assert [row.index for row in whole] == list(range(5000))
        for first, stop in ((0, 1), (1023, 1025), (1024, 1100), (2047, 4097), (4999, 5000)):
            found = [row for chunk in source.chunks(first, stop, 100) for row in chunk.rows]
            assert found == whole[first:stop]


def test_many_buckets_give_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shuffled(pairs_of(table(700, 6, tag="buckets")))
    path = written(tmp_path / "in.parquet", lines, row_group_size=500)

    def read() -> tuple[list[Any], Any]:
        source = open_inputs(Inputs([str(path)]), Columns("query_id", "query", "candidates", []))
        chunks = list(source.chunks(0, 700, 50))
        late = [row for chunk in source.chunks(333, 481, 50) for row in chunk.rows]
        kept = pa.Table.from_batches([chunk.kept for chunk in chunks]).to_pylist()
        return [row for chunk in chunks for row in chunk.rows], (late, kept)

    one = read()
    monkeypatch.setattr("batchrank.input.spill._BUCKET_BYTES", 5_000)
    monkeypatch.setattr("batchrank.input.spill._PENDING_BYTES", 60_000)
    monkeypatch.setattr("batchrank.input.line_files.BATCH_LINES", 300)
    many = read()
    assert many == one
    assert [row.index for row in many[0]] == list(range(700))
    assert many[1][0] == many[0][333:481]


def test_pairs_without_ids_are_told_apart_by_their_query(server: Server, tmp_path: Path) -> None:
    rows = table(9, tag="no ids")
    lines = shuffled(pairs_of(rows))
    nested = by_first(rows, lines).drop_columns("query_id")
    long = written(tmp_path / "long.parquet", lines.drop_columns("query_id"))
    expected = scored(server, tmp_path / "out", written(tmp_path / "n.parquet", nested))
    assert scored(server, tmp_path / "long", long) == expected
    assert output(tmp_path / "long").column_names[0] == "row"


def test_pairs_under_other_names_and_types(server: Server, tmp_path: Path) -> None:
    rows = table(8, tag="other names")
    lines = shuffled(pairs_of(rows))
    nested = scored(
        server, tmp_path / "out", written(tmp_path / "n.parquet", by_first(rows, lines))
    )
    other = lines.rename_columns(["query_id", "question", "passage_id", "passage"])
    for name in ("question", "passage"):
        at = other.schema.get_field_index(name)
        column = other.column(name)
        kind = column.dictionary_encode() if name == "question" else column.cast(pa.string_view())
        other = other.set_column(at, name, kind)
    names = [
        "--query-column",
        "question",
        "--doc-id-column",
        "passage_id",
        "--text-column",
        "passage",
    ]
    long = written(tmp_path / "long.parquet", other)
    assert scored(server, tmp_path / "long", long, *names) == nested


def test_null_and_blank_pairs_are_what_they_are_nested(server: Server, tmp_path: Path) -> None:
    lines = pa.table(
        {
            "query_id": ["a", "a", "b", "c"],
            "query": pa.array(["what", "what", None, " "], pa.string()),
            "doc_id": pa.array(["1", None, "3", "4"], pa.string()),
            "text": pa.array(["yes", None, "x", "y"], pa.string()),
        }
    )
    scored(server, tmp_path / "out", written(tmp_path / "long.parquet", lines))
    assert output(tmp_path / "out").column("status").to_pylist() == [
        "partial",
        "skipped",
        "skipped",
    ]


def test_no_pairs_make_an_output_without_rows(server: Server, tmp_path: Path) -> None:
    rows = table(3, tag="none")
    nested = written(tmp_path / "n.parquet", rows.slice(0, 0))
    long = written(tmp_path / "long.parquet", pairs_of(rows).slice(0, 0))
    empty = "--allow-empty"
    expected = scored(server, tmp_path / "out", nested, empty)
    assert scored(server, tmp_path / "long", long, empty) == expected


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_pairs_killed_and_resumed_make_the_same_parts(
    serve: Serve, tmp_path: Path, parts: list[object], order: str
) -> None:
    server = serve('[[fault]]\nkind = "slow"\nseconds = 0.05\n')
    rows = table(80, 4, tag=f"killed {order}")
    lines = pairs_of(rows) if order == "sorted" else shuffled(pairs_of(rows))
    long, out = written(tmp_path / "long.parquet", lines), tmp_path / "long"
    run = [*fast(server, out, long), *parts, "--max-in-flight", 4]
    for part in (2, 6):
        process = started(*run)
        until((out / f"part-{part:05}.parquet").exists, f"part {part} is published")
        killed(process)
    assert inside(*run).returncode == 0
    ledger = server.ledger()
    # what is in flight and what came in the 50 ms before a commit, twice
    assert ledger["requests"] - ledger["unique"] <= 2 * (4 + 2 * 4)
    nested = written(tmp_path / "n.parquet", by_first(rows, lines))
    assert part_bytes(out) == scored(server, tmp_path / "out", nested, *parts)


def test_the_lines_that_wait_have_no_name(tmp_path: Path) -> None:
    file = Nameless()
    file.append(b"text")
    opened = os.fstat(file._descriptor)
    assert (opened.st_size, opened.st_nlink, opened.st_mode & 0o077) == (4, 0, 0)


_PEAK = """
import sys
from batchrank.input import Inputs, open_inputs
from batchrank.input.schema import Columns
columns = Columns("query_id", "query", "candidates", ())
source = open_inputs(Inputs([sys.argv[1]], *sys.argv[2:]), columns)
rows = sum(len(chunk.rows) for chunk in source.chunks(0, source.total_rows, 10_000))
assert rows == 6_000
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


def peak_mb(*paths: Path) -> int:
    """The most memory of a process that reads all of an input."""
    command = [sys.executable, "-c", _PEAK, *map(str, paths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout) // 1024


def test_memory_does_not_follow_the_input(tmp_path: Path) -> None:
    """600,000 lines of 1,000 characters, 600 MB, in no order; and the same by their ids."""
    order = np.random.default_rng(7).permutation(600_000)
    ids, documents = pa.array(order // 100), pa.array(order)
    (tmp_path / "corpus").mkdir()
    texts = ParquetWriter(
        tmp_path / "corpus" / "0.parquet", pa.schema({"_id": "int64", "text": "string"})
    )
    pairs: ParquetWriter | None = None
    for start in range(0, 600_000, 20_000):
        mine = documents.slice(start, 20_000)
        text = pa.array([f"{one} " * (1000 // len(f"{one} ")) for one in mine.to_pylist()])
        query = ids.slice(start, 20_000)
        chunk = pa.table(
            {"query_id": query, "query": query.cast("string"), "doc_id": mine, "text": text}
        )
        pairs = pairs or ParquetWriter(tmp_path / "pairs.parquet", chunk.schema, compression="none")
        pairs.write_table(chunk)
        texts.write_table(pa.table({"_id": mine, "text": text}))
    assert pairs is not None
    pairs.close()
    texts.close()
    assert (tmp_path / "pairs.parquet").stat().st_size > 500 << 20
    run = written(tmp_path / "run.parquet", pa.table({"query_id": ids, "doc_id": documents}))
    names = pa.array(range(6_000))
    queries = pa.table({"_id": names, "text": names.cast("string")})
    peaks = {
        "pairs": peak_mb(tmp_path / "pairs.parquet"),
        "ids": peak_mb(run, written(tmp_path / "queries.parquet", queries), tmp_path / "corpus"),
    }
    print(f"VmHWM: {peaks} MB")
    assert max(peaks.values()) <= 400


def test_plan_counts_pairs_as_rows(tmp_path: Path) -> None:
    rows = table(40, 6, tag="plan")
    lines = shuffled(pairs_of(rows))
    figures = []
    for name, each in (("n", by_first(rows, lines)), ("long", lines)):
        done = inside("plan", written(tmp_path / f"{name}.parquet", each), "--summary", "json")
        figures.append(json.loads(done.stdout))
    assert figures[0] == figures[1]
    assert figures[0]["rows"] == 40


def test_one_id_with_two_queries_is_refused(server: Server, tmp_path: Path) -> None:
    lines = pairs_of(table(6, 3, tag="two texts"))
    query = lines.column("query").to_pylist()
    query[10] = "secret other"
    wrong = lines.set_column(1, "query", pa.array(query))
    message = refused(server, tmp_path / "out", written(tmp_path / "in.parquet", wrong))
    assert message == (
        "in.parquet, line 11: its query_id has another query text on another line. One id, one "
        "query: give them different ids, or the same text."
    )
    mixed = written(tmp_path / "in.parquet", shuffled(wrong))
    assert "its query_id has another query text" in refused(server, tmp_path / "out", mixed)


def test_restart_with_bad_pairs_leaves_the_earlier_output(server: Server, tmp_path: Path) -> None:
    good = pairs_of(table(6, 3, tag="restart"))
    path, out = written(tmp_path / "in.parquet", good), tmp_path / "out"
    before = scored(server, out, path)
    query = good.column("query").to_pylist()
    written(path, good.set_column(1, "query", pa.array([*query[:10], "other", *query[11:]])))
    assert inside(*fast(server, out, path), "--restart").returncode == 65
    assert part_bytes(out) == before


def test_a_pair_without_an_id_is_refused(server: Server, tmp_path: Path) -> None:
    lines = pairs_of(table(3, tag="null id"))
    ids = pa.array([0, 0, 0, 1, None, 1, 2, 2, 2], pa.int64())
    path = written(tmp_path / "in.parquet", lines.set_column(0, "query_id", ids))
    assert refused(server, tmp_path / "out", path) == (
        "in.parquet, line 5: no query_id; every line needs one."
    )


@pytest.mark.parametrize(
    ("column", "kind", "expected"),
    [
        ("text", pa.binary(), "string"),
        ("query", pa.binary(), "string"),
        ("query_id", pa.float64(), "a string or an integer"),
        ("doc_id", pa.float64(), "a string or an integer"),
    ],
)
def test_a_column_of_another_type_is_refused(
    server: Server, tmp_path: Path, column: str, kind: pa.DataType, expected: str
) -> None:
    lines = pairs_of(table(2, tag="types"))
    at = lines.schema.get_field_index(column)
    path = written(tmp_path / "in.parquet", lines.set_column(at, column, pa.nulls(6, kind)))
    message = refused(server, tmp_path / "out", path)
    assert message == f'in.parquet: column "{column}" is {kind}; expected {expected}.'


def test_columns_of_no_shape_are_named_with_what_would_do(server: Server, tmp_path: Path) -> None:
    path = written(tmp_path / "in.parquet", pairs_of(table(2)).drop_columns(["query", "text"]))
    assert refused(server, tmp_path / "out", path) == (
        'in.parquet: its columns are query_id, doc_id. Expected rows ("query", "candidates"), '
        'pairs ("query", "text"), or a run ("query_id", "doc_id") beside --queries FILE and '
        "--corpus FILE. See README, Input."
    )


def test_text_that_is_no_text_is_refused(server: Server, tmp_path: Path) -> None:
    lines = pairs_of(table(2, tag="utf8"))
    bad = pa.array([b"\xff\xfe"] * 6, pa.binary()).view(pa.string())
    for column in ("query", "text"):
        at = lines.schema.get_field_index(column)
        path = written(tmp_path / "in.parquet", lines.set_column(at, column, bad))
        done = inside(*fast(server, tmp_path / column, path))
        assert done.returncode == 65
        assert done.stderr.startswith("batchrank: in.parquet: cannot be read: ")


# Ids


class Beir:
    """A run of ids beside its queries and its corpus, and the same data nested."""

    def __init__(self, folder: Path, rows: pa.Table, lines: pa.Table) -> None:
        self.folder = folder
        self.lines = lines.select(["query_id", "doc_id"])
        self.nested = written(folder / "nested.parquet", by_first(rows, lines))
        queries = dict(zip(lines["query_id"].to_pylist(), lines["query"].to_pylist(), strict=True))
        corpus = dict(zip(lines["doc_id"].to_pylist(), lines["text"].to_pylist(), strict=True))
        self.queries = {str(name): text for name, text in queries.items()}
        self.corpus = {**corpus, "unused": "never fetched"}

    def parquet(self) -> list[object]:
        """Everything as Parquet."""
        run = written(self.folder / "run.parquet", self.lines)
        tables = {
            name: pa.table({"_id": list(texts), "text": list(texts.values())})
            for name, texts in (("queries", self.queries), ("corpus", self.corpus))
        }
        paths = {name: self.folder / f"{name}.parquet" for name in tables}
        for name, each in tables.items():
            written(paths[name], each, row_group_size=5)
        return [run, "--queries", paths["queries"], "--corpus", paths["corpus"]]

    def jsonl(self, *, packed: bool = False) -> list[object]:
        """A TREC run beside JSONL as BEIR has it."""
        run = self.folder / "run.trec"
        run.write_text(
            "".join(
                f"{line['query_id']} Q0\t{line['doc_id']}  {rank} {1000 - rank}.5 bm25\n"
                for rank, line in enumerate(self.lines.to_pylist())
            )
        )
        arguments: list[object] = [run]
        for name, texts in (("queries", self.queries), ("corpus", self.corpus)):
            content = "".join(
                json.dumps({"_id": key, "text": text, "metadata": {"x": [1]}}) + "\n"
                for key, text in texts.items()
            ).encode()
            path = self.folder / f"{name}.jsonl{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
            arguments += [f"--{name}", path]
        return arguments


def beir(folder: Path, tag: str, rows: int = 40, *, mixed: bool = True) -> Beir:
    """A set of ids whose lines are mixed or sorted."""
    nested = table(rows, 5, tag=tag)
    nested = nested.set_column(0, "query_id", nested["query_id"].cast(pa.string()))
    lines = pairs_of(nested)
    return Beir(folder, nested, shuffled(lines) if mixed else lines)


@pytest.mark.parametrize("mixed", [False, True], ids=["sorted", "shuffled"])
@pytest.mark.parametrize("form", ["parquet", "jsonl", "packed"])
def test_ids_make_the_parts_that_nested_rows_make(
    server: Server, tmp_path: Path, parts: list[object], form: str, mixed: bool
) -> None:
    ids = beir(tmp_path, "ids", mixed=mixed)
    arguments = ids.parquet() if form == "parquet" else ids.jsonl(packed=form == "packed")
    expected = scored(server, tmp_path / "out", ids.nested, *parts)
    assert scored(server, tmp_path / "ids", *arguments, *parts) == expected


def test_integer_ids_find_their_texts(server: Server, tmp_path: Path) -> None:
    run = pa.table({"query_id": [7, 7, 8], "doc_id": [1, 2, 1]})
    texts = {"queries": {"_id": [8, 7], "text": ["eight", "seven"]}}
    texts["corpus"] = {"doc_id": [2, 1], "text": ["two", "one"]}
    paths = {n: written(tmp_path / f"{n}.parquet", pa.table(t)) for n, t in texts.items()}
    run_path = written(tmp_path / "run.parquet", run)
    options = ["--queries", paths["queries"], "--corpus", paths["corpus"]]
    scored(server, tmp_path / "out", run_path, *options)
    found = output(tmp_path / "out")
    assert found.column("query_id").to_pylist() == [7, 8]
    assert {r["doc_id"] for r in found.column("results")[0].as_py()} == {"1", "2"}


def order_of(out: Path) -> list[list[str]]:
    """Each row's document ids in the order of its candidates."""
    return [
        [result["doc_id"] for result in sorted(results, key=lambda one: one["index"])]
        for results in output(out).column("results").to_pylist()
    ]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, ["a", "b", "c", "d"]),
        ({"score": [1.0, 3.0, 2.0, 3.0]}, ["b", "d", "c", "a"]),
        ({"score": [1.0, None, 2.0, 3.0]}, ["d", "c", "a", "b"]),
        ({"rank": [4, 2, 1, 3]}, ["c", "b", "d", "a"]),
        ({"rank": [1, 1, 0, 1], "score": [5.0, 7.0, 1.0, 7.0]}, ["c", "b", "d", "a"]),
    ],
    ids=["as they stand", "score", "null score", "rank", "both"],
)
def test_candidates_come_by_rank_then_score_then_place(
    server: Server, tmp_path: Path, columns: dict[str, Any], expected: list[str]
) -> None:
    run = pa.table({"query_id": ["q"] * 4, "doc_id": list("abcd"), **columns})
    texts = {"queries": {"_id": ["q"], "text": ["which"]}}
    texts["corpus"] = {"_id": list("dcba"), "text": ["t d", "t c", "t b", "t a"]}
    paths = {n: written(tmp_path / f"{n}.parquet", pa.table(t)) for n, t in texts.items()}
    options = ["--queries", paths["queries"], "--corpus", paths["corpus"]]
    scored(server, tmp_path / "out", written(tmp_path / "run.parquet", run), *options)
    assert order_of(tmp_path / "out") == [expected]


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_title_stands_before_the_text(server: Server, tmp_path: Path, form: str) -> None:
    titles, texts = ["Wings", "", None, "Only"], ["lift", "drag", "flow ", None]
    records = [
        {"_id": f"d{n}", "title": title, "text": text}
        for n, (title, text) in enumerate(zip(titles, texts, strict=True))
    ]
    corpus = tmp_path / f"corpus.{form}"
    if form == "parquet":
        written(corpus, pa.Table.from_pylist(records))
    else:
        corpus.write_text("".join(json.dumps(record) + "\n" for record in records))
    queries = written(tmp_path / "q.parquet", pa.table({"_id": ["q"], "text": ["air"]}))
    run = written(
        tmp_path / "r.parquet",
        pa.table({"query_id": ["q"] * 4, "doc_id": [r["_id"] for r in records]}),
    )
    joined = ["Wings lift", "drag", "flow", "Only"]
    candidates = [[{"doc_id": f"d{n}", "text": text} for n, text in enumerate(joined)]]
    nested = pa.table({"query_id": ["q"], "query": ["air"], "candidates": candidates})
    assert scored(
        server, tmp_path / "ids", run, "--queries", queries, "--corpus", corpus
    ) == scored(server, tmp_path / "out", written(tmp_path / "n.parquet", nested))


def test_ids_killed_and_resumed_make_the_same_parts(
    serve: Serve, tmp_path: Path, parts: list[object]
) -> None:
    server = serve('[[fault]]\nkind = "slow"\nseconds = 0.05\n')
    ids = beir(tmp_path, "ids killed", 80)
    out = tmp_path / "ids"
    run = [*fast(server, out, *ids.jsonl()), *parts, "--max-in-flight", 4]
    process = started(*run)
    until((out / "part-00003.parquet").exists, "four parts are published")
    killed(process)
    assert inside(*run).returncode == 0
    assert part_bytes(out) == scored(server, tmp_path / "out", ids.nested, *parts)


@pytest.mark.parametrize("which", ["queries.jsonl", "corpus.jsonl", "run.trec"])
def test_another_file_of_any_kind_is_another_input(
    server: Server, tmp_path: Path, which: str
) -> None:
    ids = beir(tmp_path, f"changed {which}", 5)
    arguments = ids.jsonl()
    scored(server, tmp_path / "out", *arguments)
    content = (tmp_path / which).read_text().replace("row 3", "row 9").replace(" bm25", " bm52")
    content = content.replace("query 3", "query 9")
    (tmp_path / which).write_text(content)
    done = inside(*fast(server, tmp_path / "out", *arguments))
    assert done.returncode == 65
    assert f"begun with another input ({which} is not what it was)" in done.stderr


def test_a_corpus_that_lacks_documents_is_refused_by_their_names(
    server: Server, tmp_path: Path
) -> None:
    ids = beir(tmp_path, "lacks")
    for name in ("d3-1", "d5-2", "d7-0", "d9-4"):
        del ids.corpus[name]
    message = refused(server, tmp_path / "out", *ids.jsonl())
    assert message.startswith(
        f"{tmp_path / 'corpus.jsonl'}: lacks 4 of the 200 documents that the run names: d"
    )
    assert message.endswith(", ….")
    assert sum(name in message for name in ("d3-1", "d5-2", "d7-0", "d9-4")) == 3


def test_a_run_with_unknown_queries_is_refused_by_their_names(
    server: Server, tmp_path: Path
) -> None:
    ids = beir(tmp_path, "unknown")
    del ids.queries["17"]
    message = refused(server, tmp_path / "out", *ids.parquet())
    assert message == (
        f"{tmp_path / 'queries.parquet'}: lacks 1 of the 40 queries that the run names: 17."
    )


def test_one_query_id_with_two_texts_is_refused(server: Server, tmp_path: Path) -> None:
    ids = beir(tmp_path, "two")
    arguments = ids.jsonl()
    with (tmp_path / "queries.jsonl").open("a") as file:
        file.write('{"_id": "3", "text": "secret"}\n')
    assert refused(server, tmp_path / "out", *arguments) == (
        "queries.jsonl: id 3 comes twice, with two texts."
    )


def test_a_document_twice_under_one_query_is_refused(server: Server, tmp_path: Path) -> None:
    for mixed in (False, True):
        ids = beir(tmp_path, "twice", mixed=mixed)
        twice = pa.table({"query_id": ["3"], "doc_id": ["d3-2"]})
        at = ids.lines["query_id"].to_pylist().index("3")
        ids.lines = pa.concat_tables([ids.lines.slice(0, at), twice, ids.lines.slice(at)])
        assert refused(server, tmp_path / "out", *ids.jsonl()) == (
            "run.trec: query 3 has document d3-2 twice. A run names each document of a query once."
        )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("q Q0 d 1 2.0\n", None),
        ("q Q0 d 1 2.0 tag\nq Q0 d 1\n", "run.trec, line 2: expected the six columns"),
        ("q Q0 d one 2.0 tag\n", "run.trec, line 1: expected the six columns of a TREC run: "),
    ],
)
def test_a_run_that_is_no_run_is_refused(
    server: Server, tmp_path: Path, content: str, expected: str | None
) -> None:
    ids = beir(tmp_path, "no run", 3)
    arguments = ids.jsonl()
    (tmp_path / "run.trec").write_text(content)
    message = refused(server, tmp_path / "out", *arguments)
    assert message.startswith(expected or f"{tmp_path / 'queries.jsonl'}: lacks 1 of the 1 queries")


@pytest.mark.parametrize(
    "line", ["{", '{"text": "x"}', '{"_id": 1.5, "text": "x"}', '{"_id": "a"}']
)
def test_a_line_of_jsonl_that_does_not_fit_is_refused(
    server: Server, tmp_path: Path, line: str
) -> None:
    ids = beir(tmp_path, "jsonl", 3)
    arguments = ids.jsonl()
    with (tmp_path / "corpus.jsonl").open("a") as file:
        file.write(line + "\n")
    assert refused(server, tmp_path / "out", *arguments) == (
        'corpus.jsonl, line 17: expected an object with "_id" and "text", as BEIR has them.'
    )


def test_one_option_without_the_other_is_refused(server: Server, tmp_path: Path) -> None:
    arguments = beir(tmp_path, "one", 3).parquet()
    message = refused(server, tmp_path / "out", *arguments[:3])
    assert message == "--queries is given without --corpus: a run of ids needs both."
    message = refused(server, tmp_path / "out", arguments[0], *arguments[3:])
    assert message == "--corpus is given without --queries: a run of ids needs both."


def test_a_trec_run_alone_is_refused_with_what_it_lacks(server: Server, tmp_path: Path) -> None:
    run = beir(tmp_path, "alone", 3).jsonl()[0]
    assert refused(server, tmp_path / "out", run) == (
        "run.trec: not Parquet. If it is a TREC run, pass --queries FILE and --corpus FILE "
        "beside it."
    )


def test_a_folder_may_hold_the_corpus(server: Server, tmp_path: Path) -> None:
    ids = beir(tmp_path, "folder", 6)
    run, _, queries, _, corpus = ids.jsonl()
    content = Path(str(corpus)).read_text().splitlines(keepends=True)
    for name, lines in (("b", content[:7]), ("a", content[7:])):
        (tmp_path / "docs").mkdir(exist_ok=True)
        (tmp_path / "docs" / f"{name}.jsonl").write_text("".join(lines))
    expected = scored(server, tmp_path / "out", ids.nested)
    options = ["--queries", queries, "--corpus", tmp_path / "docs"]
    assert scored(server, tmp_path / "ids", run, *options) == expected
