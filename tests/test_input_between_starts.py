"""Between two starts a file may change behind the same footer: published rows must be the same."""

import os
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
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

ROWS, PART = 60, 10
SLOW = '[[fault]]\nkind = "slow"\nseconds = 0.05\n'
PLAIN = {"compression": "none", "use_dictionary": False, "write_statistics": False}
MODIFIED = "modified since, and the rows of part-"


def stable(path: Path, rows: pa.Table) -> Path:
    """A file that has the same footer when what is read from it is written again."""
    return written(path, pq.read_table(written(path, rows)), **PLAIN)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Rows with a kept column of numbers, one of which is none, and ids in a dictionary."""
    rows = table(ROWS, tag="start").set_column(
        0, "query_id", pa.array([f"q{row:03}" for row in range(ROWS)]).dictionary_encode()
    )
    kept = pa.array([nan if row % 7 == 0 else row / 2 for row in range(ROWS)])
    return stable(tmp_path / "in.parquet", rows.append_column("kept", kept))


@pytest.fixture
def options(tmp_path: Path) -> list[object]:
    path = tmp_path / "parts.toml"
    path.write_text(f"[output]\nrows_per_part = {PART}\n")
    return ["-c", path, "--max-in-flight", 2, "--keep", "kept"]


def changed(source: Path, column: str, change: Callable[[Any], Any], first: int, stop: int) -> None:
    """Write the file again with other values in some rows; nobody sees that from outside."""
    before, rows = source.read_bytes(), pq.read_table(source)
    values = rows[column].to_pylist()
    values[first:stop] = map(change, values[first:stop])
    new = rows.set_column(
        rows.column_names.index(column), column, pa.array(values, rows.schema.field(column).type)
    )
    written(source, new, **PLAIN)
    after, size = source.read_bytes(), int.from_bytes(before[-8:-4], "little")
    assert len(after) == len(before) and after[-size:] == before[-size:] and after != before
    os.utime(source)


def texts(candidates: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{**one, "text": one["text"].replace("text", "TEXT")} for one in candidates]


def names(candidates: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{**one, "doc_id": "e" + one["doc_id"][1:]} for one in candidates]


CHANGES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "query": ("query", lambda query: query.replace("query", "QUERY")),
    "text": ("candidates", texts),
    "doc_id": ("candidates", names),
    "id": ("query_id", lambda name: "r" + name[1:]),
    "kept": ("kept", lambda number: 99.0 if number != number else -number),
}


def refused(done: Any, server: Server, before: int) -> None:
    assert (done.returncode, done.stderr.count("\n")) == (65, 1), done.stderr
    assert MODIFIED in done.stderr
    assert server.received == before


def killed_after(server: Server, out: Path, *command: object) -> None:
    """Begin a run, and kill it once two of its parts are published."""
    process = started(*command)
    until(lambda: len(list(out.glob("part-*.parquet"))) >= 2, "two parts are there")
    assert killed(process) == -9


@pytest.mark.parametrize("what", CHANGES)
def test_a_published_row_that_changed_is_seen_when_the_run_goes_on(
    serve: Callable[..., Server], source: Path, tmp_path: Path, options: list[object], what: str
) -> None:
    server, out = serve(SLOW), tmp_path / "out"
    killed_after(server, out, *fast(server, out, source), *options)
    before, parts = server.received, part_bytes(out)
    changed(source, *CHANGES[what], 5, 6)
    refused(inside(*fast(server, out, source), *options), server, before)
    assert part_bytes(out) == parts


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("setting", ["", "reusable = false", "top_n = 1"])
def test_a_published_row_that_changed_is_seen_of_a_finished_output(
    server: Server, source: Path, tmp_path: Path, options: list[object], what: str, setting: str
) -> None:
    (tmp_path / "parts.toml").write_text(f"[output]\nrows_per_part = {PART}\n{setting}\n")
    command = [*fast(server, tmp_path / "out", source), *options]
    assert inside(*command).returncode == 0
    before = server.received
    column, change = CHANGES[what]
    changed(source, column, change, 0 if what == "doc_id" else 55, 60)
    refused(inside(*command), server, before)
    refused(inside(*command), server, before)


def test_rows_that_are_not_published_may_change(
    serve: Callable[..., Server], source: Path, tmp_path: Path, options: list[object]
) -> None:
    server, out = serve(SLOW), tmp_path / "out"
    command = [*fast(server, out, source), *options]
    killed_after(server, out, *command)
    changed(source, *CHANGES["query"], 55, 60)
    changed(source, *CHANGES["id"], 55, 60)
    assert inside(*command).returncode == 0
    fresh = tmp_path / "fresh"
    assert inside(*fast(server, fresh, source), *options).returncode == 0
    assert output(out)["results"] == output(fresh)["results"]
    assert output(out)["query_id"].to_pylist()[-5:] == [f"r{row:03}" for row in range(55, 60)]


def test_a_file_that_was_only_touched_goes_on_and_is_read_once(
    serve: Callable[..., Server], source: Path, tmp_path: Path, options: list[object]
) -> None:
    server, out = serve(SLOW), tmp_path / "out"
    command = [*fast(server, out, source), *options]
    killed_after(server, out, *command)
    os.utime(source)
    assert inside(*command).returncode == 0
    assert server.received < ROWS + PART, "a published part is paid again"
    before, log = server.received, [*command, "--log-level", "info"]
    os.utime(source)
    said = inside(*log).stderr
    assert "published rows are compared" in said
    assert "published rows are compared" not in inside(*log).stderr
    assert server.received == before


def test_of_several_files_those_that_were_modified_are_compared(
    server: Server, source: Path, tmp_path: Path, options: list[object]
) -> None:
    rows = pq.read_table(source)
    for place in range(3):
        stable(tmp_path / "in" / f"{place}.parquet", rows.slice(place * 20, 20))
    command = [*fast(server, tmp_path / "out", tmp_path / "in"), *options]
    assert inside(*command).returncode == 0
    os.utime(tmp_path / "in" / "0.parquet")
    assert inside(*command).returncode == 0
    changed(tmp_path / "in" / "2.parquet", *CHANGES["text"], 19, 20)
    done = inside(*command)
    assert done.returncode == 65 and "2.parquet: modified since" in done.stderr
    assert "part-00005.parquet" in done.stderr


@pytest.mark.parametrize("sort", [True, False], ids=["together", "scattered"])
def test_pairs_are_compared_as_the_rows_that_they_make(
    server: Server, tmp_path: Path, options: list[object], sort: bool
) -> None:
    pairs = [
        {"query_id": str(row["query_id"]), "query": row["query"], **one, "kept": 0.5}
        for row in table(ROWS, 2, tag="pairs").to_pylist()
        for one in row["candidates"]
    ]
    pairs = pairs if sort else pairs[::2] + pairs[1::2]
    source = stable(tmp_path / "pairs.parquet", pa.Table.from_pylist(pairs))
    command = [*fast(server, tmp_path / "out", source), *options]
    assert inside(*command).returncode == 0
    os.utime(source)
    assert inside(*command).returncode == 0
    before = server.received
    changed(source, "text", lambda text: text.replace("text", "TEXT"), 100, 101)
    refused(inside(*command), server, before)


def test_rows_that_share_a_query_are_compared_too(
    server: Server, tmp_path: Path, options: list[object]
) -> None:
    rows = table(ROWS, tag="united").append_column("kept", pa.array([1.0] * ROWS))
    queries = pa.array([f"query {row // 3:02}" for row in range(ROWS)])
    source = stable(tmp_path / "in.parquet", rows.set_column(1, "query", queries))
    with (tmp_path / "parts.toml").open("a") as file:
        file.write("[endpoint]\nunite_rows = true\n")
    command = [*fast(server, tmp_path / "out", source), *options]
    assert inside(*command).returncode == 0
    os.utime(source)
    assert inside(*command).returncode == 0
    before = server.received
    changed(source, *CHANGES["text"], 31, 32)
    refused(inside(*command), server, before)


def test_a_shard_compares_its_own_parts_and_a_finished_whole_all(
    server: Server, source: Path, tmp_path: Path, options: list[object]
) -> None:
    out = tmp_path / "out"
    shards = [[*fast(server, out, source), *options, "--shard", f"{n}/2"] for n in (0, 1)]
    assert inside(*shards[0]).returncode == 0
    changed(source, *CHANGES["text"], 15, 16)
    assert inside(*shards[0]).returncode == 0, "row 15 is of part 1, the other shard's"
    assert inside(*shards[1]).returncode == 0
    assert (out / "_SUCCESS").exists()
    before = server.received
    changed(source, *CHANGES["query"], 15, 16)
    for command in shards:
        refused(inside(*command), server, before)
