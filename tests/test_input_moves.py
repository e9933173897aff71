"""A file of the input that changes while a run reads it ends the run; no part has a row of both."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import Server, ended, fast, inside, output, part_bytes, started, table, until, written

SLOW = '[[fault]]\nkind = "slow"\nseconds = 0.05\n'
ROWS, PART, FILES = 120, 15, 3
CHANGED = "changed while the run was at work"
PLAIN = {"compression": "none", "use_dictionary": False, "write_statistics": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three files of nested rows."""
    rows = table(ROWS, tag=tmp_path.name)
    size = ROWS // FILES
    for number in range(FILES):
        written(tmp_path / "in" / f"{number}.parquet", rows.slice(number * size, size), **PLAIN)
    return tmp_path / "in"


@pytest.fixture
def options(tmp_path: Path) -> list[object]:
    """Small parts, and few requests in flight, so that a run takes two seconds."""
    path = tmp_path / "parts.toml"
    path.write_text(f"[output]\nrows_per_part = {PART}\n")
    return ["-c", path, "--max-in-flight", 3]


@pytest.fixture
def slow(serve: Callable[..., Server]) -> Server:
    return serve(SLOW)


def put(path: Path, rows: pa.Table) -> None:
    """Another file in the place of one."""
    os.replace(written(path.parent.parent / "new.parquet", rows, **PLAIN), path)


def other(rows: pa.Table) -> pa.Table:
    """The same rows, with queries of the same length."""
    queries = pa.array([query.replace("query", "QUERY") for query in rows["query"].to_pylist()])
    return rows.set_column(1, "query", queries)


def compacted(folder: Path) -> None:
    both = pa.concat_tables(pq.read_table(folder / f"{one}.parquet") for one in (1, 2))
    put(folder / "1.parquet", both.slice(0, 20))
    put(folder / "2.parquet", both.slice(20))


def merged(folder: Path) -> None:
    both = pa.concat_tables(pq.read_table(folder / f"{one}.parquet") for one in (1, 2))
    put(folder / "3.parquet", both)
    for one in (1, 2):
        (folder / f"{one}.parquet").unlink()


def replaced(folder: Path) -> None:
    put(folder / "2.parquet", other(pq.read_table(folder / "2.parquet")))


def grown(folder: Path) -> None:
    rows = pq.read_table(folder / "2.parquet")
    put(folder / "2.parquet", pa.concat_tables([rows, other(rows)]))


def overwritten(folder: Path) -> None:
    """In place, and nothing but the rows differs: the size and the footer are the same."""
    path = folder / "2.parquet"
    new = written(folder.parent / "new.parquet", other(pq.read_table(path)), **PLAIN)
    assert new.stat().st_size == path.stat().st_size
    with path.open("r+b") as file:
        file.write(new.read_bytes())


def truncated(folder: Path) -> None:
    path = folder / "2.parquet"
    os.truncate(path, path.stat().st_size // 2)


def removed(folder: Path) -> None:
    (folder / "2.parquet").unlink()


CHANGES = [compacted, merged, replaced, grown, overwritten, truncated, removed]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("begun", [5, 70])
def test_a_file_that_changes_ends_the_run_and_the_old_one_goes_on(
    slow: Server,
    folder: Path,
    options: list[object],
    change: Callable[[Path], None],
    begun: int,
) -> None:
    oracle = folder.parent / "oracle"
    assert inside(*fast(slow, oracle, folder), *options).returncode == 0
    before, old = slow.received, {path: path.read_bytes() for path in folder.iterdir()}
    out = folder.parent / "out"
    process = started(*fast(slow, out, folder), *options)
    until(lambda: slow.received >= before + begun, "some rows are sent")
    change(folder)
    code, _, stderr = ended(process)
    assert code == 65 and CHANGED in stderr and stderr.count("\n") == 1, stderr
    expected = part_bytes(oracle)
    assert all(expected[name] == content for name, content in part_bytes(out).items())
    assert not (out / "_SUCCESS").exists()
    for path in folder.iterdir():
        path.unlink()
    for path, content in old.items():
        path.write_bytes(content)
    done = inside(*fast(slow, out, folder), *options)
    assert done.returncode == 0, done.stderr
    assert part_bytes(out) == expected
    assert slow.received - before == ROWS, "paid twice"


def test_a_file_that_is_replaced_after_its_last_row_ends_the_run_too(
    slow: Server, folder: Path, options: list[object]
) -> None:
    process = started(*fast(slow, folder.parent / "out", folder), *options)
    until(lambda: slow.received >= 100, "all rows are read")
    put(folder / "0.parquet", other(pq.read_table(folder / "0.parquet")))
    code, _, stderr = ended(process)
    assert code == 65 and f"0.parquet: {CHANGED}" in stderr


def test_a_new_name_for_a_file_is_no_change(
    slow: Server, folder: Path, options: list[object]
) -> None:
    """A backup by hard links changes the time of the inode's last change, and no byte."""
    out = folder.parent / "out"
    process = started(*fast(slow, out, folder), *options)
    until(lambda: slow.received >= 20, "some rows are sent")
    for path in list(folder.iterdir()):
        os.link(path, folder.parent / f"backup-{path.name}")
    assert ended(process)[0] == 0
    assert output(out).num_rows == ROWS


def lines(folder: Path, *, sort: bool) -> list[object]:
    """Pairs in two files, those of a query together or not."""
    rows = table(ROWS, 2, tag=folder.name).to_pylist()
    pairs = [
        {"query_id": row["query_id"], "query": row["query"], **candidate}
        for row in rows
        for candidate in row["candidates"]
    ]
    if not sort:
        pairs = pairs[::2] + pairs[1::2]
    for number in range(2):
        some = pa.Table.from_pylist(pairs[number * ROWS : (number + 1) * ROWS])
        written(folder / f"{number}.parquet", some, row_group_size=30, **PLAIN)
    return [folder]


def ids(folder: Path) -> list[object]:
    """A run beside its queries and its corpus."""
    rows = table(ROWS, 2, tag=folder.name).to_pylist()
    found = [
        {"query_id": str(row["query_id"]), "doc_id": one["doc_id"]}
        for row in rows
        for one in row["candidates"]
    ]
    written(folder / "run.parquet", pa.Table.from_pylist(found), row_group_size=30, **PLAIN)
    texts = {
        "queries": [(str(row["query_id"]), row["query"]) for row in rows],
        "corpus": [(one["doc_id"], one["text"]) for row in rows for one in row["candidates"]],
    }
    for name, pairs in texts.items():
        lines = [json.dumps({"_id": key, "text": text}) + "\n" for key, text in pairs]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    beside = [folder / "queries.jsonl", "--corpus", folder / "corpus.jsonl"]
    return [folder / "run.parquet", "--queries", *beside]


@pytest.mark.parametrize(
    ("shape", "file"),
    [
        ("together", "1.parquet"),
        ("scattered", "0.parquet"),
        ("ids", "run.parquet"),
        ("ids", "queries.jsonl"),
        ("ids", "corpus.jsonl"),
    ],
)
def test_pairs_runs_queries_and_corpora_must_stay_as_they_are(
    slow: Server, tmp_path: Path, options: list[object], shape: str, file: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    inputs = ids(folder) if shape == "ids" else lines(folder, sort=shape == "together")
    process = started(*fast(slow, tmp_path / "out", *inputs), *options)
    until(lambda: slow.received >= 10, "some rows are sent")
    content = (folder / file).read_bytes()
    (tmp_path / "new").write_bytes(content.replace(b"query ", b"QUERY ").replace(b"row", b"ROW"))
    os.replace(tmp_path / "new", folder / file)
    code, _, stderr = ended(process)
    assert code == 65 and f"{file}: {CHANGED}" in stderr, stderr


def test_bands_of_priorities_read_one_file_again_and_again(
    slow: Server, folder: Path, options: list[object]
) -> None:
    for path in folder.iterdir():
        rows = pq.read_table(path)
        written(path, rows.append_column("value", pa.array(range(rows.num_rows))), **PLAIN)
    out = folder.parent / "out"
    process = started(*fast(slow, out, folder), *options, "--priority-column", "value")
    until(lambda: slow.received >= 40, "some bands are sent")
    replaced(folder)
    code, _, stderr = ended(process)
    assert code == 65 and CHANGED in stderr
    assert not part_bytes(out)
