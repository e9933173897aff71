"""With --reuse a run is killed and resumed, and failed rows are asked for again, as without it; and
it goes on only with the earlier output that it was begun with.
"""

import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
from helpers import (
    Server,
    ended,
    fast,
    inside,
    killed,
    output,
    part_bytes,
    reused,
    rows_of,
    score,
    scores_of,
    started,
    table,
    until,
    written,
)

from batchrank.state.output_folder import PAIRS

SLOW = """
[[fault]]
kind = "slow"
where = { probability = 0.5 }
seconds = 0.05
"""
REFUSING = """
[[fault]]
kind = "status"
where = { marker = "poison" }
status = 400
code = "InvalidParameter"
"""
PARTS = {"rows_per_part": 30}


def changed(rows: pa.Table, random: Random) -> pa.Table:
    """A candidate of every other row is another."""
    candidates = rows["candidates"].to_pylist()
    for row in candidates[::2]:
        row[random.randrange(len(row))]["text"] = f"new {random.random()}"
    return rows.set_column(2, "candidates", pa.array(candidates, rows.schema.field(2).type))


def has_received(own: Server, run: "subprocess.Popen[str]", requests: int) -> bool:
    """Whether so many requests came, or no more will."""
    return run.poll() is not None or own.received >= requests


def side_bytes(out: Path) -> dict[str, bytes]:
    """The side files, byte for byte."""
    return {path.name: path.read_bytes() for path in sorted((out / PAIRS).glob("*.arrow"))}


def test_killed_and_resumed_it_publishes_the_same_bytes(
    server: Server, serve: Callable[..., Server], tmp_path: Path
) -> None:
    random, rows = Random(7), table(300, tag="killed")
    score(server, written(tmp_path / "1.parquet", rows), tmp_path / "night1", output=PARTS)
    written(tmp_path / "2.parquet", changed(rows, random))
    whole = score(
        server, tmp_path / "2.parquet", tmp_path / "whole", reuse=tmp_path / "night1", output=PARTS
    )
    config = tmp_path / "batchrank.toml"
    config.write_text("[output]\nrows_per_part = 30\n")
    own = serve(SLOW)
    options = ["--max-in-flight", 8, "-c", config, "--reuse", tmp_path / "night1"]
    command = [*fast(own, tmp_path / "out", tmp_path / "2.parquet"), *options]
    for kill in range(1, 5):
        run = started(*command)
        until(partial(has_received, own, run, 30 * kill), "it has sent something")
        killed(run)
    code, _, said = ended(started(*command))
    assert (code, said) == (0, "")
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "whole")
    assert side_bytes(tmp_path / "out") == side_bytes(tmp_path / "whole")
    assert (whole.requests, whole.rows_reused) == (150, 150)
    assert own.ledger()["unique"] == 150
    assert own.received < 300  # from the beginning each time: 450


def test_it_goes_on_only_with_the_earlier_output_it_was_begun_with(
    server: Server, tmp_path: Path
) -> None:
    rows = table(4, tag="same")
    score(server, written(tmp_path / "1.parquet", rows), tmp_path / "night1")
    score(server, written(tmp_path / "0.parquet", rows.slice(2)), tmp_path / "night0")
    command = fast(server, tmp_path / "out", tmp_path / "1.parquet")
    assert inside(*command, "--reuse", tmp_path / "night1").returncode == 0
    for other in ([], ["--reuse", tmp_path / "night0"]):
        done = inside(*command, *other)
        assert (done.returncode, "begun with --reuse" in done.stderr) == (78, True)
    also_rows_only = ["--reuse", tmp_path / "night1", "--reuse-rows-only"]
    assert inside(*command, *also_rows_only).returncode == 78
    before = server.received
    (tmp_path / "night1").rename(tmp_path / "moved")
    assert inside(*command, "--reuse", tmp_path / "moved").returncode == 0
    assert server.received == before


@pytest.mark.parametrize("top_n", [0, 1])
def test_failed_rows_are_asked_for_again_and_known_pairs_are_not(
    server: Server, serve: Callable[..., Server], tmp_path: Path, top_n: int
) -> None:
    first = rows_of(("lift", ["wings", "bees"]), ("bread", ["yeast"]), ("fire", ["wood", "ash"]))
    second = rows_of(
        ("lift", ["wings", "poison", "bees"]),
        ("bread", ["yeast"]),
        ("fire", ["wood", "coal", "ash"]),
    )
    shape = {"top_n": top_n}
    written(tmp_path / "1.parquet", first)
    written(tmp_path / "2.parquet", second)
    score(server, tmp_path / "1.parquet", tmp_path / "night1", output=shape)
    night1, night2, source = tmp_path / "night1", tmp_path / "night2", tmp_path / "2.parquet"
    own = serve(REFUSING)
    failed = score(own, source, night2, reuse=night1, output=shape)
    assert (failed.rows_partial, failed.rows_failed, failed.exit_code) == (1, 0, 3)
    assert (failed.pairs_reused, failed.rows_reused) == (5, 1)
    before = server.received
    again = score(server, source, night2, reuse=night1, output=shape, retry_failed=True)
    assert (server.received - before, again.rows_scored, again.pairs_reused) == (1, 3, 5)
    score(server, source, tmp_path / "fresh", output=shape)
    assert scores_of(night2) == scores_of(tmp_path / "fresh")
    if not top_n:
        known = [[day is not None for day in row] for row in reused(night2)]
        assert known == [[True, False, True], [True], [True, False, True]]
    before = server.received
    last = score(server, source, tmp_path / "night3", reuse=night2, output=shape)
    assert (server.received - before, last.pairs_reused) == (0, 7)


def test_a_finished_output_is_left_alone_when_the_earlier_one_is_gone(
    server: Server, tmp_path: Path
) -> None:
    source = written(tmp_path / "in.parquet", table(4, tag="gone"))
    score(server, source, tmp_path / "1")
    command = [*fast(server, tmp_path / "2", source), "--reuse", tmp_path / "1"]
    assert inside(*command).returncode == 0
    before = server.received
    shutil.rmtree(tmp_path / "1")
    assert inside(*command).returncode == 0
    assert inside(*command, "--restart").returncode == 66
    assert server.received == before


def test_a_side_file_of_an_earlier_writing_never_overrides_a_part(
    server: Server, serve: Callable[..., Server], tmp_path: Path
) -> None:
    """A run that leaves no side files takes those of its parts away; one that lies there all the
    same is not believed against the part.
    """
    rows = rows_of(("lift", ["poison"]), ("fire", ["poison too"]))
    source, out = written(tmp_path / "in.parquet", rows), tmp_path / "out"
    score(serve(REFUSING), source, out)
    (side_file,) = (out / PAIRS).glob("*.arrow")
    stale = side_file.read_bytes()
    half = REFUSING.replace('"poison"', '"poison too"')
    score(serve(half), source, out, retry_failed=True, output={"reusable": False})
    assert not side_file.exists()
    side_file.write_bytes(stale)
    score(server, source, out, retry_failed=True, output={"reusable": False})
    score(server, source, tmp_path / "fresh")
    assert scores_of(out) == scores_of(tmp_path / "fresh")


def test_an_output_is_verified_and_judged_as_any_other(server: Server, tmp_path: Path) -> None:
    written(tmp_path / "in.parquet", table(9, tag="looked at"))
    score(server, tmp_path / "in.parquet", tmp_path / "1")
    score(server, tmp_path / "in.parquet", tmp_path / "2", reuse=tmp_path / "1")
    for look in (["verify"], ["report"], ["status"], ["evaluate"], ["export", "--format", "pairs"]):
        assert inside(look[0], tmp_path / "2", *look[1:]).returncode == 0
    assert output(tmp_path / "2").num_rows == 9
