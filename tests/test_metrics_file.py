"""`--metrics-file` keeps a run's figures for Prometheus: whole at any moment, the latest success
through runs that fail.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Server, ended, fast, inside, killed, program, started, table, until, written
from prometheus_client.parser import text_fd_to_metric_families

Serve = Callable[..., Server]
LAST_SUCCESS = "last_success_timestamp_seconds"


def figures(path: Path, out: Path | None = None) -> dict[str, float]:
    """The file's values by name, as Prometheus' own parser reads them; all are of one output."""
    with path.open() as lines:
        samples = [one for family in text_fd_to_metric_families(lines) for one in family.samples]
    assert len({tuple(one.labels.items()) for one in samples}) == 1
    assert out is None or samples[0].labels == {"output": str(out)}
    return {one.name.removeprefix("batchrank_"): one.value for one in samples}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return written(tmp_path / "in.parquet", table(60, tag=tmp_path.name))


def test_a_finished_run_leaves_its_receipts_figures(
    server: Server, source: Path, tmp_path: Path
) -> None:
    file, out, before = tmp_path / "m.prom", tmp_path / "out", time.time()
    done = program(*fast(server, out, source), "--metrics-file", file)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found, receipt = figures(file, out), json.loads((out / "_run.json").read_bytes())
    assert (found["running"], found["exit_code"]) == (0, 0)
    assert (found["rows"], found["rows_done"], found["rows_failed"]) == (60, 60, 0)
    assert found["requests_total"] == receipt["requests"] == 60
    assert found["tokens_billed_total"] == receipt["tokens_billed"]
    assert found["cost_usd_total"] == receipt["cost_usd"]
    assert before <= found[LAST_SUCCESS] <= found["last_update_timestamp_seconds"] <= time.time()
    assert oct(file.stat().st_mode & 0o777) == "0o644", "the collector is another user"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "m.prom", "out"]


def test_a_run_at_work_is_told_and_its_file_whole_whenever_it_is_read(
    serve: Serve, source: Path, tmp_path: Path
) -> None:
    own = serve('[[fault]]\nkind = "slow"\nseconds = 0.2\n')
    file, out = tmp_path / "m.prom", tmp_path / "out"
    run = [*fast(own, out, source), "--max-in-flight", 4, "--metrics-file", file]
    process = started(*run)
    until(file.exists, "the file is there")
    seen = []
    while process.poll() is None:
        seen.append(figures(file))
        assert seen[-1].keys() >= {"running", "last_update_timestamp_seconds"}
        time.sleep(0.005)
    assert ended(process)[0] == 0
    done = [one["rows_done"] for one in seen if "rows_done" in one]
    assert done == sorted(done) and len(set(done)) > 1
    assert any(
        one["running"] == 1 and one["requests_per_second"] > 0
        for one in seen[1:]
        if "requests_per_second" in one
    )
    assert all("exit_code" not in one for one in seen if one["running"] == 1)


def test_runs_that_fail_keep_when_one_last_succeeded(
    serve: Serve, server: Server, source: Path, tmp_path: Path
) -> None:
    """Whether they fail in the middle, before they send, or before they know what to send."""
    file, out = tmp_path / "m.prom", tmp_path / "out"
    assert inside(*fast(server, out, source), "--metrics-file", file).returncode == 0
    success = figures(file)[LAST_SUCCESS]

    refusing = serve('[[fault]]\nkind = "status"\nstatus = 401\ncode = "InvalidApiKey"\n')
    failed = fast(refusing, out, source)
    config = tmp_path / "c.toml"
    config.write_text("[nonsense]\n")
    for code, run in {
        77: [*failed, "--restart", "--yes"],
        66: ["run", tmp_path / "none", "-o", out],
        78: [*failed, "-c", config],
    }.items():
        assert program(*run, "--metrics-file", file).returncode == code
        found = figures(file, out)
        assert (found["running"], found["exit_code"]) == (0, code)
        assert found[LAST_SUCCESS] == success


def test_a_finished_output_counts_as_a_success_each_time(
    server: Server, source: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "m.prom", tmp_path / "out"
    run = [*fast(server, out, source), "--metrics-file", file]
    assert inside(*run).returncode == 0
    first = figures(file)
    assert inside(*run).returncode == 0
    again = figures(file)
    assert again[LAST_SUCCESS] > first[LAST_SUCCESS]
    assert again["requests_total"] == first["requests_total"]


def test_before_the_first_success_there_is_none(serve: Serve, source: Path, tmp_path: Path) -> None:
    own = serve('[[fault]]\nkind = "slow"\nseconds = 0.2\n')
    file, out = tmp_path / "m.prom", tmp_path / "out"
    run = [*fast(own, out, source), "--max-in-flight", 4, "--metrics-file", file]
    process = started(*run)
    until(lambda: own.received > 8, "it sends")
    process.terminate()
    assert ended(process)[0] == 143
    found = figures(file)
    assert (found["running"], found["exit_code"]) == (0, 143)
    assert LAST_SUCCESS not in found
    process = started(*run)
    until(lambda: figures(file)["running"] == 1, "it runs again")
    killed(process)
    assert figures(file)["running"] == 1, "who is killed says nothing; the update's time tells"
    assert inside(*run).returncode == 0
    assert LAST_SUCCESS in figures(file)


def test_another_outputs_success_is_not_this_ones(
    server: Server, source: Path, tmp_path: Path
) -> None:
    file = tmp_path / "m.prom"
    assert inside(*fast(server, tmp_path / "one", source), "--metrics-file", file).returncode == 0
    none = ["run", tmp_path / "none", "-o", tmp_path / "two", "--metrics-file", file]
    assert program(*none).returncode == 66
    assert LAST_SUCCESS not in figures(file, tmp_path / "two")


def test_a_name_with_quotes_and_lines_is_one_label(
    server: Server, source: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "m.prom", tmp_path / 'a "b"\\n\nc'
    for _ in range(2):
        assert inside(*fast(server, out, source), "--metrics-file", file).returncode == 0
        assert figures(file, out)["exit_code"] == 0


def test_a_shard_is_named_beside_its_output(server: Server, source: Path, tmp_path: Path) -> None:
    """Two workers of a machine must not both write the same series."""
    file, out = tmp_path / "m.prom", tmp_path / "out"
    done = inside(*fast(server, out, source), "--shard", "1/2", "--metrics-file", file)
    assert done.returncode == 0
    with file.open() as lines:
        samples = [one for family in text_fd_to_metric_families(lines) for one in family.samples]
    assert {tuple(one.labels.items()) for one in samples} == {
        (("output", str(out)), ("shard", "1/2"))
    }


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_sent(
    serve: Serve, source: Path, tmp_path: Path
) -> None:
    own = serve()
    file = tmp_path / "none" / "m.prom"
    done = program(*fast(own, tmp_path / "out", source), "--metrics-file", file)
    assert done.returncode == 74
    assert done.stderr == f"batchrank: {file}: cannot be written: No such file or directory.\n"
    assert own.received == 0


def test_a_place_that_goes_away_does_not_stop_the_run(
    serve: Serve, source: Path, tmp_path: Path
) -> None:
    own = serve('[[fault]]\nkind = "slow"\nseconds = 0.2\n')
    folder, out = tmp_path / "textfile", tmp_path / "out"
    folder.mkdir()
    run = [*fast(own, out, source), "--max-in-flight", 4, "--metrics-file", folder / "m.prom"]
    process = started(*run)
    until(lambda: own.received > 4, "it sends")
    os.rename(folder, tmp_path / "gone")
    assert ended(process) == (0, "", "")
    assert (out / "_SUCCESS").exists()


def test_a_run_that_finds_the_output_taken_says_so_and_the_first_goes_on(
    serve: Serve, source: Path, tmp_path: Path
) -> None:
    own = serve('[[fault]]\nkind = "slow"\nseconds = 1.0\n')
    file, out = tmp_path / "m.prom", tmp_path / "out"
    run = [*fast(own, out, source), "--max-in-flight", 2, "--metrics-file", file]
    process = started(*run)
    until(lambda: own.received > 1, "it sends")
    assert program(*run).returncode == 75
    until(lambda: figures(file)["running"] == 1, "the first writes again")
    process.terminate()
    assert ended(process)[0] == 143
    assert figures(file)["exit_code"] == 143
