"""jobs/airflow_rerank.py under a real Airflow: `airflow dags test` of nights of three files, with
retries and all, against our server. Airflow has its own environment and calls the program of ours.
"""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers import Server, ended, expected_of, output, started, table, until, written
from peer import PEERS, ROOT, environment

Serve = Callable[..., Server]
DAY, NEXT = "2026-11-24", "2026-11-25"
SHARDS = ("a", "b", "c")
ROWS = 12


class Airflow:
    """An Airflow with a database of its own, which knows the DAGs in jobs/ and no others."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.log = home / "dags-test.log"

    def begin(self, *arguments: object, **more: str) -> "subprocess.Popen[bytes]":
        """An `airflow` command, begun; what it says goes to the log."""
        settings = {
            "CORE__DAGS_FOLDER": str(ROOT / "jobs"),
            "CORE__LOAD_EXAMPLES": "False",
            "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home / 'airflow.db'}",
            "USAGE_DATA_COLLECTION__ENABLED": "False",
        }
        own = {f"AIRFLOW__{name}": value for name, value in settings.items()}
        own |= {
            "BATCHRANK_RETRY_SECONDS": "5",
            "AIRFLOW_HOME": str(self.home),
            "BATCHRANK": f"{Path(sys.executable).parent}/batchrank",
        }
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [PEERS / "airflow/bin/airflow", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(**own, **more),
                cwd=self.home,
            )

    def night(self, folder: Path, day: str = DAY, **more: str) -> "subprocess.Popen[bytes]":
        """A run of the DAG for a date, begun."""
        conf = {
            "rows": f"{folder}/rows/{{date}}/*.parquet",
            "scores": f"{folder}/scores/{{date}}",
            "config": f"{folder}/batchrank.toml",
        }
        return self.begin("dags", "test", "airflow_rerank", day, "--conf", json.dumps(conf), **more)

    def says(self, words: str) -> bool:
        return words in self.log.read_text()

    def tries(self) -> dict[str, tuple[str, int]]:
        """How each task ended, and at which try."""
        found = self._ask("select task_id, map_index, state, try_number from task_instance")
        return {
            task if index < 0 else f"{task} {SHARDS[index]}": (state, tries)
            for task, index, state, tries in found
        }

    def bill(self) -> dict[str, float]:
        """What the last task returned."""
        ((value,),) = self._ask("select value from xcom where task_id = 'bill'")
        figures: dict[str, float] = json.loads(value)
        return figures

    def _ask(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(self.home / "airflow.db")) as database:
            return database.execute(query).fetchall()


def well(airflow: Airflow, process: "subprocess.Popen[bytes]") -> bool:
    """Whether a run ended well; what Airflow said is shown when a test fails."""
    try:
        code = process.wait(timeout=180)
    finally:
        process.kill()
        print(airflow.log.read_text()[-20_000:])
    return code == 0


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    airflow = Airflow(tmp_path_factory.mktemp("airflow"))
    assert well(airflow, airflow.begin("db", "migrate"))
    return airflow.home


@pytest.fixture
def install(migrated: Path, tmp_path: Path) -> Callable[[str], Airflow]:
    """`install(name)`: another Airflow, with a fresh database."""
    return lambda name: Airflow(shutil.copytree(migrated, tmp_path / name))


@pytest.fixture
def airflow(install: Callable[[str], Airflow]) -> Airflow:
    return install("airflow")


def nights(folder: Path, base_url: str, *days: str, rows: int = ROWS, more: str = "") -> Path:
    """Three input files for each date, and a configuration."""
    for day in days:
        for name in SHARDS:
            written(folder / "rows" / day / f"{name}.parquet", table(rows, tag=f"{day}{name}"))
    (folder / "batchrank.toml").write_text(
        "[rate]\nrequests_per_minute = 0\nmax_in_flight = 2\n"
        f'[endpoint]\nbase_url = "{base_url}"\n{more}'
    )
    return folder


def is_whole(folder: Path, day: str = DAY) -> bool:
    """Whether every input row of a date has the scores that our server gives."""
    for name in SHARDS:
        rows = pq.read_table(folder / "rows" / day / f"{name}.parquet").to_pylist()
        out = folder / "scores" / day / name
        assert (out / "_SUCCESS").exists()
        assert output(out).column("results").to_pylist() == [expected_of(row) for row in rows]
    return True


def test_a_night_is_scored_and_the_same_night_again_sends_nothing(
    airflow: Airflow, serve: Serve, tmp_path: Path
) -> None:
    own = serve()
    folder = nights(tmp_path, own.base_url, DAY, NEXT)
    assert well(airflow, airflow.night(folder))
    assert is_whole(folder)
    assert not (folder / "scores" / NEXT).exists()
    ledger, bill = own.ledger(), airflow.bill()
    assert ledger["received"] == ledger["unique"] == len(SHARDS) * ROWS
    assert (bill["rows"], bill["rows_scored"]) == (len(SHARDS) * ROWS, len(SHARDS) * ROWS)
    assert (bill["requests"], bill["tokens_billed"]) == (ledger["requests"], ledger["tokens"])
    assert bill["cost_usd"] == pytest.approx(ledger["tokens"] * 0.1 / 1e6, abs=3e-6)

    assert well(airflow, airflow.night(folder))
    assert own.received == ledger["received"]
    assert airflow.bill() == bill


def test_a_refused_key_is_not_tried_again(airflow: Airflow, gate: Server, tmp_path: Path) -> None:
    folder = nights(tmp_path, gate.base_url, DAY, more='provider = "dashscope"\n')
    assert not well(airflow, airflow.night(folder, DASHSCOPE_API_KEY="sk-wrong"))
    assert airflow.says("batchrank run ended with 77: batchrank: the endpoint answered 401")
    assert not airflow.says("sk-wrong")
    tries = airflow.tries()
    assert [tries[f"rerank {name}"] for name in SHARDS] == [("failed", 1)] * len(SHARDS)
    assert tries["bill"] == ("upstream_failed", 0)


def test_an_output_that_another_run_holds_is_tried_again(
    airflow: Airflow, serve: Serve, tmp_path: Path
) -> None:
    own = serve('[[fault]]\nkind = "stall"\nwhere = { from = 1, to = 2 }\n')
    folder = nights(tmp_path, own.base_url, DAY)
    file, out = folder / "rows" / DAY / "a.parquet", folder / "scores" / DAY / "a"
    holder = started("run", file, "-o", out, "-c", folder / "batchrank.toml")
    until(lambda: own.received == 2, "another run holds the output")
    process = airflow.night(folder)
    until(lambda: airflow.says("batchrank run ended with 75"), "the task has met it", 120)
    holder.send_signal(signal.SIGTERM)
    assert ended(holder)[0] == 143
    assert well(airflow, process)
    assert is_whole(folder)
    state, tries = airflow.tries()["rerank a"]
    assert state == "success" and 2 <= tries <= 4
    assert airflow.tries()["rerank b"] == ("success", 1)


def test_sigterm_is_passed_on_and_the_next_try_goes_on(
    airflow: Airflow, serve: Serve, tmp_path: Path
) -> None:
    own = serve('[[fault]]\nkind = "slow"\nseconds = 0.1\n')
    folder = nights(tmp_path, own.base_url, DAY, rows=60)
    process = airflow.night(folder)
    until(lambda: own.received >= 10, "the first file is being scored", 120)
    process.send_signal(signal.SIGTERM)
    assert well(airflow, process)
    assert airflow.says("batchrank run ended with 143: batchrank: stopped by SIGTERM")
    assert airflow.tries()["rerank a"] == ("success", 2)
    assert is_whole(folder)
    assert own.received == own.ledger()["unique"] == 60 * len(SHARDS)


def test_two_nights_at_once_are_both_whole(
    install: Callable[[str], Airflow], serve: Serve, tmp_path: Path
) -> None:
    own = serve()
    folder = nights(tmp_path, own.base_url, DAY, NEXT)
    both = [(one, one.night(folder, day)) for day in (DAY, NEXT) for one in [install(day)]]
    assert [well(one, process) for one, process in both] == [True, True]
    assert is_whole(folder, DAY) and is_whole(folder, NEXT)
    assert own.received == own.ledger()["unique"] == 2 * len(SHARDS) * ROWS


def test_the_same_night_twice_at_once_is_scored_once(
    install: Callable[[str], Airflow], serve: Serve, tmp_path: Path
) -> None:
    own = serve('[[fault]]\nkind = "slow"\nseconds = 0.1\n')
    folder = nights(tmp_path, own.base_url, DAY, rows=30)
    both = [(one, one.night(folder)) for one in (install("one"), install("two"))]
    assert [well(one, process) for one, process in both] == [True, True]
    assert is_whole(folder)
    assert own.received == own.ledger()["unique"] == len(SHARDS) * 30
