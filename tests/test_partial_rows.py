"""Partial rows are counted where a run's end is told, and end it with 3 where they are too many."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Server, ended, fast, inside, rows_of, started, table, until, written

import batchrank

Serve = Callable[..., Server]
POISON = '[[fault]]\nkind = "content_refusal"\nwhere = { marker = "row 7 " }\n'
SLOW = '[[fault]]\nkind = "slow"\nseconds = 0.2\n'


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten rows, three of them with a blank document, which is not sent."""
    rows = [(f"query {row}", ["text", "" if row < 3 else f"text {row}"]) for row in range(10)]
    return written(tmp_path / "in.parquet", rows_of(*rows))


def test_partial_rows_are_allowed_unless_bounded(
    server: Server, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert inside(*fast(server, out, source)).returncode == 0
    assert inside("verify", out).stdout == f"{out}: 10 rows in 1 parts, all whole; 3 partial.\n"


def test_more_partial_rows_than_allowed_end_with_3(
    server: Server, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = fast(server, out, source)
    done = inside(*run, "--max-partial-rows", 2)
    said = (
        "3 rows are partial, more than --max-partial-rows 2; their reasons are in column "
        f'"error" of {out}.'
    )
    assert (done.returncode, done.stderr) == (3, f"batchrank: {said}\n")
    assert not (out / "_SUCCESS").exists()
    before = server.received
    assert inside(*run, "--max-partial-rows", 3).returncode == 0
    assert (out / "_SUCCESS").exists()
    assert server.received == before


def test_failed_and_partial_rows_are_said_together(serve: Serve, tmp_path: Path) -> None:
    own = serve('[[fault]]\nkind = "content_refusal"\nwhere = { marker = "poison" }\n')
    rows = rows_of(("one", ["poison"]), ("two", ["text", " "]), ("three", ["text", "more"]))
    out = tmp_path / "out"
    done = inside(*fast(own, out, written(tmp_path / "in.parquet", rows)), "--max-partial-rows", 0)
    assert done.returncode == 3
    assert "1 rows failed, more than --max-failed-rows 0; 1 rows are partial" in done.stderr


def test_python_has_the_bound_too(server: Server, source: Path, tmp_path: Path) -> None:
    config = {"endpoint": {"base_url": server.base_url}, "rate": {"requests_per_minute": 0}}
    done = batchrank.run(config, str(source), tmp_path / "out", max_partial_rows=2)
    assert (done.exit_code, done.rows_partial) == (3, 3)


def test_shards_are_finished_under_the_bound(server: Server, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = tmp_path / "five.toml"
    config.write_text("[output]\nrows_per_part = 5\n")
    run = [*fast(server, out, source), "-c", config, "--max-partial-rows", 2]
    assert inside(*run, "--shard", "0/2").returncode == 0, "whoever finishes the whole counts"
    assert inside(*run, "--shard", "1/2").returncode == 3
    assert inside("finish", out, "--max-partial-rows", 2).returncode == 3
    assert batchrank.finish(out, max_partial_rows=2).exit_code == 3
    assert "3 rows are partial" in inside("verify", out).stderr
    assert inside("finish", out, "--max-partial-rows", 3).returncode == 0
    assert inside("verify", out).returncode == 0


def test_verify_of_a_run_with_failed_rows_says_so(serve: Serve, tmp_path: Path) -> None:
    own, out = serve(POISON), tmp_path / "out"
    source = written(tmp_path / "in.parquet", table(20, documents=1, tag="verify"))
    run = fast(own, out, source)
    assert inside(*run).returncode == 3
    done = inside("verify", out)
    assert done.returncode == 65
    assert done.stderr == (
        f"batchrank: {out}: every row is there, but 1 rows failed, more than --max-failed-rows 0; "
        f'their reasons are in column "error" of {out}.\n'
    )
    assert inside(*run, "--max-failed-rows", 1).returncode == 0
    assert inside("verify", out).stdout.endswith("all whole; 1 failed.\n")


def test_the_summary_counts_rows_that_are_kept(serve: Serve, tmp_path: Path) -> None:
    own, out = serve(SLOW), tmp_path / "out"
    source = written(tmp_path / "in.parquet", table(200, tag="kept"))
    process = started(*fast(own, out, source), "--max-in-flight", 4, "--summary", "text")
    until(lambda: own.received > 12, "some rows are answered")
    process.terminate()
    code, stdout, _ = ended(process)
    receipt = json.loads((out / "_run.json").read_bytes())
    kept = receipt["rows_kept"]
    assert code == 143 and kept > 0
    counts = f"200: 0 scored, {kept} answered and kept, {200 - kept} not done"
    assert f"rows       {counts}\n" in stdout
