"""Texts that compress well are read in whatever way they are packed; a row too large is refused."""

import time
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drills.resources import _measured
from helpers import Server, fast, inside, output, written

from batchrank.input.parquet_rows import Source, open_source
from batchrank.input.schema import Columns

TEXT = "candidates.list.element.text"
MEGABYTE = 1 << 20
WRITERS: dict[str, dict[str, Any]] = {
    "dictionary": {},
    "dictionary, then plain": {"dictionary_pagesize_limit": 20_000},
    "plain": {"use_dictionary": False},
    "DELTA_BYTE_ARRAY": {"column_encoding": {TEXT: "DELTA_BYTE_ARRAY"}},
    "DELTA_LENGTH_BYTE_ARRAY": {"column_encoding": {TEXT: "DELTA_LENGTH_BYTE_ARRAY"}},
    "pages of version 2": {"data_page_version": "2.0", "version": "2.6"},
}


def boilerplate(rows: int, documents: int = 20) -> pa.Table:
    """Rows whose texts differ in a number."""
    return pa.table(
        {
            "query": [f"question {row}" for row in range(rows)],
            "candidates": [
                [
                    {"doc_id": f"d{place}", "text": f"Item {row}-{place}. " + "Ships soon. " * 30}
                    for place in range(documents)
                ]
                for row in range(rows)
            ],
        }
    )


def packed(path: Path, rows: pa.Table, **options: Any) -> Path:
    """A file that is read as a packed one."""
    if "column_encoding" in options:
        options["use_dictionary"] = False
    written(path, rows, compression="zstd", **options)
    groups = pq.read_metadata(path)
    encoded = sum(groups.row_group(one).total_byte_size for one in range(groups.num_row_groups))
    assert encoded > 10 * path.stat().st_size, "not packed"
    return path


def read(path: Path) -> list[list[str | None]]:
    source: Source = open_source([str(path)], Columns("query_id", "query", "candidates", ()))
    chunks = source.chunks(0, source.total_rows, 1000)
    return [list(row.texts) for chunk in chunks for row in chunk.rows]


def texts_of(rows: pa.Table) -> list[list[str]]:
    return [[one["text"] for one in row] for row in rows["candidates"].to_pylist()]


@pytest.mark.parametrize("writer", WRITERS)
def test_every_encoding_is_read_at_any_ratio(tmp_path: Path, writer: str) -> None:
    rows = boilerplate(500)
    assert read(packed(tmp_path / "in.parquet", rows, **WRITERS[writer])) == texts_of(rows)


def test_what_polars_writes_is_read(tmp_path: Path) -> None:
    rows, path = boilerplate(500), tmp_path / "in.parquet"
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    frame.write_parquet(path, compression="zstd", row_group_size=200)
    assert read(path) == texts_of(rows)


def test_several_row_groups_and_a_start_in_the_middle(server: Server, tmp_path: Path) -> None:
    source = packed(tmp_path / "in.parquet", boilerplate(600, 5), row_group_size=250)
    config = tmp_path / "parts.toml"
    config.write_text("[output]\nrows_per_part = 100\n")
    command = [*fast(server, tmp_path / "out", source), "-c", config]
    assert inside(*command).returncode == 0
    (tmp_path / "out" / "part-00003.parquet").unlink()
    assert inside(*command).returncode == 0
    assert output(tmp_path / "out")["row"].to_pylist() == list(range(600))


def test_the_time_to_the_first_row_is_linear(tmp_path: Path) -> None:
    """Eight times the rows: about eight times as long. A check that is quadratic takes 64 times."""
    took = []
    for rows in (2000, 16_000):
        path = packed(tmp_path / f"{rows}.parquet", boilerplate(rows, 10))
        source = open_source([str(path)], Columns("query_id", "query", "candidates", ()))
        next(source.chunks(0, 10, 1000))  # the child is there
        before = time.thread_time()
        began = time.monotonic()
        next(source.chunks(0, rows, 1000))
        took.append(time.monotonic() - began)
        assert time.thread_time() - before < 5
    assert took[1] < 30 * took[0] + 2


BOMBS: dict[str, dict[str, Any]] = {
    name: WRITERS[name] for name in ("dictionary", "plain", "DELTA_BYTE_ARRAY")
}


@pytest.mark.parametrize("writer", BOMBS)
def test_a_row_of_a_gigabyte_is_refused_in_bounded_memory(
    server: Server, tmp_path: Path, writer: str
) -> None:
    text = "word " * (MEGABYTE // 5)
    small = [{"doc_id": "a", "text": "small"}]
    large = [{"doc_id": str(place), "text": text} for place in range(1000)]
    rows = pa.table({"query": ["q"] * 21, "candidates": [small] * 20 + [large]})
    options = {**WRITERS[writer], "data_page_size": MEGABYTE}
    source = tmp_path / "in.parquet"
    packed(source, rows, **options)
    done = _measured(fast(server, tmp_path / "out", source))
    assert (done.code, done.stderr.count("\n")) == (65, 1), done.stderr
    assert "a row of row group 0 takes more than 64 MB once it is decoded" in done.stderr
    assert done.peak_mb < 600


def test_rows_of_almost_the_limit_are_read(tmp_path: Path) -> None:
    texts = ["word " * (63 * MEGABYTE // 100)] * 20  # 63 MB
    rows = pa.table({"query": ["q"] * 5, "candidates": [[t] for t in "abc"] + [texts] * 2})
    assert read(packed(tmp_path / "in.parquet", rows))[-1] == texts
