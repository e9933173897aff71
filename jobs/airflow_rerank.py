"""Every night's rows, scored by Airflow 3: a task for each input file of the run's date.

Put this file into the DAGs folder. Airflow and batchrank may have environments of their own: set
BATCHRANK to the program's path if it is not on the worker's PATH. The key comes from the worker's
environment or from endpoint.api_key_file. In the parameters {date} is the day of the logical date:

    airflow dags test airflow_rerank 2026-11-24 --conf '{"rows": "/srv/rows/{date}/*.parquet",
        "scores": "/srv/scores/{date}", "config": "/srv/prod.toml"}'

NAME.parquet is scored into SCORES/NAME. A task that is run again goes on where it stopped, and one
that was done sends nothing; of two at once the second waits for another try. Those come after
BATCHRANK_RETRY_SECONDS (300), and only for what another try may mend.
"""

import json
import os
from datetime import datetime, timedelta
from glob import glob
from pathlib import Path
from signal import SIGTERM, signal
from subprocess import PIPE, Popen
from typing import Any

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException

AGAIN = (74, 75, 143)  # the disk, or the endpoint, or another run was in the way; SIGTERM
RETRY_SECONDS = float(os.environ.get("BATCHRANK_RETRY_SECONDS", "300"))
TRIES = {"retries": 3, "retry_delay": timedelta(seconds=RETRY_SECONDS)}
PARAMS = {"rows": "rows/{date}/*.parquet", "scores": "scores/{date}", "config": "", "provider": ""}
FIGURES = ("rows", "rows_scored", "rows_failed", "requests", "tokens_billed", "cost_usd")


def batchrank(*arguments: str) -> str:
    """What the program prints. SIGTERM is passed on: it drains in 4 s, and Airflow gives it 5."""
    program = os.environ.get("BATCHRANK", "batchrank")
    try:
        process = Popen([program, *arguments], stdout=PIPE, stderr=PIPE, text=True)
    except OSError as error:
        raise AirflowFailException(f"{program}: {error.strerror}. Set BATCHRANK.") from error
    before = signal(SIGTERM, lambda *_: process.terminate())
    try:
        assert process.stdout is not None and process.stderr is not None
        said = []
        for line in process.stderr:  # heartbeats and warnings, into the task's log as they come
            print(line, end="", flush=True)
            said.append(line)
        printed = process.stdout.read()  # a line or two: less than a pipe holds
        process.wait()
    finally:
        process.terminate()  # nothing, if it has ended; when Airflow's time-out came, it drains
        signal(SIGTERM, before)
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    if code:
        failure = AirflowException if code in AGAIN else AirflowFailException
        raise failure(f"batchrank {arguments[0]} ended with {code}: {''.join(said[-1:]).strip()}")
    return printed


def endpoint(params: dict[str, str]) -> list[str]:
    """The options that choose an endpoint: without any, rows would only be rehearsed."""
    given = [("-c", params["config"]), ("--provider", params["provider"])]
    options = [word for option, value in given if value for word in (option, value)]
    if not options:
        raise AirflowFailException(
            "nobody chose an endpoint: set the parameter config (a file that sets "
            "endpoint.provider) or provider."
        )
    return options


@task
def shards(params: dict[str, str], dag_run: Any) -> list[dict[str, str]]:
    """The input files of the date, each with its output."""
    day = f"{dag_run.logical_date or dag_run.run_after:%Y-%m-%d}"
    rows, scores = (params[name].replace("{date}", day) for name in ("rows", "scores"))
    endpoint(params)
    files = sorted(glob(rows))
    if not files:
        raise AirflowFailException(f"{rows} matches no file.")
    return [{"rows": file, "scores": str(Path(scores, Path(file).stem))} for file in files]


# Each process paces itself at the whole account's limit: hence one at a time, over all nights.
@task(max_active_tis_per_dag=1, multiple_outputs=False)
def rerank(shard: dict[str, str], params: dict[str, str]) -> dict[str, Any]:
    """Score one file; where its scores are, and its figures."""
    how = ["--summary", "json", "--log-level", "info", *endpoint(params)]
    receipt = json.loads(batchrank("run", shard["rows"], "-o", shard["scores"], *how))
    return {name: receipt[name] for name in FIGURES} | {"scores": shard["scores"]}


@task(multiple_outputs=False)
def bill(figures: list[dict[str, Any]]) -> dict[str, float]:
    """Check that every output is whole; the night's figures."""
    for one in figures:
        print(batchrank("verify", one["scores"]), end="")
    return {name: sum(one[name] for one in figures) for name in FIGURES}


@dag(
    schedule="15 1 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    default_args=TRIES,
    params=PARAMS,
)
def airflow_rerank() -> None:
    """Score the files of a date, a task each; then check them and add up the bill."""
    bill(rerank.expand(shard=shards()))


airflow_rerank()
