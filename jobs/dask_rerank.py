"""One input over the workers of a Dask cluster: a task for each shard of one output.

    python jobs/dask_rerank.py rows scores -c prod.toml                            # processes here
    python jobs/dask_rerank.py rows scores -c prod.toml --address tcp://head:8786  # a cluster

Every worker has batchrank installed, the key in its own environment, and ROWS and SCORES under the
same names: on a shared folder, or in a bucket with --state-dir on a shared folder. One thread a
worker is best. A shard whose worker dies goes on in another where it stopped; one that ended with a
code that deserves another try has three more, on another machine where there is one. When this
process is stopped or lost, the workers drain and stop too; the same command goes on. Silent when
all is well; on a terminal one bar for all shards. Ends with the code of the worst of them.

This process lends the account's limit to the shards, so that it is used to the end however few are
left. On a cluster that wants BATCHRANK_COORDINATOR_KEY, a secret of yours, here and in the workers'
environment; without it each shard has its Nth part, as it has when this process is out of reach.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from signal import SIGTERM
from typing import NamedTuple

import click
from distributed import Client, Future, KilledWorker, LocalCluster, get_worker, wait
from distributed.comm.addressing import get_address_host
from distributed.utils import get_ip

from batchrank.account.coordinator import Coordinator
from batchrank.account.secret import is_loopback
from batchrank.account.service import serving
from batchrank.analysis.status import status
from batchrank.cli.progress_bar import bar
from batchrank.config.limits import RateLimits
from batchrank.config.settings import JobConfig, coordinator_key, load_for_job
from batchrank.errors import AGAIN, BatchrankError, ConfigInvalid, ExitCode, TryLater
from batchrank.files.paths import place
from batchrank.output.receipt import Progress
from batchrank.sending.halt import DRAIN_SECONDS
from batchrank.session.finish_shards import finish
from batchrank.session.job import Request, run
from batchrank.session.signals import Signals, heard
from batchrank.state.output_folder import marked_in

TRIES = 4
RETRY_SECONDS = float(os.environ.get("BATCHRANK_RETRY_SECONDS", "30"))
LOOK_SECONDS = 1.0


class Work(NamedTuple):
    """What all shards have in common. Places are text: a worker opens them with keys of its own."""

    config: JobConfig
    rows: str
    scores: str
    state_dir: Path | None
    shards: int
    coordinator: str | None

    def __repr__(self) -> str:
        """Dask logs what a failed task was given, and headers may hold secrets."""
        return f"Work({self.rows}, {self.scores}, {self.shards} shards)"


class Ended(NamedTuple):
    """How a try at a shard ended, and in which worker."""

    code: int
    message: str = ""
    worker: str = ""


class Try(NamedTuple):
    """A try at a shard, from 1."""

    shard: int
    number: int


def score(work: Work, shard: int, after_seconds: float) -> Ended:
    """Score a shard, in a worker. Drains and stops when the client is gone, or cancels the task."""
    worker = get_worker()
    task = worker.state.tasks[worker.get_current_task()]
    signals = Signals()

    def watch(progress: Progress) -> None:
        if task.state == "cancelled":
            signals.hear(SIGTERM, None)

    time.sleep(after_seconds)
    try:
        request = Request(
            inputs=[work.rows],
            out=place(work.scores),
            state_dir=work.state_dir,
            shard=(shard, work.shards),
            coordinator=work.coordinator,
        )
        receipt = run(work.config, request, watch, signals)
    except BatchrankError as error:
        return Ended(int(error.code), str(error), worker.address)
    return Ended(receipt.exit_code, receipt.message or "", worker.address)


def rerank(client: Client, work: Work, draw: Callable[[Progress], None]) -> list[Ended]:
    """Have every shard scored; how each ended at last."""
    ended = []
    trying = {begin(client, work, Try(shard, 1)): Try(shard, 1) for shard in range(work.shards)}
    try:
        while trying:
            with suppress(TimeoutError):
                wait(list(trying), timeout=LOOK_SECONDS, return_when="FIRST_COMPLETED")
            for task in [task for task in trying if task.done()]:
                shard, number = trying.pop(task)
                outcome = outcome_of(task)
                if outcome.code in AGAIN and number < TRIES:
                    again = Try(shard, number + 1)
                    trying[begin(client, work, again, outcome.worker)] = again
                else:
                    ended.append(outcome)
            with suppress(BatchrankError):  # nothing is there yet
                if (progress := status(place(work.scores), work.state_dir).progress) is not None:
                    draw(progress)
    finally:
        client.cancel(list(trying))
        if trying:
            drained(work)
    return ended


def drained(work: Work) -> None:
    """Wait until the workers have written down what was in flight, if that takes no longer than it
    may.
    """
    until = time.monotonic() + DRAIN_SECONDS + LOOK_SECONDS
    with suppress(BatchrankError):
        while status(place(work.scores), work.state_dir).state == "running":
            if time.monotonic() > until:
                return
            time.sleep(0.1)


def begin(client: Client, work: Work, this: Try, failed_at: str = "") -> Future[Ended]:
    """Submit a shard; again only after a while, and away from the machine where it failed."""
    host, known = failed_at.rpartition(":")[0], client.nthreads() if failed_at else ()
    others = [worker for worker in known if worker.rpartition(":")[0] != host]
    return client.submit(
        score,
        work,
        this.shard,
        RETRY_SECONDS if failed_at else 0,
        key=f"shard-{this.shard}-try-{this.number}-{time.time_ns()}",
        workers=others or None,
        allow_other_workers=bool(others),
    )


def outcome_of(task: Future[Ended]) -> Ended:
    """How a task ended. Dask itself tries again where a worker died, and gives up at the fourth."""
    try:
        return task.result()
    except KilledWorker as error:
        return Ended(ExitCode.TRY_LATER, f"{task.key}: {error}")


def worst(ended: Iterable[Ended]) -> Ended:
    """What ends the whole: first what must be changed, then what deserves the command again."""

    def gravity(one: Ended) -> int:
        if one.code in (ExitCode.DONE, ExitCode.ROWS_FAILED):
            return one.code
        return 1000 if one.code in AGAIN else 2000

    return max(ended, key=gravity)


@click.command()
@click.argument("rows")
@click.argument("scores")
@click.option("-c", "--config", type=click.Path(path_type=Path), help="A TOML file; see configs/.")
@click.option("--provider", help="Whom to ask, where no configuration says so.")
@click.option("--address", help="A scheduler, such as tcp://head:8786.  [default: processes here]")
@click.option("--workers", type=click.IntRange(1), default=4, help="Processes here.  [default: 4]")
@click.option("--shards", type=click.IntRange(1), help="[default: as begun, else the workers]")
@click.option("--state-dir", type=click.Path(path_type=Path), help="Where SCORES is in a bucket.")
def dask_rerank(
    rows: str,
    scores: str,
    config: Path | None,
    provider: str | None,
    address: str | None,
    workers: int,
    shards: int | None,
    state_dir: Path | None,
) -> None:
    """Score ROWS into SCORES on the workers of a Dask cluster."""
    try:
        settings = load_for_job(config, provider)
        with heard(), connected(address, workers) as client, bar() as draw:
            count = shards or begun_in(scores) or workers_of(client)
            where = state_dir and state_dir.absolute()
            with lending(client, settings.rate, count) as url:
                work = Work(settings, absolute(rows), absolute(scores), where, count, url)
                last = worst(rerank(client, work, draw))
            if last.code == ExitCode.DONE:
                receipt = finish(place(work.scores))
                last = Ended(receipt.exit_code, receipt.message or "")
    except BatchrankError as error:
        last = Ended(int(error.code), str(error))
    if last.code:
        click.echo(f"dask_rerank: {last.message}", err=True)
    raise SystemExit(last.code)


@contextmanager
def connected(address: str | None, workers: int) -> Iterator[Client]:
    """The cluster at an address, or one of processes here, which the loss of one does not touch."""
    os.environ["PYTHONSAFEPATH"] = "1"  # or those processes import files of the working folder
    with (
        nullcontext()
        if address
        else LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0")
    ) as local:
        try:
            client = Client(address or local)
        except OSError as error:
            raise TryLater(f"{address}: no scheduler of Dask's answers: {error}") from error
        with client:
            yield client


def workers_of(client: Client) -> int:
    """How many workers there are."""
    count = len(client.nthreads())
    if not count:
        raise ConfigInvalid("the cluster has no worker yet, so say how many: pass --shards N.")
    return count


@contextmanager
def lending(client: Client, rate: RateLimits, shards: int) -> Iterator[str | None]:
    """Lend the account's limit to so many shards: where they are to ask; None where nobody may.
    With more shards than workers that begins in earnest after the ten seconds of a lease.
    """
    host, secret = get_ip(get_address_host(client.scheduler_info()["address"])), coordinator_key()
    limits = {
        "requests_per_minute": rate.requests_per_minute,
        "tokens_per_minute": rate.tokens_per_minute,
    }
    if not any(limits.values()) or (secret is None and not is_loopback(host)):
        yield None
        return
    door = serving(Coordinator(shards, time.monotonic(), **limits), secret, host, 0)
    url: str = client.sync(door.__aenter__)  # in Dask's own event loop
    try:
        yield url
    finally:
        client.sync(door.__aexit__, None, None, None)


def begun_in(scores: str) -> int:
    """In how many shards an output was begun; another number would be refused."""
    begun = marked_in(place(scores))
    return 0 if begun is None else begun.shards


def absolute(text: str) -> str:
    """A path as workers in other folders understand it; an address as it is."""
    return text if "://" in text else str(Path(text).absolute())


if __name__ == "__main__":
    dask_rerank()
