"""`status` tells how far a run is: running, stopped or finished, from any other process."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    Server,
    ended,
    fast,
    inside,
    killed,
    program,
    score,
    settings,
    started,
    table,
    until,
    written,
)

from batchrank.output.receipt import Progress
from batchrank.session import job

SLOW = '[[fault]]\nkind = "slow"\nseconds = 0.2\n'


def told(out: Path) -> dict[str, Any]:
    """What `status --json` says, which is one line."""
    done = inside("status", out, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
    state: dict[str, Any] = json.loads(done.stdout)
    return state


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A hundred rows."""
    return written(tmp_path / "in.parquet", table(100, tag=tmp_path.name))


def test_running_stopped_and_finished_are_told_apart(
    serve: Callable[..., Server], source: Path, tmp_path: Path
) -> None:
    own, out = serve(SLOW), tmp_path / "out"
    run = [*fast(own, out, source), "--max-in-flight", 4]
    process = started(*run)
    live = out / "_batchrank" / "live.json"
    until(lambda: live.exists() and json.loads(live.read_bytes())["rows_done"] > 8, "rows are done")
    running, words = told(out), program("status", out).stdout
    process.terminate()
    assert ended(process)[0] == 143
    assert (running["state"], running["receipt"]) == ("running", None)
    figures = running["progress"]
    assert figures["rows"] == 100
    assert 8 < figures["rows_done"] <= figures["requests"] <= 100
    assert figures["requests_per_second"] > 0 and figures["seconds_left"] > 0
    assert words.startswith("state      running\nrows       ")
    assert "time left" in words

    stopped = told(out)
    assert stopped["state"] == "stopped"
    assert stopped["receipt"]["exit_code"] == 143
    words = inside("status", out).stdout
    assert "stopped by SIGTERM; the same command goes on" in words
    assert re.search(r"0 of 100 published, \d+ more answered and kept, 0 failed", words)

    assert inside(*run, "--max-in-flight", 64).returncode == 0
    finished = told(out)
    assert finished["state"] == "finished"
    assert finished["receipt"]["rows_open"] == 0
    assert "rows       100 of 100 published, 0 failed" in inside("status", out).stdout


def test_a_killed_run_is_stopped_and_its_latest_figures_are_told(
    serve: Callable[..., Server], source: Path, tmp_path: Path
) -> None:
    own, out = serve(SLOW), tmp_path / "out"
    process = started(*fast(own, out, source), "--max-in-flight", 4)
    until((out / "_batchrank" / "live.json").exists, "figures are written")
    killed(process)
    state = told(out)
    assert (state["state"], state["receipt"]) == ("stopped", None)
    assert state["progress"]["rows"] == 100
    assert inside("status", out).stdout.startswith("state      stopped\n")


def test_a_run_begun_again_does_not_show_what_an_earlier_one_ended_with(
    serve: Callable[..., Server], source: Path, tmp_path: Path
) -> None:
    own, out = serve(SLOW), tmp_path / "out"
    run = [*fast(own, out, source), "--max-in-flight", 4]
    process = started(*run)
    until(lambda: own.received > 8, "it sends")
    process.terminate()
    ended(process)
    process = started(*run)
    until(lambda: own.received > 20, "it sends again")
    running = told(out)
    killed(process)
    assert (running["state"], running["receipt"]) == ("running", None)
    after = told(out)
    assert (after["state"], after["receipt"]) == ("stopped", None)
    assert after["progress"]["rows_done"] > 0
    words = inside("status", out).stdout
    assert "time left" not in words and "/s" not in words
    assert "killed before it could say why; the same command goes on from here." in words


def test_a_looking_process_disturbs_nothing(server: Server, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    score(server, source, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert told(out)["state"] == "finished"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize("what", ["nothing there", "an empty folder", "a file"])
def test_what_is_no_output_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "out"
    if what == "an empty folder":
        path.mkdir()
    elif what == "a file":
        path.write_text("")
    done = inside("status", path)
    assert (done.returncode, done.stdout) == (73, "")
    assert done.stderr == f"batchrank: {path}: is not the output of `batchrank run`.\n"


def test_sending_does_not_wait_for_whoever_is_told(server: Server, tmp_path: Path) -> None:
    """A disk that is busy may take seconds for a file of figures."""
    source = written(tmp_path / "in.parquet", table(100, tag=tmp_path.name))
    request = job.Request(inputs=[str(source)], out=tmp_path / "out")
    before = server.received

    def watch(progress: Progress) -> None:
        until(lambda: server.received == before + 100, "all is sent while this is told")

    assert job.run(settings(server.base_url), request, watch).exit_code == 0


@pytest.mark.parametrize("rows", [1, 10_000])
def test_what_is_raised_while_telling_ends_the_run(
    server: Server, tmp_path: Path, rows: int
) -> None:
    source = written(tmp_path / "in.parquet", table(rows, tag=tmp_path.name))
    request = job.Request(inputs=[str(source)], out=tmp_path / "out")

    def watch(progress: Progress) -> None:
        raise LookupError("nobody looks")

    with pytest.raises(ExceptionGroup) as raised:
        job.run(settings(server.base_url), request, watch)
    assert raised.group_contains(LookupError, match="nobody looks")
