"""jobs/dask_rerank.py on real clusters of processes: the shards of one output make what a single
process makes, whoever is killed or stopped on the way, and the account sees one user.
"""

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from helpers import (
    Server,
    clean,
    content,
    ended,
    expected_of,
    inside,
    output,
    part_bytes,
    score,
    started,
    table,
    until,
    written,
)

from batchrank.output.receipt import read_live
from batchrank.records import row_of

JOB = Path(__file__).parents[1] / "jobs" / "dask_rerank.py"
ROWS, ROWS_PER_PART = 600, 20
PER_MINUTE, IN_FLIGHT = 6000, 8
SLOW = '[[fault]]\nkind = "slow"\nwhere = { probability = 0.5 }\nseconds = 0.05\n'
LIMITED = ("--requests-per-minute", str(PER_MINUTE), "--window", "sliding_minute")
Serve = Callable[..., Server]

CLUSTER = """
import sys
from distributed import LocalCluster

if __name__ == "__main__":
    own = {"threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=2, **own) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


class Job(NamedTuple):
    """An input, its output, and a configuration with so many parts for every shard."""

    folder: Path
    config: Path
    address: str | None = None

    @property
    def out(self) -> Path:
        return self.folder / "scores"

    def begin(self, *more: object, **environment: str) -> "subprocess.Popen[str]":
        """The job begun, as a user would, on processes of its own or at the cluster's address."""
        where = ["--address", self.address] if self.address else []
        given = [self.folder / "rows.parquet", self.out, "-c", self.config, *where, *more]
        return subprocess.Popen(
            [sys.executable, JOB, *map(str, given)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean(BATCHRANK_RETRY_SECONDS="6", **environment),
        )

    def done_by(self, shard: int, shards: int) -> int:
        """How many rows a shard has behind it."""
        live = read_live(self.state(shard, shards))
        return 0 if live is None else live.rows_done

    def state(self, shard: int, shards: int) -> Path:
        return self.out / "_batchrank" / f"shard-{shard:03}-of-{shards:03}"

    def committed(self, shard: int, shards: int) -> set[int]:
        """The rows of a shard whose answers count. Its worker must have been stopped."""
        with closing(sqlite3.connect(self.state(shard, shards) / "checkpoint.sqlite")) as database:
            rows = {row_of(plan) for (plan,) in database.execute("SELECT plan FROM answers")}
        parts = [int(path.stem[5:]) for path in self.out.glob("part-*.parquet")]
        mine = [part for part in parts if part % shards == shard]
        return rows | {part * ROWS_PER_PART + row for part in mine for row in range(ROWS_PER_PART)}


def job_at(folder: Path, own: Server, address: str | None = None, more: str = "") -> Job:
    """Rows that take six seconds at the account's limit."""
    written(folder / "rows.parquet", table(ROWS, tag="dask"))
    config = folder / "batchrank.toml"
    config.write_text(
        f'[endpoint]\nbase_url = "{own.base_url}"\n{more}'
        f"[rate]\nrequests_per_minute = {PER_MINUTE}\nramp_seconds = 0\n"
        f"max_in_flight = {IN_FLIGHT}\n[output]\nrows_per_part = {ROWS_PER_PART}\n"
    )
    return Job(folder, config, address)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster that is there before and after a job: the address of its scheduler."""
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=clean(),
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


@pytest.fixture(scope="module")
def oracle(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes of the rows."""
    folder = tmp_path_factory.mktemp("oracle")
    source = written(folder / "rows.parquet", table(ROWS, tag="dask"))
    score(server, source, folder / "out", output={"rows_per_part": ROWS_PER_PART})
    return part_bytes(folder / "out")


def until_it(process: "subprocess.Popen[str]", has: Callable[[], bool], what: str) -> None:
    """Wait for something that a job does before it ends."""
    until(lambda: has() or process.poll() is not None, what, 90)
    assert process.poll() is None, ended(process)


def working_on(state: Path) -> psutil.Process:
    """The process that holds a shard's lock."""
    lock = str(state / "lock")
    for process in psutil.process_iter():
        try:
            if any(file.path == lock for file in process.open_files()):
                return process
        except psutil.Error:
            continue
    raise AssertionError(f"nobody holds {lock}")


def test_a_killed_worker_s_shard_goes_on_in_another(
    serve: Serve, oracle: dict[str, bytes], tmp_path: Path
) -> None:
    own = serve(SLOW, *LIMITED)
    job = job_at(tmp_path, own)
    process = job.begin("--workers", 3)
    until_it(process, lambda: job.done_by(0, 3) > 2 * ROWS_PER_PART, "two parts' rows are done")
    worker = working_on(job.state(0, 3))
    worker.suspend()
    committed = job.committed(0, 3)
    worker.kill()
    code, said, complained = ended(process, 120)
    assert (code, said) == (0, ""), complained
    assert part_bytes(job.out) == oracle
    ledger = own.ledger(full=True)
    contents = [content(row) for row in table(ROWS, tag="dask").to_pylist()]
    paid = {name: times for name, (times, _) in ledger["per_content"].items()}
    assert len(committed) > 2 * ROWS_PER_PART
    assert {paid[contents[row]] for row in committed} == {1}
    assert ledger["unique"] == ROWS
    twice = ledger["requests"] - ROWS
    print(f"{len(committed)} rows of the shard done when it was killed, {twice} paid twice")
    assert set(ledger["statuses"]) == {"200"}, "the limit was passed"
    assert inside("verify", job.out).returncode == 0


def test_stopped_it_drains_and_the_same_command_goes_on(
    serve: Serve, oracle: dict[str, bytes], address: str, tmp_path: Path
) -> None:
    own = serve(SLOW, *LIMITED)
    job = job_at(tmp_path, own, address)
    process = job.begin()
    until_it(process, lambda: own.received > ROWS / 4, "a quarter is sent")
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (
        143,
        "",
        "dask_rerank: stopped by SIGTERM; the same command goes on from here.\n",
    )
    assert own.received < ROWS
    assert ended(job.begin(), 120) == (0, "", "")
    assert part_bytes(job.out) == oracle
    ledger = own.ledger()
    assert ledger["received"] == ledger["unique"] == ROWS


def test_when_it_is_killed_the_workers_stop_and_the_same_command_goes_on(
    serve: Serve, oracle: dict[str, bytes], address: str, tmp_path: Path
) -> None:
    own = serve(SLOW, *LIMITED)
    job = job_at(tmp_path, own, address)
    process = job.begin()
    until_it(process, lambda: own.received > ROWS / 4, "a quarter is sent")
    process.kill()
    process.communicate()
    assert ended(job.begin(), 120)[:2] == (0, "")
    assert part_bytes(job.out) == oracle
    ledger = own.ledger()
    assert ledger["received"] == ledger["unique"] == ROWS


def test_a_shard_that_somebody_else_holds_is_tried_again(
    serve: Serve, address: str, tmp_path: Path
) -> None:
    own = serve('[[fault]]\nkind = "stall"\nwhere = { from = 1, to = 8 }\n')
    job = job_at(tmp_path, own, address)
    source = job.folder / "rows.parquet"
    holder = started("run", source, "-o", job.out, "-c", job.config, "--shard", "1/2")
    until(lambda: own.received == IN_FLIGHT, "another run holds the shard")
    process = job.begin("--shards", 2)
    until_it(process, lambda: job.done_by(0, 2) > 0, "the other shard is at work")
    holder.send_signal(signal.SIGTERM)
    assert ended(holder)[0] == 143
    assert ended(process, 120)[:2] == (0, "")
    rows = table(ROWS, tag="dask").to_pylist()
    assert output(job.out).column("results").to_pylist() == [expected_of(row) for row in rows]


def test_a_refused_key_is_not_tried_again(serve: Serve, address: str, tmp_path: Path) -> None:
    own = serve("", "--api-key-env", "GATE", GATE="sk-right")
    (tmp_path / "key").write_text("sk-wrong")
    more = f'provider = "dashscope"\napi_key_file = "{tmp_path / "key"}"\n'
    code, said, complained = ended(job_at(tmp_path, own, address, more).begin(), 120)
    assert (code, said) == (77, "")
    assert complained.startswith("dask_rerank: the endpoint answered 401")
    assert complained.count("\n") == 1 and "sk-wrong" not in complained
    assert own.received <= 2 * IN_FLIGHT


def test_without_a_scheduler_it_says_so(server: Server, tmp_path: Path) -> None:
    job = job_at(tmp_path, server, "tcp://127.0.0.1:1")
    process = job.begin(DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="1s")
    code, said, complained = ended(process)
    assert (code, said) == (75, "")
    assert complained.startswith("dask_rerank: tcp://127.0.0.1:1: no scheduler of Dask's answers: ")
    assert not job.out.exists()
