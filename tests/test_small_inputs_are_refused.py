"""An input that is empty, or smaller than it may be, is refused: an export that failed looks so."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from helpers import (
    Server,
    clean,
    fast,
    inside,
    reused,
    rows_of,
    score,
    settings,
    table,
    written,
)

import batchrank
from batchrank.errors import InputBad

JOBS = Path(__file__).parents[1] / "jobs"
SHAPES = {
    "rows": {"query": ["q"], "candidates": [["a", "b"]]},
    "pairs": {"query": ["q", "q"], "text": ["a", "b"]},
}


@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize("command", ["run", "plan"])
def test_an_empty_input_is_refused(
    server: Server, tmp_path: Path, shape: str, command: str
) -> None:
    source, before = tmp_path / "in.parquet", server.received
    pl.DataFrame(SHAPES[shape]).clear().write_parquet(source)
    out = tmp_path / "out"
    words = ["plan", source] if command == "plan" else fast(server, out, source)
    done = inside(*words)
    assert done.returncode == 65
    assert done.stderr == (
        f"batchrank: {source}: the input has no rows. Nothing was sent. Is what writes it done? "
        "Pass --allow-empty if it may be empty.\n"
    )
    assert not out.exists()
    assert inside(*words, "--allow-empty").returncode == 0
    assert server.received == before


@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize("command", ["run", "plan"])
def test_fewer_rows_than_wanted_are_refused(
    server: Server, tmp_path: Path, shape: str, command: str
) -> None:
    source, before = tmp_path / "in.parquet", server.received
    pl.DataFrame(SHAPES[shape]).write_parquet(source)
    out = tmp_path / "out"
    words = ["plan", source] if command == "plan" else fast(server, out, source)
    done = inside(*words, "--min-rows", 2, "--allow-empty")
    assert done.returncode == 65
    assert "the input has 1 rows, fewer than --min-rows 2. Nothing was sent." in done.stderr
    assert (out.exists(), server.received) == (False, before)
    assert inside(*words, "--min-rows", 1).returncode == 0


def test_the_whole_input_counts_not_what_a_limit_or_a_shard_leaves_of_it(
    server: Server, tmp_path: Path
) -> None:
    source = written(tmp_path / "in.parquet", table(6, tag="counted"))
    command = fast(server, tmp_path / "out", source)
    assert inside(*command, "--min-rows", 6, "--limit", 2).returncode == 0
    sharded = fast(server, tmp_path / "shards", source)
    assert inside(*sharded, "--min-rows", 6, "--shard", "1/2").returncode == 0
    assert inside(*sharded, "--min-rows", 7, "--shard", "0/2").returncode == 65


def test_a_started_output_is_left_as_it_is(server: Server, tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(3, tag="left"))
    command = fast(server, tmp_path / "out", source)
    assert inside(*command).returncode == 0
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert inside(*command, "--restart", "--min-rows", 4).returncode == 65
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before


def test_python_refuses_them_too(server: Server, tmp_path: Path) -> None:
    config, frame = settings(server.base_url), pl.DataFrame(SHAPES["rows"])
    with pytest.raises(InputBad, match="the input has no rows"):
        batchrank.rerank(frame.clear(), config=config, progress=False)
    assert len(batchrank.rerank(frame.clear(), config=config, allow_empty=True)) == 0
    with pytest.raises(InputBad, match="fewer than --min-rows 2"):
        batchrank.rerank(frame, config=config, min_rows=2, progress=False)
    frame.write_parquet(tmp_path / "in.parquet")
    with pytest.raises(InputBad, match="fewer than --min-rows 2"):
        batchrank.run(config, tmp_path / "in.parquet", tmp_path / "out", min_rows=2)
    assert not (tmp_path / "out").exists()


# The nightly job


def nightly(
    server: Server, folder: Path, day: int, *options: str
) -> "subprocess.CompletedProcess[str]":
    config = folder / "batchrank.toml"
    config.write_text(f'[endpoint]\nbase_url = "{server.base_url}"\n')
    job = [sys.executable, JOBS / "nightly_reindex.py", folder / "rows", folder / "scores"]
    command = [*map(str, job), "-c", str(config), "--date", f"2026-11-{day:02}", *options]
    return subprocess.run(command, capture_output=True, text=True, env=clean(), check=False)


@pytest.mark.parametrize("bad", [[0], [1], [0, 0], [1, 1], [1, 0], [2]])
def test_nights_that_are_cut_short_are_passed_over(
    server: Server, tmp_path: Path, bad: list[int]
) -> None:
    """A week of four rows, then nights of fewer than half of them, then all four again."""
    texts = [("nightly", [f"text {number}"]) for number in range(5)]
    for day, rows in enumerate([5, 4, *bad], 1):
        source = written(tmp_path / f"{day}.parquet", rows_of(*texts, *texts).slice(0, rows))
        out = tmp_path / "scores" / f"2026-11-{day:02}"
        score(server, source, out, allow_empty=True)
    enough = bad == [2]  # half of four is
    expected = f"2026-11-{3 if enough else 2:02}"
    last = 3 + len(bad)
    written(tmp_path / "rows" / f"2026-11-{last:02}" / "1.parquet", rows_of(*texts))
    done = nightly(server, tmp_path, last, "--reuse")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "scores" / f".2026-11-{last:02}.reuse").read_text() == expected
    found = reused(tmp_path / "scores" / f"2026-11-{last:02}")
    assert sum(days != [None] for days in found) == (2 if enough else 4)


def test_the_job_refuses_small_inputs(server: Server, tmp_path: Path) -> None:
    source = tmp_path / "rows" / "2026-11-01" / "1.parquet"
    written(source, table(2, tag="job"))
    done = nightly(server, tmp_path, 1, "--min-rows", "3", "--reuse")
    assert done.returncode == 65
    assert "fewer than --min-rows 3" in done.stderr
    assert not (tmp_path / "scores" / "2026-11-01").exists()
    written(source, table(1).slice(0, 0))
    assert nightly(server, tmp_path, 1).returncode == 65
    assert nightly(server, tmp_path, 1, "--allow-empty").returncode == 0
