"""While nothing succeeds a run says why: in the log, in `status` and in its metrics."""

import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers import Server, ended, fast, inside, killed, started, table, until, written

Serve = Callable[..., Server]
PAUSE = """
[[fault]]
kind = "status"
status = 429
code = "Throttling.RateQuota"
retry_after = 300
"""
DOWN = """
[[fault]]
kind = "status"
status = 503
where = { to = 21 }

[[fault]]
kind = "slow"
seconds = 0.2
"""
"""The breaker opens at the 20th failure, and the first probe, 5 s later, fails too."""


class Seen(NamedTuple):
    """What a run that stands still has told, and its log at its end."""

    progress: dict[str, Any]
    words: str
    metrics: str
    log: list[str]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return written(tmp_path / "in.parquet", table(30, tag=tmp_path.name))


@contextmanager
def unused_port() -> Iterator[int]:
    """A port of loopback where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def watch(run: list[object], out: Path, tmp_path: Path) -> Seen:
    """Look at a run as soon as `status` says why it stands still, then stop it."""
    file = tmp_path / "m.prom"
    process = started(*run, "--metrics-file", file)
    try:
        until(lambda: progress_of(out).get("standstill"), "status says why")
        progress, words = progress_of(out), inside("status", out).stdout
        until(lambda: "batchrank_stalled{" in file.read_text(), "the metrics say it")
        until(
            lambda: re.search(r"^batchrank_stalled\{.*\} 1$", file.read_text(), re.M), "so do they"
        )
        metrics = file.read_text()
    finally:
        process.terminate()
        code, _, stderr = ended(process)
    assert code in (143, -15)
    return Seen(progress, words, metrics, stderr.splitlines())


def progress_of(out: Path) -> dict[str, Any]:
    done = inside("status", out, "--json")
    return (json.loads(done.stdout)["progress"] or {}) if done.returncode == 0 else {}


def check(seen: Seen, reason: str, *, gives_up: bool = True) -> None:
    """All places say the same reason, and say it once."""
    why = seen.progress["standstill"]
    assert reason in why["reason"]
    since = datetime.fromisoformat(why["since"])
    assert (why["until"] is not None) is gives_up
    assert not gives_up or datetime.fromisoformat(why["until"]) > since
    stalled = next(line for line in seen.words.splitlines() if line.startswith("stalled"))
    assert reason in stalled and ("goes on trying until" in stalled) is gives_up
    since_line = re.search(r'stalled_since_timestamp_seconds\{.*reason="(.*)"\} (.*)', seen.metrics)
    assert since_line is not None and reason in since_line[1]
    assert abs(float(since_line[2]) - since.timestamp()) < 5
    said = [line for line in seen.log if "nothing has succeeded since" in line]
    assert len(said) == 1 and reason in said[0], seen.log


def test_a_refused_connection(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with unused_port() as port:
        run = ["run", source, "-o", out, "--base-url", f"http://127.0.0.1:{port}/v1"]
        seen = watch(run, out, tmp_path)
    check(seen, "the connection was refused; one request goes every 5 s as a probe")
    assert seen.progress["retries"] > 0 and seen.progress["requests"] > 0
    assert re.search(r"requests   [\d,]+, [\d.]+/s, [\d,]+ sent again", seen.words)


def test_an_endpoint_that_answers_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        seen = watch(["run", source, "-o", out, "--base-url", url], out, tmp_path)
    check(seen, "the endpoint has not answered yet; a request is given up after 60 s")


def test_a_pause_that_the_endpoint_asks_for(serve: Serve, source: Path, tmp_path: Path) -> None:
    own, out = serve(PAUSE), tmp_path / "out"
    seen = watch(fast(own, out, source), out, tmp_path)
    check(seen, "the endpoint answered 429")
    assert "it asks for a pause" in seen.words
    assert seen.progress["throttled"] > 0
    assert "throttled" in seen.words


def test_a_coordinator_that_is_out_of_reach(server: Server, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with unused_port() as port:
        coordinator = ["--coordinator", f"http://127.0.0.1:{port}"]
        run = fast(server, out, source)
        run[run.index("--requests-per-minute") + 1] = 600
        seen = watch([*run, *coordinator], out, tmp_path)
    check(seen, "waiting for a first lease from the coordinator")


def test_a_run_that_goes_on_says_so(serve: Serve, source: Path, tmp_path: Path) -> None:
    own, out = serve(DOWN), tmp_path / "out"
    code, _, stderr = ended(started(*fast(own, out, source), "--max-in-flight", 2))
    assert code == 0
    why, over = stderr.splitlines()
    assert "the endpoint answered 503" in why
    assert re.fullmatch(r"batchrank: goes on after \d+ s", over)


def test_a_run_at_work_that_writes_no_figures_is_told(
    serve: Serve, source: Path, tmp_path: Path
) -> None:
    own, out = serve('[[fault]]\nkind = "slow"\nseconds = 1.0\n'), tmp_path / "out"
    process = started(*fast(own, out, source), "--max-in-flight", 1)
    live = out / "_batchrank" / "live.json"
    until(live.exists, "it is at work")
    os.kill(process.pid, signal.SIGSTOP)
    try:
        old = live.stat().st_mtime - 60
        os.utime(live, (old, old))
        assert progress_of(out)["standstill"]["kind"] == "silent"
        assert "has written no figures" in inside("status", out).stdout
    finally:
        os.kill(process.pid, signal.SIGCONT)
        killed(process)
    assert progress_of(out)["standstill"] is None, "nobody waits any more"
