"""Folders whose name is not UTF-8: an output in one is written and read as any other."""

import os
from pathlib import Path

import pytest
from helpers import Server, fast, inside, program, table, written


@pytest.fixture
def latin(tmp_path: Path) -> Path:
    """A folder whose name is in Latin-1."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    return folder


def test_an_output_there_can_be_read(server: Server, tmp_path: Path, latin: Path) -> None:
    path, out = written(tmp_path / "in.parquet", table(3)), latin / "out"
    assert program(*fast(server, out, path)).returncode == 0
    (tmp_path / "qrels").write_text("0 0 d0-0 1\n")
    for command in (
        ["status", out],
        ["verify", out],
        ["evaluate", out, "--qrels", tmp_path / "qrels"],
        ["report", out],
        ["export", out, "--format", "trec", "-o", latin / "run"],
        fast(server, out, path),
        fast(server, tmp_path / "again", path, "--reuse", out),
        ["status", tmp_path / "again"],
    ):
        done = program(*command)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_command_that_is_given_there_works(server: Server, latin: Path) -> None:
    rows = table(3)
    with (latin / "in.parquet").open("wb") as file:
        file.write(written(latin.parent / "in.parquet", rows).read_bytes())
    for command in (fast(server, Path("out"), "in.parquet"), ["export", "out", "--format", "trec"]):
        done = program(*command, cwd=latin)
        assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 9


def test_an_input_of_such_a_name_is_refused_in_one_line(server: Server, latin: Path) -> None:
    done = inside(*fast(server, latin.parent / "out", latin / "in.parquet"))
    assert done.returncode == 66
    (latin / "in.parquet").touch()
    done = inside(*fast(server, latin.parent / "out", latin / "in.parquet"))
    assert done.returncode == 65
    assert "caf\\xe9/in.parquet: this name is not UTF-8; rename it." in done.stderr
