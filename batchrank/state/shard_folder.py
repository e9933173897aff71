"""An output that several workers fill: what they share, and each one's claim to its own parts.

The output has the run's fingerprint in a file, as where a state is elsewhere, and with it the
number of shards: what one has answered and not published only it knows, so with another number
rows would be paid for again. Each shard has a state and a lock of its own, and a folder in the
output for its receipt. The lock of the whole is held for moments: to begin, to finish, to reopen.
On a bucket there is none; there the same bytes are written twice at worst.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import msgspec
from msgspec.structs import replace

from batchrank.errors import OutputUnusable
from batchrank.files.atomic import sync_folder
from batchrank.files.paths import Place, Remote
from batchrank.input.parquet_rows import MARKER, STATE
from batchrank.output.parts import SUCCESS, write_whole
from batchrank.output.receipt_file import RECEIPT, remove_receipt
from batchrank.state import checkpoint
from batchrank.state.fingerprint import Fingerprint, check_unites, is_larger
from batchrank.state.losses import Agree, agree, count_losses
from batchrank.state.output_folder import (
    DATABASE,
    KEPT,
    PAIRS,
    Claim,
    check_same,
    claim_state,
    decoded,
    is_elsewhere,
    locked_output,
    make,
    marked_in,
    sync,
)
from batchrank.state.shards import Shard

_WAITS_SECONDS = (0.1,) * 100
"""For a lock that is held for moments, on a machine where others compute."""
_log = logging.getLogger(__name__)


def home_of(out: Place, shard: Shard) -> Place:
    """A shard's folder in the output."""
    return out / STATE / shard.name


def finished_run(out: Place, fingerprint: Fingerprint) -> Fingerprint | None:
    """The run as it was begun, if all of it is done, in shards or without, and either is asked for.

    Raises `InputBad` or `ConfigInvalid` where what is done is another run.
    """
    if not (out.is_dir() and (out / SUCCESS).exists()):
        return None
    begun = _begun(out)
    if begun is None or not (begun.shards or fingerprint.shards):
        return None
    check_same(out, begun, fingerprint)
    return None if is_larger(fingerprint, begun) else begun


def begun_of_finished(out: Place, state: Path) -> Fingerprint | None:
    """What an output that is finished was begun with; None for any other."""
    if not (out.is_dir() and (out / SUCCESS).exists()):
        return None
    begun = checkpoint.read_fingerprint(state / DATABASE)
    return _begun(out) if begun is None else decoded(begun, state / DATABASE)


@contextmanager
def claimed_shard(
    out: Place,
    shard: Shard,
    state: Path,
    fingerprint: Fingerprint,
    *,
    restart: bool,
    agree: Agree = agree,
) -> Iterator[Claim]:
    """Hold a shard of an output, new or resumed; as `claim.claimed`, whose exceptions it raises.

    `restart` takes back this shard's parts alone.
    """
    home = home_of(out, shard)
    elsewhere = is_elsewhere(out, state, home)
    _check(out, _begun(out), fingerprint)
    _make(out, home, state, elsewhere=elsewhere)
    with _alone(out):
        beside = home if isinstance(home, Path) else state
        begun = _begun(out)
        _check(out, begun, fingerprint)
        if begun is None:
            write_whole(out / MARKER, msgspec.json.encode(fingerprint), beside)
    shown = f"{out}: shard {shard}"
    with checkpoint.locked(state, shown), locked_output(out, state, home) as beside:
        if elsewhere:
            claim_state(state, out)
        claim = Claim(
            folder=out,
            state=state,
            database=state / DATABASE,
            finished=(out / SUCCESS).exists() and not restart,
            receipt=home / RECEIPT,
            beside=beside,
            shard=shard,
        )
        if restart:
            agree(count_losses(_own_parts(out, shard), claim.database, home))
            _clear(claim, shard)
        yield replace(claim, begun=_open(claim, shard, fingerprint, begun))


def reopen(claim: Claim) -> None:
    """Take back that all is done: parts are about to be written again."""
    if claim.shard is None:
        (claim.folder / SUCCESS).unlink(missing_ok=True)
        return
    with _alone(claim.folder):
        (claim.folder / SUCCESS).unlink(missing_ok=True)
        for folder in (claim.folder, claim.receipt.parent):
            remove_receipt(folder)


def grow(claim: Claim, fingerprint: Fingerprint, begun: Fingerprint) -> None:
    """Go on with more rows than a run, or this shard of it, was begun with.

    First nothing says any more that all is done, then the output and the state name the new number
    of rows. Raises `ConfigInvalid` where rows that share requests are not all answered.
    """
    if checkpoint.has_answers(claim.database):
        check_unites(claim.folder, begun)
    content = msgspec.json.encode(fingerprint)
    with _alone(claim.folder) if claim.shard is not None else nullcontext():
        marked = marked_in(claim.folder)
        if claim.shard is None or (marked is not None and is_larger(fingerprint, marked)):
            if claim.shard is not None and not (claim.folder / SUCCESS).exists():
                check_unites(claim.folder, begun)
            (claim.folder / SUCCESS).unlink(missing_ok=True)
            if isinstance(claim.folder, Path):
                sync_folder(claim.folder)
            if marked is not None:
                mark = msgspec.json.encode(replace(fingerprint, own_state=marked.own_state))
                write_whole(claim.folder / MARKER, mark, claim.beside)
    reopen(claim)
    checkpoint.renew(claim.database, content)


@contextmanager
def finishing(out: Place) -> Iterator[Path]:
    """Hold the whole for a moment; the folder of its files until they are whole."""
    with _alone(out):
        yield Path() if isinstance(out, Remote) else out / STATE


@contextmanager
def _alone(out: Place) -> Iterator[None]:
    if isinstance(out, Remote):
        yield
        return
    with checkpoint.locked(out / STATE, out, _WAITS_SECONDS):
        yield


def _begun(out: Place) -> Fingerprint | None:
    """What an output was begun with, in shards or without."""
    marked = marked_in(out)
    if marked is not None or isinstance(out, Remote):
        return marked
    database = out / STATE / DATABASE
    begun = checkpoint.read_fingerprint(database)
    return None if begun is None else decoded(begun, database)


def _check(out: Place, begun: Fingerprint | None, now: Fingerprint) -> None:
    if begun is None:
        if any(out.glob("part-*.parquet")):
            raise OutputUnusable(
                f"{out}: has parts but not {MARKER}, which says whose they are. Choose another."
            )
        return
    check_same(out, begun, now)
    if not begun.shards:
        raise OutputUnusable(
            f"{out}: begun without --shard. Go on without it, or choose a new output."
        )
    if begun.shards != now.shards:
        raise OutputUnusable(
            f"{out}: begun in {begun.shards} shards, now {now.shards}: what those have answered "
            f"and not published would be paid for again. Go on in {begun.shards}, or choose a new "
            "output."
        )


def _make(out: Place, home: Place, state: Path, *, elsewhere: bool) -> None:
    if not (isinstance(out, Path) and isinstance(home, Path)):
        make(out, state, [out / MARKER], elsewhere=True)
        return
    for folder in (out / STATE, home):
        make(out, folder, [out / STATE], elsewhere=False)
    if elsewhere:
        make(out, state, [out / STATE], elsewhere=True)


def _clear(claim: Claim, shard: Shard) -> None:
    reopen(claim)
    side_files = [one for one in (claim.folder / PAIRS).glob("part-*") if shard.owns(one.name)]
    for part in [*_own_parts(claim.folder, shard), *side_files]:
        part.unlink(missing_ok=True)
    for file in claim.state.iterdir():
        if file.name not in KEPT:
            file.unlink()


def _open(
    claim: Claim, shard: Shard, fingerprint: Fingerprint, marked: Fingerprint | None
) -> Fingerprint | None:
    """Begin or go on with a shard's state; the run as it was begun, None for a new one."""
    kept = checkpoint.read_fingerprint(claim.database)
    if kept is not None:
        begun = decoded(kept, claim.database)
        check_same(claim.folder, begun, fingerprint)
        return begun
    if _own_parts(claim.folder, shard):
        _log.warning(
            "%s: the state of shard %s is lost; its parts are kept, what else was scored is scored "
            "again, and the receipt counts from now on",
            claim.folder,
            shard,
        )
    claim.database.unlink(missing_ok=True)
    checkpoint.begin(claim.database, msgspec.json.encode(marked or fingerprint))
    for folder in (claim.state, claim.state.parent):
        sync(claim.folder, folder)
    return marked


def _own_parts(out: Place, shard: Shard) -> list[Place]:
    return [part for part in out.glob("part-*.parquet") if shard.owns(part.name)]
