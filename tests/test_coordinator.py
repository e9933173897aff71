"""The coordinator and its workers as processes, before a server that holds the limit."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pyarrow.parquet as pq
import pytest
from helpers import (
    PROGRAM,
    Server,
    clean,
    ended,
    fast,
    inside,
    program,
    serving,
    started,
    table,
    until,
    written,
)

RPM = 1500
CANARY = "s3cret-canary"
LEASE_SECONDS = 2.0


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, where the secrets lie."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@contextmanager
def coordinating(
    *options: object, workers: int = 3, port: int = 0, **environment: str
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A coordinator of so many workers while the block runs, or until it is killed; its URL."""
    command = [*PROGRAM, "coordinate", "--workers", workers, "--requests-per-minute", RPM]
    command += ["--port", port, "--lease-seconds", LEASE_SECONDS, *options]
    with subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean(**environment),
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def posted(url: str, body: bytes, **headers: str) -> tuple[int, Any]:
    """The status and the answer, where there is one. Underscores are hyphens in headers."""
    given = {"Content-Type": "application/json", "Authorization": f"Bearer {CANARY}"}
    given |= {name.replace("_", "-"): text for name, text in headers.items()}
    try:
        with urlopen(Request(url + "/lease", body, given), timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except HTTPError as error:
        return error.code, None


def shares(url: str) -> dict[str, float]:
    with urlopen(url + "/health", timeout=60) as answer:
        health = json.loads(answer.read())
    assert health["status"] == "ok"
    return health["shares"]  # type: ignore[no-any-return]


def work(server: Server, url: str, rows: Path, out: Path) -> "subprocess.Popen[str]":
    """A worker: a run of its own, under the account that the coordinator divides."""
    return started(
        *("run", rows, "-o", out, "--base-url", server.base_url, "--coordinator", url),
        *("--requests-per-minute", RPM, "--summary", "json"),
    )


def an_input(folder: Path, name: str, rows: int) -> Path:
    path = folder / f"{name}.parquet"
    pq.write_table(table(rows, 1, tag=name), path)
    return path


def test_three_workers_share_the_account_and_the_last_has_all(tmp_path: Path) -> None:
    """The coordinator is killed and begun anew meanwhile. Not one 429, by the server's count."""
    limit = ["--requests-per-minute", str(RPM), "--window", "sliding_minute"]
    sizes = {"short": 100, "middle": 200, "long": 1000}
    with serving(*limit) as server:
        with coordinating() as (process, url):
            workers = [
                work(server, url, an_input(tmp_path, name, rows), tmp_path / name)
                for name, rows in sizes.items()
            ]
            until(lambda: server.received > 150, "the workers are at work")
            process.kill()
        port = url.rsplit(":", 1)[1]
        time.sleep(LEASE_SECONDS * 1.5)  # what is shown is what workers do without one
        alone = server.received
        until(lambda: server.received > alone, "the workers go on without the coordinator")
        with coordinating(port=int(port)) as (_, again):
            assert again == url
            until(lambda: max(shares(url).values(), default=0) > 0.9, "one has all", 60)
            outcomes = [ended(worker, 90) for worker in workers]
        assert [code for code, _, _ in outcomes] == [0, 0, 0], outcomes
        statuses = server.ledger()["statuses"]
    assert statuses == {"200": sum(sizes.values())}
    receipts = [json.loads(said.splitlines()[-1]) for _, said, _ in outcomes]
    assert [receipt["retries"] for receipt in receipts] == [0, 0, 0]
    assert "out of reach" in outcomes[2][2] and "answers again" in outcomes[2][2]


def test_without_a_coordinator_a_worker_says_so_and_can_come_again(tmp_path: Path) -> None:
    with serving() as server:
        worker = work(server, "http://127.0.0.1:9", an_input(tmp_path, "t", 3), tmp_path / "out")
        code, _, said = ended(worker)
        assert server.received == 0
    assert code == 75
    assert "no lease from the coordinator" in said and "--shard" in said


def test_a_worker_that_waits_for_a_coordinator_can_be_stopped(tmp_path: Path) -> None:
    with serving() as server:
        worker = work(server, "http://127.0.0.1:9", an_input(tmp_path, "t", 3), tmp_path / "out")
        until(lambda: (tmp_path / "out" / "_batchrank" / "checkpoint.sqlite").exists(), "it began")
        time.sleep(0.5)
        worker.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert ended(worker)[0] == 143
        assert time.monotonic() - began < 4


def test_another_accounts_limits_are_refused(tmp_path: Path) -> None:
    with serving() as server, coordinating() as (_, url):
        done = program(
            *("run", an_input(tmp_path, "t", 3), "-o", tmp_path / "out"),
            *("--base-url", server.base_url, "--coordinator", url),
        )
    assert done.returncode == 78
    assert "1500" in done.stderr and "5400" in done.stderr


def test_beyond_loopback_there_must_be_a_secret() -> None:
    done = program("coordinate", "--workers", 2, "--host", "0.0.0.0", "--port", 0)
    assert done.returncode == 78
    assert "BATCHRANK_COORDINATOR_KEY" in done.stderr


def test_who_does_not_know_the_secret_gets_nothing(tmp_path: Path) -> None:
    key = {"BATCHRANK_COORDINATOR_KEY": "s3cret-canary"}
    with serving() as server, coordinating(**key) as (process, url):
        assert posted(url, b"{}", Authorization="")[0] == 401
        assert posted(url, b"{}", Authorization="Bearer s3cret-canarY")[0] == 401
        assert posted(url, b"{}", Authorization="Bearer s3cret-canary")[0] == 400
        rows = an_input(tmp_path, "t", 3)
        common = ["--base-url", server.base_url, "--requests-per-minute", RPM]
        key["BATCHRANK_COORDINATOR"] = url
        refused = program("run", rows, "-o", tmp_path / "a", *common, BATCHRANK_COORDINATOR=url)
        let_in = program("run", rows, "-o", tmp_path / "b", *common, **key)
        process.terminate()
        assert process.wait(10) == 0
        assert process.stderr is not None and "canary" not in process.stderr.read()
    assert (refused.returncode, let_in.returncode) == (78, 0)
    assert "secret" in refused.stderr and "canary" not in refused.stderr


def test_what_is_no_ask_is_refused_and_harms_nobody() -> None:
    good = {"worker": "w", "serial": 1, "requests_per_minute": RPM, "tokens_per_minute": 0}
    odd: list[dict[str, Any]] = [
        {**good, "holding": [[-5, 3]]},
        {**good, "holding": [[0, 10**9]]},
        {**good, "holding": [[9, 3]]},
        {**good, "wants": -1},
        {**good, "wants": 1e308},
        {**good, "seat": -1},
        {**good, "worker": "w" * 10_000},
    ]
    with coordinating(BATCHRANK_COORDINATOR_KEY=CANARY) as (_, url):
        for body in (
            b"",
            b"[]",
            b"{",
            b"\xff",
            b'{"worker": 1}',
            b'{"holding": ' + b"[" * 500_000,
            b'{"serial": ' + b"9" * 1_000_000 + b"}",
            *(json.dumps(o).encode() for o in odd),
        ):
            assert posted(url, body)[0] == 400, body
        assert posted(url, b"x" * (2 << 20))[0] == 413
        status, lease = posted(url, json.dumps(good).encode())
        assert status == 200 and lease["type"] == "Lease"
        assert shares(url) == {"0": 0.0033}


def test_what_can_be_no_address_is_refused_at_once(server: Server, tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(2, tag="nowhere"))
    done = inside(*fast(server, tmp_path / "out", source), "--coordinator", "nonsense")
    assert (done.returncode, len(done.stderr.splitlines())) == (78, 1)
    assert not (tmp_path / "out").exists()
