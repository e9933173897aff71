"""A published part that is removed or replaced: no run ends with 0 while rows are missing."""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Server, ended, fast, inside, part_bytes, started, table, until, written

ROWS, PART = 60, 10
SLOW = '[[fault]]\nkind = "slow"\nseconds = 0.05\n'


@pytest.fixture
def command(serve: Callable[..., Server], tmp_path: Path) -> list[object]:
    config = tmp_path / "parts.toml"
    config.write_text(f"[output]\nrows_per_part = {PART}\n")
    source = written(tmp_path / "in.parquet", table(ROWS, tag=tmp_path.name))
    return [*fast(serve(SLOW), tmp_path / "out", source), "-c", config, "--max-in-flight", 2]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def parts_there(out: Path, count: int) -> Callable[[], bool]:
    return lambda: len(list(out.glob("part-*.parquet"))) >= count


def test_a_part_that_is_removed_from_a_finished_output_is_scored_again(
    command: list[object], out: Path
) -> None:
    assert inside(*command).returncode == 0
    whole = part_bytes(out)
    (out / "part-00003.parquet").unlink()
    (out / "part-00005.parquet").unlink()
    done = inside(*command)
    assert done.returncode == 0
    assert "part-00003.parquet, part-00005.parquet went away" in done.stderr
    assert part_bytes(out) == whole
    assert inside("verify", out).returncode == 0
    assert inside(*command).stderr == ""


def test_a_part_that_is_removed_while_the_run_is_at_work_ends_it_with_75(
    command: list[object], out: Path
) -> None:
    process = started(*command)
    until(parts_there(out, 2), "two parts are there")
    (out / "part-00000.parquet").unlink()
    code, _, stderr = ended(process)
    assert code == 75 and "part-00000.parquet went away while the run was at work" in stderr
    assert not (out / "_SUCCESS").exists()
    assert inside(*command).returncode == 0
    assert len(part_bytes(out)) == ROWS // PART
    assert inside("verify", out).returncode == 0


@pytest.mark.parametrize("late", [False, True], ids=["during", "after"])
def test_a_part_that_is_replaced_is_named_and_never_taken_for_ours(
    command: list[object], out: Path, late: bool
) -> None:
    process = started(*command)
    until(parts_there(out, ROWS // PART if late else 1), "parts are there")
    if late:
        assert ended(process)[0] == 0
    (out / "part-00000.parquet").write_bytes(b"something else")
    code, _, stderr = ended(started(*command) if late else process)
    assert code == 73 and "part-00000.parquet is not the file that was published" in stderr
    assert late or not (out / "_SUCCESS").exists()
    assert inside(*command).returncode == 73
    (out / "part-00000.parquet").unlink()
    assert inside(*command).returncode == 0
    assert inside("verify", out).returncode == 0


def test_shards_and_finish_miss_a_part_too(command: list[object], out: Path) -> None:
    shards = [[*command, "--shard", f"{number}/2"] for number in (0, 1)]
    for one in shards:
        assert inside(*one).returncode == 0
    whole = part_bytes(out)
    (out / "part-00001.parquet").unlink()
    done = inside("finish", out)
    assert done.returncode == 75 and "part-00001.parquet" in done.stderr
    for one in shards:
        assert inside(*one).returncode == 0
    assert part_bytes(out) == whole
    assert inside("verify", out).returncode == 0
