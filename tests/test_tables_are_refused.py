"""Files of a Delta Lake, Iceberg or Hudi table are refused: some are no longer part of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Server, fast, inside, table, written

Lay = Callable[[Path], tuple[Path, str]]
"""Makes a table in a folder; a file of its data, and the table's kind."""


def delta(folder: Path) -> tuple[Path, str]:
    written(folder / "_delta_log" / "00000000000000000010.checkpoint.parquet", table(1))
    (folder / "_delta_log" / "00000000000000000011.json").write_text('{"remove": {"path": "a"}}')
    return written(folder / "lang=en" / "part-0.parquet", table(1)), "Delta Lake"


def iceberg(folder: Path) -> tuple[Path, str]:
    (folder / "metadata").mkdir(parents=True)
    (folder / "metadata" / "00001-2c1b.metadata.json").write_text("{}")
    return written(folder / "data" / "lang=en" / "00000-0-1.parquet", table(1)), "Iceberg"


def hudi(folder: Path) -> tuple[Path, str]:
    (folder / ".hoodie").mkdir(parents=True)
    (folder / ".hoodie" / "hoodie.properties").write_text("hoodie.table.name=t")
    written(folder / "2024" / "01" / "f1_0-1-0_20240101.parquet", table(1))
    (folder / "2024" / "01" / ".hoodie_partition_metadata").write_text("")
    return folder / "2024" / "01" / "f1_0-1-0_20240101.parquet", "Hudi"


@pytest.mark.parametrize("lay", [delta, iceberg, hudi])
def test_a_table_is_refused_however_its_files_are_named(
    server: Server, tmp_path: Path, lay: Lay
) -> None:
    file, kind = lay(tmp_path / "in" / "t")
    written(tmp_path / "in" / "rows.parquet", table(1))
    before = server.received
    for argument in (
        tmp_path / "in" / "t",  # the table
        tmp_path / "in",  # a folder that holds it beside other rows
        file,
        file.parent,  # a partition
        file.parent / "*.parquet",
        file.parent.parent / "*",  # folders that fit a pattern
        tmp_path / "in" / "**" / "*.parquet",
    ):
        for command in (fast(server, tmp_path / "out", argument), ["plan", argument]):
            done = inside(*command)
            assert done.returncode == 65, argument
            assert f": is a table of {kind}, whose folder also holds rows" in done.stderr
            assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert server.received == before


def test_a_corpus_that_is_a_table_is_refused(server: Server, tmp_path: Path) -> None:
    delta(tmp_path / "corpus")
    queries = table(1).select(["query_id", "query"])
    run = tmp_path / "run.trec"
    run.write_text("0 Q0 d0 1 1.5 tag\n")
    beside = [
        "--queries",
        written(tmp_path / "q.parquet", queries),
        "--corpus",
        tmp_path / "corpus",
    ]
    done = inside(*fast(server, tmp_path / "out", run, *beside))
    assert done.returncode == 65
    assert "corpus: is a table of Delta Lake" in done.stderr
    assert f"COPY (FROM delta_scan('{tmp_path / 'corpus'}')) TO 'rows.parquet'" in done.stderr


def test_folders_that_only_look_like_a_table_are_read(server: Server, tmp_path: Path) -> None:
    written(tmp_path / "data" / "day=1" / "a.parquet", table(1))
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "notes.json").write_text("{}")
    assert inside(*fast(server, tmp_path / "out", tmp_path / "data")).returncode == 0
