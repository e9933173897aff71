"""The limit on open files bounds how many requests are in flight; it is raised where it can be."""

import subprocess
from pathlib import Path

import pytest
from helpers import PROGRAM, Server, clean, fast, table, written

MANY = 2000


def limited(soft: int, hard: int, arguments: list[object]) -> "subprocess.CompletedProcess[str]":
    """Run the command where it may open so many files."""
    limit = f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"'
    return subprocess.run(
        ["bash", "-c", limit, "limited", *PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=clean(),
        check=False,
    )


@pytest.mark.parametrize(
    ("soft", "hard", "in_flight"), [(256, 4096, None), (512, 512, 384), (80, 80, 40)]
)
def test_more_in_flight_than_files_may_be_open_is_fitted_and_said(
    soft: int, hard: int, in_flight: int | None, server: Server, tmp_path: Path
) -> None:
    source = written(tmp_path / "in.parquet", table(3000, 1, tag="files"))
    run = [*fast(server, tmp_path / "out", source), "--max-in-flight", MANY]
    done = limited(soft, hard, run)
    assert done.returncode == 0, done.stderr
    if in_flight is None:
        assert done.stderr == ""
    else:
        assert f"rate.max_in_flight is {MANY:,}" in done.stderr
        assert f"{in_flight:,} requests are in flight" in done.stderr


def test_where_hardly_a_file_may_be_open_both_numbers_are_named(
    server: Server, tmp_path: Path
) -> None:
    source = written(tmp_path / "in.parquet", table(3, tag="few"))
    run = [*fast(server, tmp_path / "out", source), "--max-in-flight", MANY]
    done = limited(50, 50, run)
    assert done.returncode == 78, done.stderr
    assert "max_in_flight is 2,000" in done.stderr and "50 files" in done.stderr
    assert not (tmp_path / "out").exists()
