"""The workers of a run in shards, seen from outside: how far each is, and all of them together.

Nothing is written here, and nobody is kept from work: a look holds a worker's lock for an instant.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from fcntl import LOCK_NB, LOCK_SH, flock
from pathlib import Path

import msgspec

from batchrank.config.providers import EMBEDDED_SCORER
from batchrank.files.paths import Place, Remote
from batchrank.output.receipt import LIVE, Progress, Receipt, read_live
from batchrank.output.receipt_file import read_receipt, receipt_in
from batchrank.output.standstill import Standstill
from batchrank.state.fingerprint import Fingerprint
from batchrank.state.history import Kept, read_series, together
from batchrank.state.output_folder import marked_in, state_of
from batchrank.state.shard_folder import home_of
from batchrank.state.shards import Shard, rows_in

STATES = {
    "finished": "finished",
    "running": "running",
    "stopped": "stopped",
    "waiting": "not begun",
}
"""A shard's states, in words."""


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """A shard's state, its figures at their latest, and what it said at its end."""

    shard: str
    state: str
    rows: int
    rows_done: int
    requests: int
    tokens: int
    cost_usd: float
    requests_per_second: float
    seconds_left: float | None
    message: str | None
    rows_failed: int = 0
    rows_partial: int = 0
    retries: int = 0
    throttled: int = 0
    standstill: Standstill | None = None


def workers(out: Place, marked: Fingerprint, state_dir: Path | None) -> list[Worker]:
    """All workers of an output that was begun in shards."""
    return [worker(out, shard, marked, state_dir) for shard in shards_of(marked)]


def shards_of(marked: Fingerprint) -> list[Shard]:
    """All shards of a run."""
    return [Shard(index, marked.shards) for index in range(marked.shards)]


def parts_of(marked: Fingerprint) -> int:
    """How many parts a run in shards has."""
    return max(1, -(-marked.rows // int(marked.config["output.rows_per_part"])))


def own_rows(shard: Shard, marked: Fingerprint) -> int:
    """The rows of a shard."""
    rows_per_part = int(marked.config["output.rows_per_part"])
    return rows_in(shard.parts(parts_of(marked)), marked.rows, rows_per_part)


def is_done(shard: Shard, receipt: Receipt, marked: Fingerprint) -> bool:
    """Whether a shard's receipt says that it is finished, and is of no trial with fewer rows."""
    return not receipt.exit_code and receipt.rows == own_rows(shard, marked)


def sum_of(workers: Sequence[Worker], marked: Fingerprint, *, bills: bool) -> Progress:
    """All workers' figures as one run's: it is over when the last of them is."""
    running = [worker for worker in workers if worker.state == "running"]
    left = [worker.seconds_left for worker in running]
    known = [seconds for seconds in left if seconds is not None]
    return Progress(
        rows=marked.rows,
        rows_done=sum(worker.rows_done for worker in workers),
        requests=sum(worker.requests for worker in workers),
        tokens=sum(worker.tokens for worker in workers),
        cost_usd=round(sum(worker.cost_usd for worker in workers), 6),
        cost_is_real=bills,
        seconds=0.0,
        requests_per_second=sum(worker.requests_per_second for worker in running),
        seconds_left=max(known) if known and len(known) == len(left) else None,
        provider=str(marked.config["endpoint.provider"]),
        scorer=EMBEDDED_SCORER
        if marked.config.get("endpoint.embedded")
        else str(marked.config["endpoint.model"]),
        rows_failed=sum(worker.rows_failed for worker in workers),
        rows_partial=sum(worker.rows_partial for worker in workers),
        retries=sum(worker.retries for worker in workers),
        throttled=sum(worker.throttled for worker in workers),
        standstill=_common(running),
    )


def _common(running: Sequence[Worker]) -> Standstill | None:
    """Return the standstill that began last, if all workers stand still."""
    found = [worker.standstill for worker in running if worker.standstill is not None]
    if not found or len(found) < len(running):
        return None
    return max(found, key=lambda one: one.since)


def read_course(out: Place, state_dir: Path | None = None) -> Kept:
    """Return a run's course; of several workers all as one, as if they had begun together."""
    marked = marked_in(out)
    if isinstance(out, Remote) and state_dir is None:
        return Kept()
    if marked is None or not marked.shards:
        return read_series(state_of(out, state_dir)) or Kept()
    kept = [read_series(state_of(out, state_dir, shard)) for shard in shards_of(marked)]
    return together([one for one in kept if one is not None])


def is_older(receipt: Place, state: Path) -> bool:
    """Whether the receipt is an earlier session's: one that is killed writes none."""
    try:
        live = (state / LIVE).stat()
        return isinstance(receipt, Path) and receipt.stat().st_mtime_ns < live.st_mtime_ns
    except FileNotFoundError:
        return False


SILENT_SECONDS = 10.0
"""A run at work writes its figures four times a second."""


def silence(state: Path) -> Standstill | None:
    """Return why the figures of a run at work are old; None where they are not."""
    try:
        written = (state / LIVE).stat().st_mtime
    except OSError:
        return None
    seconds = time.time() - written
    if seconds < SILENT_SECONDS:
        return None
    return Standstill(
        kind="silent",
        reason="the run has written no figures: its disk or its process stands still, or it has "
        "begun again and reads the input",
        since=datetime.fromtimestamp(written, UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
    )


def is_held(lock: Path) -> bool:
    """Whether a run is at work. Looks share the lock for an instant; a run waits that long."""
    try:
        with lock.open("r") as file:
            flock(file, LOCK_SH | LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def worker(out: Place, shard: Shard, marked: Fingerprint, state_dir: Path | None) -> Worker:
    """A shard, seen from outside."""
    home = home_of(out, shard)
    state = home if state_dir is None else state_dir / shard.name
    running, live, receipt = False, None, read_receipt(home)
    standstill = None
    if isinstance(state, Path):
        running, live = is_held(state / "lock"), read_live(state)
        if live is not None and (running or is_older(receipt_in(home), state)):
            receipt = None
        if running and live is not None:
            standstill = silence(state) or live.standstill
    begun = running or live is not None or receipt is not None
    if receipt is not None:
        told = "finished" if is_done(shard, receipt, marked) else "stopped"
        figures = (receipt.requests, receipt.tokens_billed, receipt.cost_usd)
        rows_done = receipt.rows - receipt.rows_open
    else:
        told = "stopped" if begun else "waiting"
        figures = (live.requests, live.tokens, live.cost_usd) if live is not None else (0, 0, 0.0)
        rows_done = 0
    counted = live if receipt is None else receipt
    return Worker(
        shard=str(shard),
        state="running" if running else told,
        rows=own_rows(shard, marked),
        rows_done=max(rows_done, live.rows_done if live is not None else 0),
        requests=figures[0],
        tokens=figures[1],
        cost_usd=figures[2],
        requests_per_second=live.requests_per_second if running and live is not None else 0.0,
        seconds_left=live.seconds_left if running and live is not None else None,
        message=receipt.message if receipt is not None else None,
        rows_failed=counted.rows_failed if counted is not None else 0,
        rows_partial=counted.rows_partial if counted is not None else 0,
        retries=counted.retries if counted is not None else 0,
        throttled=live.throttled if live is not None else 0,
        standstill=standstill,
    )
