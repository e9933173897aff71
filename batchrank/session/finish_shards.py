"""The end of a run in shards: every row there once, the receipts summed, and `_SUCCESS`.

The last worker does this, or `batchrank finish`; both may, at once and again, and it is done once.
A shard is finished when its receipt says so: whoever writes parts again takes that back first.
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec import UNSET
from msgspec.structs import replace

from batchrank.errors import (
    BatchrankError,
    InputBad,
    OutputUnusable,
    RowsFailed,
    TryLater,
)
from batchrank.files.paths import Place
from batchrank.output.part_files import is_whole
from batchrank.output.parts import SUCCESS, PartRecord, part_name, read_record, write_whole
from batchrank.output.receipt import Receipt, Share, total
from batchrank.output.receipt_file import RECEIPT, read_receipt, write_receipt
from batchrank.state.fingerprint import Fingerprint
from batchrank.state.output_folder import marked_in
from batchrank.state.shard_folder import finishing, home_of
from batchrank.state.shard_status import STATES, is_done, parts_of, shards_of, worker
from batchrank.state.shards import Shard

_SHOWN = 5


class NotFinished(TryLater):
    """Some shard has still to do its parts."""


class Allowed(NamedTuple):
    """How many rows may fail, and how many may be partial (None: any number), in a run that ends
    with 0.
    """

    failed: int = 0
    partial: int | None = None


ALLOWED = Allowed()


def finish(out: Place, allowed: Allowed = ALLOWED) -> Receipt:
    """Check that every row is in the output once and every part what was published, then write the
    receipt of the whole and `_SUCCESS`. Return the receipt, with its exit code: 3 where more rows
    failed or are partial than `allowed`.

    Raises `NotFinished` with which shards lack what, `InputBad` with what is wrong,
    `OutputUnusable` for an output that was not begun in shards.
    """
    marked = marked_in(out)
    if marked is None or not marked.shards:
        raise OutputUnusable(
            f"{out}: was not begun in shards (--shard); there is nothing to finish."
        )
    done = _whole_receipt(out)
    if done is not None:
        return done
    receipts = _receipts(out, marked)
    _check_parts(out, marked, receipts)
    with finishing(out) as beside:
        done = _whole_receipt(out)  # another worker was as quick
        if done is not None:
            return done
        if marked_in(out) != marked or _receipts(out, marked) != receipts:
            raise NotFinished(f"{out}: a shard has begun again meanwhile.")
        return _write(out, _merged(out, receipts, allowed), beside)


def finished_by(receipt: Receipt, out: Place, allowed: Allowed) -> Receipt:
    """A worker's receipt at its end; if all others are done already, it finishes the whole, and
    what is wrong with that is in the receipt.
    """
    if receipt.exit_code:
        return receipt
    try:
        whole = finish(out, allowed)
    except NotFinished:
        return receipt
    except BatchrankError as error:
        return replace(receipt, status="stopped", exit_code=int(error.code), message=str(error))
    return replace(receipt, status=whole.status, exit_code=whole.exit_code, message=whole.message)


def too_many_failed(
    out: Place, parts: Collection[PartRecord], allowed: Allowed
) -> RowsFailed | None:
    """Return what is said where more rows failed, or are partial, than were allowed to."""
    failed = sum(len(part.counts.failed_offsets) for part in parts)
    partial = total(parts, "partial")
    over = []
    if failed > allowed.failed:
        over.append(f"{failed:,} rows failed, more than --max-failed-rows {allowed.failed:,}")
    if allowed.partial is not None and partial > allowed.partial:
        over.append(
            f"{partial:,} rows are partial, more than --max-partial-rows {allowed.partial:,}"
        )
    if not over:
        return None
    return RowsFailed(f'{"; ".join(over)}; their reasons are in column "error" of {out}.')


def _whole_receipt(out: Place) -> Receipt | None:
    """The receipt of a finished output whose parts are all there."""
    receipt = read_receipt(out) if (out / SUCCESS).exists() else None
    return receipt if receipt is not None and is_whole(out, receipt.parts) else None


def _receipts(out: Place, marked: Fingerprint) -> list[Receipt]:
    """The receipts of all shards that have parts. Raises `NotFinished`.

    Listing the folder is cheap; every shard's receipt is read only where all parts are there.
    """
    parts = parts_of(marked)
    there = {path.name for path in out.glob("part-*.parquet")}
    lacking = [part for part in range(parts) if part_name(part, parts) not in there]
    owners = [shard for shard in shards_of(marked) if shard.parts(parts)]
    if lacking:
        numbers = {part % marked.shards for part in lacking}
        behind = [shard for shard in owners if shard.number in numbers]
        names = [part_name(part, parts) for part in lacking]
        raise NotFinished(_words(out, marked, behind, names))
    receipts = {shard: read_receipt(home_of(out, shard)) for shard in owners}
    ended = [one for shard, one in receipts.items() if one and is_done(shard, one, marked)]
    if len(ended) < len(owners):
        behind = [
            shard for shard, one in receipts.items() if not one or not is_done(shard, one, marked)
        ]
        raise NotFinished(_words(out, marked, behind, []))
    return ended


def _words(out: Place, marked: Fingerprint, shards: Sequence[Shard], lacking: Sequence[str]) -> str:
    known = [worker(out, shard, marked, None) for shard in shards[:_SHOWN]]
    named = _listed([f"{one.shard} ({STATES[one.state]})" for one in known], len(shards))
    are, verb = ("shard", "is") if len(shards) == 1 else ("shards", "are")
    if not lacking:
        return f"{out}: all parts are there, but {are} {named} {verb} not finished: run again."
    missing = _listed(lacking[:_SHOWN], len(lacking))
    return f"{out}: {are} {named} {verb} not finished; missing: {missing}."


def _listed(shown: Sequence[str], count: int) -> str:
    return ", ".join(shown) + (f" and {count - len(shown):,} more" if count > len(shown) else "")


def _check_parts(out: Place, marked: Fingerprint, receipts: Sequence[Receipt]) -> None:
    wrong = list(_faults(out, marked, receipts))
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise InputBad(f"{out}: {'; '.join(wrong[:_SHOWN])}{more}.")


def _faults(out: Place, marked: Fingerprint, receipts: Sequence[Receipt]) -> Iterator[str]:
    recorded = {part.name: part for receipt in receipts for part in receipt.parts}
    there: list[Place] = sorted(out.glob("part-*.parquet"), key=str)
    for path in there:
        part = recorded.get(path.name)
        if part is None:
            yield f"{path.name} is no part of the run"
        elif not _is(path, part):
            yield f"{part.name} is not the file that was published"
    rows = total(recorded.values(), "rows")
    if rows != marked.rows:
        yield f"{rows:,} rows in the parts, {marked.rows:,} in the input"


def _is(path: Place, part: PartRecord) -> bool:
    try:
        return read_record(path) == part
    except OutputUnusable:
        return False


_SUMMED = (
    *("rows", "rows_scored", "rows_partial", "rows_failed", "rows_skipped", "rows_open"),
    *("documents_truncated", "requests", "retries", "possibly_paid", "requests_this_session"),
    *("tokens_estimated", "tokens_billed", "cost_usd", "pairs_reused", "rows_reused", "rows_kept"),
    "implausible_usage",
)


def _merged(out: Place, receipts: Sequence[Receipt], allowed: Allowed) -> Receipt:
    """The receipt of the whole."""
    longest = max(receipts, key=lambda one: one.seconds)
    parts = sorted((part for one in receipts for part in one.parts), key=lambda part: part.name)
    error = too_many_failed(out, parts, allowed)
    sums = {name: sum(getattr(one, name) for one in receipts) for name in _SUMMED}
    return replace(
        longest,
        **{**sums, "cost_usd": round(sums["cost_usd"], 6)},
        status="finished" if error is None else "stopped",
        exit_code=0 if error is None else int(error.code),
        message=None if error is None else str(error),
        started=min(one.started for one in receipts),
        parts=parts,
        estimate_is_exact=all(one.estimate_is_exact for one in receipts),
        shard=UNSET,
        shards=[_share(one) for one in receipts],
    )


def _share(receipt: Receipt) -> Share:
    figures = {name: getattr(receipt, name) for name in Share.__struct_fields__}
    return Share(**figures)


def _write(out: Place, receipt: Receipt, beside: Path) -> Receipt:
    write_receipt(out / RECEIPT, receipt, beside)
    if not receipt.exit_code:
        write_whole(out / SUCCESS, b"", beside)
    return receipt
