"""Killed at any moment, the same command goes on: nothing is lost, nothing committed is paid twice.

"In flight" at a kill is what was sent and not committed: the ledger knows what was sent, a copy of
the checkpoint what was committed. BATCHRANK_TRIALS raises the number of kills.
"""

import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random, SystemRandom
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from helpers import (
    Server,
    content,
    ended,
    fast,
    inside,
    killed,
    part_bytes,
    score,
    started,
    table,
    until,
    written,
)

from batchrank.records import row_of

TRIALS = int(os.environ.get("BATCHRANK_TRIALS", "10"))
SLOW = """
[[fault]]
kind = "slow"
where = { probability = 0.5 }
seconds = 0.05
"""


class Job(NamedTuple):
    """Rows of one request each, their file, and what an undisturbed run publishes."""

    rows: pa.Table
    rows_per_part: int
    source: Path
    oracle: dict[str, bytes]

    @property
    def output(self) -> dict[str, Any]:
        """Its section of the configuration."""
        return {"rows_per_part": self.rows_per_part}

    def command(self, own: Server, folder: Path) -> list[object]:
        """The command line that runs it, into `out` of this folder."""
        config = folder / "batchrank.toml"
        config.write_text(f"[output]\nrows_per_part = {self.rows_per_part}\n")
        return [*fast(own, folder / "out", self.source), "--max-in-flight", 16, "-c", config]


def job_of(rows: int, server: Server, folder: Path) -> Job:
    """A job of so many rows in ten parts."""
    content = table(rows, tag="kill")
    source = written(folder / "in.parquet", content)
    score(server, source, folder / "oracle", output={"rows_per_part": rows // 10})
    return Job(content, rows // 10, source, part_bytes(folder / "oracle"))


@pytest.fixture(scope="module")
def large(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Three thousand rows, for many kills."""
    return job_of(3000, server, tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="module")
def small(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Six hundred rows, where a kill or two are enough."""
    return job_of(600, server, tmp_path_factory.mktemp("small"))


def answers(out: Path, scratch: Path) -> set[int]:
    """The rows whose answers a copy of the checkpoint holds; the state itself is not touched."""
    return answers_in(out / "_batchrank", scratch)


def answers_in(state: Path, scratch: Path) -> set[int]:
    """The same of a state, wherever it is."""
    shutil.rmtree(scratch, ignore_errors=True)
    if not (state / "checkpoint.sqlite").exists():
        return set()
    shutil.copytree(state, scratch)
    with closing(sqlite3.connect(scratch / "checkpoint.sqlite")) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'answers'").fetchone():
            return set()
        return {row_of(plan) for (plan,) in database.execute("SELECT plan FROM answers")}


def published(out: Path, job: Job) -> set[int]:
    """The rows of the parts that exist."""
    size = job.rows_per_part
    first = [int(path.stem[5:]) * size for path in out.glob("part-*.parquet")]
    return {row for start in first for row in range(start, start + size)}


def identities(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every part."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in out.glob("part-*.parquet")
    }


def settled(own: Server) -> dict[str, Any]:
    """The ledger once it has stopped moving, when nobody sends any more."""
    before, now = own.ledger(full=True), None
    while before != now:
        time.sleep(0.1)
        before, now = now, own.ledger(full=True)
    assert now is not None
    return now


def test_a_run_killed_at_random_instants_ends_with_the_same_bytes(
    serve: Callable[..., Server], large: Job, tmp_path: Path
) -> None:
    own = serve(SLOW)
    run = large.command(own, tmp_path)
    out, seed = tmp_path / "out", SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    random = Random(seed)
    contents = [content(row) for row in large.rows.to_pylist()]
    in_flight, kills, committed, parts = 0, 0, set[int](), dict[str, tuple[int, int]]()
    before = own.ledger(full=True)
    while kills < TRIALS:
        process = started(*run)
        time.sleep(random.uniform(0.2, 1.6))
        if killed(process) != -signal.SIGKILL:
            break  # it had ended before
        kills += 1
        ledger = settled(own)
        done = answers(out, tmp_path / "copy") | published(out, large)
        assert committed <= done
        sent = ledger["requests"] - before["requests"]
        in_flight += sent - len(done - committed)
        paid = {name: times for name, (times, _) in ledger["per_content"].items()}
        earlier = {name: times for name, (times, _) in before["per_content"].items()}
        for row in committed:
            assert paid[contents[row]] == earlier[contents[row]], f"row {row} was paid again"
        assert part_bytes(out).items() <= large.oracle.items()
        now = identities(out)
        assert parts.items() <= now.items()
        assert not (out / "_SUCCESS").exists() or len(now) == len(large.oracle)
        before, committed, parts = ledger, done, now
    done = inside(*run)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert part_bytes(out) == large.oracle
    assert parts.items() <= identities(out).items()
    ledger = own.ledger()
    twice = ledger["requests"] - ledger["unique"]
    print(f"{kills} kills, {in_flight} requests in flight at them, {twice} paid twice")
    assert ledger["unique"] == large.rows.num_rows
    assert twice <= in_flight
    assert inside("verify", out).returncode == 0


def test_what_was_committed_is_not_sent_again_when_killed_at_half(
    serve: Callable[..., Server], small: Job, tmp_path: Path
) -> None:
    own = serve(SLOW)
    run = small.command(own, tmp_path)
    out = tmp_path / "out"
    process = started(*run)
    until(lambda: own.received > small.rows.num_rows / 2, "half is sent")
    assert killed(process) == -signal.SIGKILL
    paid = settled(own)["per_content"]
    committed = answers(out, tmp_path / "copy") | published(out, small)
    assert len(committed) > small.rows.num_rows / 4
    assert inside(*run).returncode == 0
    again = own.ledger(full=True)["per_content"]
    contents = [content(row) for row in small.rows.to_pylist()]
    assert [row for row in committed if paid[contents[row]] != again[contents[row]]] == []
    assert part_bytes(out) == small.oracle


def test_a_run_killed_right_after_a_part_appears_still_knows_what_it_paid(
    serve: Callable[..., Server], small: Job, tmp_path: Path
) -> None:
    own = serve(SLOW)
    run = small.command(own, tmp_path)
    out = tmp_path / "out"
    for part in (0, 3, 6):
        process = started(*run)
        name = f"part-{part:05}.parquet"
        until((out / name).exists, f"{name} is published")
        assert killed(process) == -signal.SIGKILL
    done = inside(*run, "--summary", "json")
    assert done.returncode == 0
    receipt, ledger = json.loads(done.stdout), own.ledger()
    assert receipt["requests"] >= small.rows.num_rows, "paid answers are not in the account"
    assert receipt["requests"] <= ledger["requests"]
    assert receipt["tokens_billed"] <= ledger["tokens"]


def test_a_finished_output_sends_nothing_and_ends_with_0(
    serve: Callable[..., Server], small: Job, tmp_path: Path
) -> None:
    own = serve(SLOW)
    run = small.command(own, tmp_path)
    assert inside(*run).returncode == 0
    before, parts = own.received, identities(tmp_path / "out")
    receipt = (tmp_path / "out" / "_run.json").read_bytes()
    done = inside(*run)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert own.received == before
    assert identities(tmp_path / "out") == parts
    assert (tmp_path / "out" / "_run.json").read_bytes() == receipt
    assert part_bytes(tmp_path / "out") == small.oracle


def test_a_part_that_was_renamed_but_not_noted_is_adopted(
    serve: Callable[..., Server], small: Job, tmp_path: Path
) -> None:
    own = serve(SLOW)
    run = small.command(own, tmp_path)
    out = tmp_path / "out"
    process = started(*run)
    until((out / "part-00002.parquet").exists, "three parts are published")
    process.terminate()
    assert ended(process)[0] == 143
    with closing(sqlite3.connect(out / "_batchrank" / "checkpoint.sqlite")) as database:
        noted = database.execute("SELECT count(*) FROM parts").fetchone()[0]
        assert database.execute("DELETE FROM parts WHERE part IN (0, 2)").rowcount == 2
        database.commit()
    assert noted < len(small.oracle)
    sent, parts = own.ledger()["unique"], identities(out)
    assert inside(*run).returncode == 0
    assert part_bytes(out) == small.oracle
    assert parts.items() <= identities(out).items()
    assert own.ledger()["requests"] - own.ledger()["unique"] <= 16
    assert own.ledger()["unique"] == small.rows.num_rows >= sent
    with closing(sqlite3.connect(out / "_batchrank" / "checkpoint.sqlite")) as database:
        assert database.execute("SELECT count(*) FROM parts").fetchone()[0] == len(small.oracle)
        assert database.execute("SELECT count(*) FROM answers").fetchone()[0] == 0


def test_all_parts_renamed_and_none_noted_needs_no_request(
    server: Server, small: Job, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    score(server, small.source, out, output=small.output)
    for name in ("_SUCCESS", "_run.json"):
        (out / name).unlink()
    with closing(sqlite3.connect(out / "_batchrank" / "checkpoint.sqlite")) as database:
        database.execute("DELETE FROM parts")
        database.commit()
    before, parts = server.received, identities(out)
    receipt = score(server, small.source, out, output=small.output)
    assert (receipt.rows_scored, receipt.exit_code) == (small.rows.num_rows, 0)
    assert server.received == before
    assert identities(out) == parts
    assert (out / "_SUCCESS").exists()
    assert inside("verify", out).returncode == 0


def test_a_deleted_part_is_scored_again_and_the_others_are_not(
    server: Server, small: Job, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    score(server, small.source, out, output=small.output)
    (out / "_SUCCESS").unlink()
    (out / "part-00004.parquet").unlink()
    before, parts = server.received, identities(out)
    score(server, small.source, out, output=small.output)
    assert server.received - before == small.rows_per_part
    assert parts.items() <= identities(out).items()
    assert part_bytes(out) == small.oracle


def test_a_killed_run_leaves_no_local_server_behind(small: Job, tmp_path: Path) -> None:
    process = started("run", small.source, "-o", tmp_path / "out")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until(lambda: bool(children.read_text().split()), "the local server is started")
    child = Path("/proc") / children.read_text().split()[0]
    until(lambda: b"serve" in (child / "cmdline").read_bytes(), "it has become that server")
    time.sleep(Random(7).uniform(0, 1.5))
    assert killed(process) == -signal.SIGKILL
    until(lambda: not child.exists(), "the local server has ended", 10)
