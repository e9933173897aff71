"""The summary: on a terminal, wherever it is asked for, and in the log at info."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Server, fast, inside, program, table, written

Serve = Callable[..., Server]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return written(tmp_path / "in.parquet", table(20, tag=tmp_path.name))


def test_a_summary_in_words_is_printed_where_it_is_asked_for(
    server: Server, source: Path, tmp_path: Path
) -> None:
    run = [*fast(server, tmp_path / "out", source), "--summary", "text"]
    done = program(*run)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "rows       20: 20 scored"
    assert lines[-1] == f"output     {tmp_path / 'out'}"
    assert inside(*run).stdout == done.stdout, "of a finished output too"


def test_a_run_that_failed_has_a_summary_in_words_too(serve: Serve, tmp_path: Path) -> None:
    own = serve('[[fault]]\nkind = "content_refusal"\nwhere = { marker = "row 3 " }\n')
    source = written(tmp_path / "in.parquet", table(5, tag="failed"))
    done = inside(*fast(own, tmp_path / "out", source), "--summary", "text")
    assert done.returncode == 3
    assert done.stdout.startswith("rows       5: 4 scored, 1 failed\n")
    assert len(done.stderr.splitlines()) == 1


def test_the_log_has_the_summary_at_info_and_standard_output_nothing(
    server: Server, source: Path, tmp_path: Path
) -> None:
    done = program(*fast(server, tmp_path / "out", source), "--log-level", "info")
    assert (done.returncode, done.stdout) == (0, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("batchrank: finished: rows 20: 20 scored; scored by ")
    assert "; scored by qwen3-rerank (provider local); requests 20; " in last
    assert last.endswith(f"output {tmp_path / 'out'}")


def test_a_log_of_objects_has_the_summary_s_figures(
    server: Server, source: Path, tmp_path: Path
) -> None:
    run = [*fast(server, tmp_path / "out", source), "--log-level", "info", "--log-format", "json"]
    done = program(*run, "--summary", "json")
    assert done.returncode == 0
    objects = [json.loads(line) for line in done.stderr.splitlines()]
    assert objects[-1]["level"] == "info"
    assert objects[-1]["summary"] == json.loads(done.stdout)
    assert objects[-1]["summary"]["rows_scored"] == 20
