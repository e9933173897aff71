"""A run seen from outside: how far it is (`status`), and whether its output is right (`verify`).

Neither writes anything, and both may look while a run is at work.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from batchrank.config.providers import PROVIDERS
from batchrank.errors import ExitCode, InputBad, OutputUnusable
from batchrank.files.paths import Place, Remote, opened
from batchrank.output.parts import SUCCESS, PartRecord, read_record
from batchrank.output.receipt import Progress, Receipt, clock, money, read_live, scorer_line
from batchrank.output.receipt_file import RECEIPT, read_receipt, receipt_in
from batchrank.output.standstill import describe
from batchrank.state.fingerprint import Fingerprint
from batchrank.state.output_folder import marked_in, state_of
from batchrank.state.shard_status import STATES, Worker, is_held, is_older, silence, sum_of, workers


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """A run's state (`running`, `stopped`, `finished`) and its figures at their latest."""

    state: str
    progress: Progress | None
    receipt: Receipt | None
    shards: list[Worker] | UnsetType = UNSET


def status(out: Place, state_dir: Path | None = None) -> Status:
    """How far a run is. Raises `OutputUnusable` where there is none."""
    marked = marked_in(out)
    if marked is not None and marked.shards:
        return _status_of_shards(out, marked, state_dir)
    if isinstance(out, Remote) and state_dir is None and (out / SUCCESS).exists():
        return Status(state="finished", progress=None, receipt=read_receipt(out))
    state = state_of(out, state_dir)
    if not state.is_dir() and not receipt_in(out).exists() and marked is None:
        raise OutputUnusable(f"{out}: is not the output of `batchrank run`.")
    running = is_held(state / "lock")
    finished = (out / SUCCESS).exists() and not running
    stale = running or (not finished and is_older(receipt_in(out), state))
    return Status(
        state="running" if running else "finished" if finished else "stopped",
        progress=_live(state, running=running),
        receipt=None if stale else read_receipt(out),
    )


def _live(state: Path, *, running: bool) -> Progress | None:
    """Read a run's latest figures; of one at work that writes none, say so."""
    progress = read_live(state)
    if progress is None or not running:
        return progress and replace(progress, standstill=None)
    return replace(progress, standstill=silence(state) or progress.standstill)


def _status_of_shards(out: Place, marked: Fingerprint, state_dir: Path | None) -> Status:
    """The whole's receipt tells once all shards are finished, the sum of theirs until then."""
    each = workers(out, marked, state_dir)
    bills = PROVIDERS[str(marked.config["endpoint.provider"])].bills
    states = {worker.state for worker in each}
    finished = (out / SUCCESS).exists()
    return Status(
        state="finished" if finished else "running" if "running" in states else "stopped",
        progress=sum_of(each, marked, bills=bills),
        receipt=read_receipt(out) if finished or states == {"finished"} else None,
        shards=each,
    )


def status_words(status: Status) -> str:
    """The state and figures as a person reads them."""
    lines = [("state", status.state)]
    shards = [] if status.shards is UNSET else status.shards
    if status.receipt is not None:
        receipt = status.receipt
        done = receipt.rows - receipt.rows_open
        kept = status.progress.rows_done - done if status.progress is not None else 0
        more = f", {kept:,} more answered and kept" if receipt.rows_open and kept > 0 else ""
        failed = f", {receipt.rows_failed:,} failed"
        failed += f", {receipt.rows_partial:,} partial" if receipt.rows_partial else ""
        lines += [
            ("rows", f"{done:,} of {receipt.rows:,} published{more}{failed}"),
            *scorer_line(receipt),
            ("requests", f"{receipt.requests:,}, {receipt.retries:,} sent again"),
            ("tokens", f"{receipt.tokens_billed:,} billed"),
            ("cost", money(receipt.cost_usd, receipt.cost_is_real)),
        ]
        if receipt.message:
            lines.append(("message", receipt.message))
    elif status.progress is not None:
        progress = status.progress
        running = status.state == "running"
        rate = f", {progress.requests_per_second:,.1f}/s" if running else ""
        left = "unknown" if progress.seconds_left is None else clock(progress.seconds_left)
        left += "" if progress.finish_by is None else f"; stops by {progress.finish_by}"
        share = f" ({progress.rows_done / progress.rows:.1%})" if progress.rows else ""
        lines += [
            ("rows", f"{progress.rows_done:,} of {progress.rows:,}{share}{_lacking(progress)}"),
            *scorer_line(progress),
            ("requests", f"{progress.requests:,}{rate}{_troubles(progress)}"),
            ("tokens", f"{progress.tokens:,} billed"),
            ("cost", money(progress.cost_usd, progress.cost_is_real)),
        ]
        if running:
            lines.append(("time left", left))
            if progress.standstill is not None:
                lines.append(("stalled", describe(progress.standstill)))
        elif not shards:
            said = "killed before it could say why; the same command goes on from here."
            lines.append(("message", said))
    lines += _shard_lines(shards)
    return "\n".join(f"{name:<11}{text}" for name, text in lines)


def _lacking(progress: Progress) -> str:
    counts = ((progress.rows_failed, "failed"), (progress.rows_partial, "partial"))
    return "".join(f", {count:,} {what}" for count, what in counts if count)


def _troubles(progress: Progress) -> str:
    counts = ((progress.retries, "sent again"), (progress.throttled, "throttled"))
    return "".join(f", {count:,} {what}" for count, what in counts if count)


def _shard_lines(shards: Sequence[Worker]) -> Iterator[tuple[str, str]]:
    """How many are in which state, which of them where that is less than good, and their words."""
    for state, words in STATES.items():
        found = [worker for worker in shards if worker.state == state]
        if found:
            named = f": {', '.join(worker.shard for worker in found[:8])}"
            more = ", …" if len(found) > 8 else ""
            which = "" if state in ("finished", "running") else named + more
            yield "shards", f"{len(found):,} of {len(shards):,} {words}{which}"
    for worker in shards:
        if worker.message and worker.state == "stopped":
            yield worker.shard, worker.message
        elif worker.standstill is not None:
            yield worker.shard, describe(worker.standstill)


def verify(out: Place) -> Receipt:
    """Check that every input row is in the output once and that what is there is whole.

    Raises `InputBad` (65) with the first things that are wrong, `OutputUnusable` where there is no
    run, or one that has not ended.
    """
    receipt = read_receipt(out)
    if receipt is None:
        marked = marked_in(out)
        shards = marked is not None and marked.shards
        asked = (
            "are its shards finished? See `batchrank finish`." if shards else "has the run ended?"
        )
        raise OutputUnusable(f"{out}: has no {RECEIPT}; {asked}")
    wrong = list(_faults(out, receipt))
    if wrong:
        shown = "; ".join(wrong[:5])
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputBad(f"{out}: {shown}{more}.")
    return receipt


def describe_whole(receipt: Receipt) -> str:
    """Say that an output is whole, and how many of its rows failed or are partial."""
    lacking = [
        f"{count:,} {what}"
        for count, what in ((receipt.rows_failed, "failed"), (receipt.rows_partial, "partial"))
        if count
    ]
    more = f"; {', '.join(lacking)}" if lacking else ""
    return f"{receipt.rows:,} rows in {len(receipt.parts):,} parts, all whole{more}"


def _faults(out: Place, receipt: Receipt) -> Iterator[str]:
    if not (out / SUCCESS).exists():
        if receipt.exit_code == ExitCode.ROWS_FAILED and not receipt.rows_open:
            yield f"every row is there, but {(receipt.message or '').rstrip('.')}"
        else:
            yield f"not finished: no {SUCCESS}, {receipt.rows_open:,} rows not done"
    recorded = {part.name for part in receipt.parts}
    there = sorted(path.name for path in out.glob("*.parquet"))
    for name in there:
        if name not in recorded:
            yield f"{name} is no part of the run"
    rows = 0
    for part in receipt.parts:
        path = out / part.name
        if part.name not in there:
            yield f"{part.name} is missing"
            continue
        rows += part.counts.rows
        yield from _part_faults(path, part)
    if rows != receipt.rows:
        yield f"{rows:,} rows in the parts, {receipt.rows:,} in the input"


def _part_faults(path: Place, part: PartRecord) -> Iterator[str]:
    try:
        if read_record(path) != part:
            yield f"{part.name} is not the file that was published"
            return
        rows = results = 0
        with opened(path) as file, pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(1000, columns=["results", "status"]):
                if not _is_whole(batch):
                    yield f"{part.name}: a row of {rows} to {rows + len(batch) - 1} is not whole"
                rows += len(batch)
                results += len(batch.column("results").flatten())
        if results != part.counts.results:
            yield f"{part.name} has {results:,} results instead of {part.counts.results:,}"
        if rows != part.counts.rows:
            yield f"{part.name} has {rows:,} rows instead of {part.counts.rows:,}"
    except (OutputUnusable, pa.ArrowException, OSError):
        yield f"{part.name} cannot be read"


def _is_whole(batch: pa.RecordBatch) -> bool:
    """Ranks from 1 without a gap, scores finite and falling, none missing in a scored row."""
    results = batch.column("results")
    flat = results.flatten()
    scores = flat.field("relevance_score")
    values = scores.fill_null(np.nan).to_numpy(zero_copy_only=False)
    known = scores.is_valid().to_numpy(zero_copy_only=False)
    if not np.isfinite(values[known]).all():
        return False
    ranks = flat.field("rank").fill_null(0).to_numpy(zero_copy_only=False)
    row_of = np.repeat(np.arange(len(batch)), np.diff(results.offsets.to_numpy()))
    place = np.arange(len(flat)) - np.searchsorted(row_of, row_of)
    index = flat.field("index").to_numpy(zero_copy_only=False)
    by_index = np.lexsort((index, row_of))
    same_row = row_of[1:] == row_of[:-1]
    with np.errstate(invalid="ignore"):
        rising = values[1:] > values[:-1]
    statuses = np.array(batch.column("status").to_pylist())[row_of]
    return bool(
        (ranks[known] == place[known] + 1).all()
        and (index[by_index][1:] != index[by_index][:-1])[same_row].all()
        and not (rising & same_row).any()
        and not (known[1:] & ~known[:-1] & same_row).any()
        and known[statuses == "scored"].all()
        and not known[statuses == "skipped"].any()
    )
