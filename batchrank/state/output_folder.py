"""Whose output folder it is: the lock, the fingerprint of the run, and a fresh start when asked.

A folder belongs to one input under one configuration. Going on under another would mix scores that
do not compare, so it is refused, with the field or the file named. The state lies in the folder;
it may lie elsewhere (`--state-dir`; a bucket cannot hold it). The folder has the fingerprint in a
file besides, by which its parts are known again should the state be lost.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
from msgspec.structs import replace

from batchrank.config.providers import EMBEDDED_SCORER
from batchrank.errors import ConfigInvalid, InputBad, OutputUnusable, StorageFailed
from batchrank.files.atomic import sync_folder
from batchrank.files.paths import Place, Remote
from batchrank.input.parquet_rows import MARKER, STATE, FileIdentity
from batchrank.output.parts import SUCCESS, write_state_file, write_whole
from batchrank.output.receipt_file import FILES, RECEIPT
from batchrank.state import checkpoint
from batchrank.state.fingerprint import Fingerprint, check_limit
from batchrank.state.losses import Agree, agree, count_losses
from batchrank.state.shards import Shard

DATABASE = "checkpoint.sqlite"
PAIRS = "_pairs"
_OUTPUT = "output"
KEPT = frozenset({"lock", _OUTPUT})
"""Files of a state that a fresh start leaves: whose it is, and who is at work."""
LAST_OF_ALL = "--restart would throw away what it holds"
"""The advice that loses money comes last, if at all."""
_log = logging.getLogger(__name__)


class Claim(msgspec.Struct, frozen=True):
    """An output folder held by this process, or a shard of it. `finished`: there is nothing left to
    do. `receipt` is where what was done is told, `beside` where files are until they are whole.
    """

    folder: Place
    state: Path
    database: Path
    finished: bool
    receipt: Place
    beside: Path
    shard: Shard | None = None
    begun: Fingerprint | None = None
    """The run that goes on, as it was begun; None for a new one."""


def state_of(out: Place, state_dir: Path | None, shard: Shard | None = None) -> Path:
    """Where the state of an output is, or a shard's. Raises `ConfigInvalid` where it has none."""
    if state_dir is None:
        if isinstance(out, Remote):
            raise ConfigInvalid(
                f"{out}: a run's state is kept on a local disk: pass --state-dir DIR, and the same "
                "one to go on."
            )
        state_dir = out / STATE
    return state_dir if shard is None else state_dir / shard.name


@contextmanager
def claimed(
    out: Place, state: Path, fingerprint: Fingerprint, *, restart: bool, agree: Agree = agree
) -> Iterator[Claim]:
    """Hold an output folder for this run, new or resumed. A `restart` must `agree` to its losses.

    Raises `OutputUnusable` for a folder that is not a run's or is damaged, `TryLater` when another
    process has it, `InputBad` or `ConfigInvalid` when it was begun with another input or
    configuration, `StorageFailed` when the disk refuses.
    """
    elsewhere = is_elsewhere(out, state, out / STATE)
    _marked_as_ours(out, elsewhere=elsewhere, restart=restart)
    make(out, state, [out / MARKER, out / STATE], elsewhere=elsewhere)
    database = state / DATABASE
    with checkpoint.locked(state, out), locked_output(out, state, out / STATE) as beside:
        if elsewhere:
            claim_state(state, out)
        marked = _marked_as_ours(
            out, elsewhere=elsewhere, restart=restart
        )  # shards began meanwhile
        if restart:
            agree(count_losses(out.glob("part-*.parquet"), database, out))
            _clear(out, state)
        begun = checkpoint.read_fingerprint(database)
        if begun is None:
            before = None
            if any(out.glob("part-*.parquet")):
                damaged = not elsewhere and database.exists()
                before = _adopt(out, None if damaged else marked, fingerprint)
            database.unlink(missing_ok=True)
            checkpoint.begin(database, msgspec.json.encode(before or fingerprint))
            sync(out, state)
        else:
            before = decoded(begun, database)
            check_same(out, before, fingerprint)
        if marked is None:
            mark = replace(fingerprint, own_state=not elsewhere)
            write_whole(out / MARKER, msgspec.json.encode(mark), beside)
        finished = (out / SUCCESS).exists()
        yield Claim(out, state, database, finished, out / RECEIPT, beside, begun=before)


@contextmanager
def locked_output(out: Place, state: Path, home: Place) -> Iterator[Path]:
    """Hold `home`, where the state is in an output that keeps its own, if this one's is elsewhere.

    Without it two runs with two states would both work on one output. Yields the folder for files
    that are not whole yet: it is on the output's file system, so that a rename puts them in place.
    A bucket has neither locks nor renames. Raises `TryLater` when another process is at work, and
    `OutputUnusable` where the output has a state of its own.
    """
    if isinstance(home, Remote) or not is_elsewhere(out, state, home):
        yield state
        return
    if (home / DATABASE).exists():
        raise OutputUnusable(f"{out}: its state is in {home}. Leave --state-dir out.")
    make(out, home, [out], elsewhere=False)
    with ExitStack() as holding:
        try:
            holding.enter_context(checkpoint.locked(home, out))
        except checkpoint.NoLocks as error:
            _log.info("%s: two runs with two --state-dir would not see each other", error)
        yield home


def is_elsewhere(out: Place, state: Path, usual: Place) -> bool:
    """Whether a state is not where it usually is, within the output."""
    if isinstance(out, Remote) or isinstance(usual, Remote):
        return True
    return state.absolute() != usual.absolute()


def _marked_as_ours(out: Place, *, elsewhere: bool, restart: bool) -> Fingerprint | None:
    """The fingerprint that an output is marked with, and that we go on under. A run by itself goes
    on neither where shards began, nor without the state that is elsewhere.
    """
    try:
        marked = marked_in(out)
    except OutputUnusable:
        if not restart:
            raise
        return None
    if marked is not None and marked.shards:
        raise OutputUnusable(
            f"{out}: begun in {marked.shards} shards, whose answers would be paid for again. Go on "
            f"with --shard 0/{marked.shards} and the others, or choose a new output."
        )
    if marked is not None and marked.own_state == elsewhere:
        raise OutputUnusable(
            f"{out}: its state is in it. Leave --state-dir out."
            if elsewhere
            else f"{out}: its state is elsewhere; pass the --state-dir that it was begun with."
        )
    return None if restart else marked


def make(out: Place, state: Path, ours: Sequence[Place], *, elsewhere: bool) -> None:
    """Make the two folders, unless one is somebody else's: what is ours holds one of `ours`."""
    try:
        if out.exists() and not out.is_dir():
            raise OutputUnusable(f"{out}: is a file; the output is a folder.")
        # In this order: another process may be making it ours this instant.
        if out.is_dir() and any(out.iterdir()) and not any(one.exists() for one in ours):
            raise OutputUnusable(f"{out}: is not empty, and no run of batchrank. Choose another.")
        if elsewhere and state.is_dir() and any(state.iterdir()) and not (state / "lock").exists():
            raise OutputUnusable(
                f"{state}: is not empty, and no state of batchrank. Choose another --state-dir."
            )
        if isinstance(out, Path):
            out.mkdir(parents=True, exist_ok=True)
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        state.chmod(0o700)
    except OSError as error:
        if error.errno is not None and error.errno in _DISK:
            raise StorageFailed(f"{out}: cannot be written: {error.strerror}.") from error
        raise OutputUnusable(f"{out}: cannot be made or written: {error.strerror}.") from error


def claim_state(state: Path, out: Place) -> None:
    """A state is one output's; another's would take its answers for its own."""
    name = str(out if isinstance(out, Remote) else out.absolute())
    try:
        owner = (state / _OUTPUT).read_text("utf-8")
    except FileNotFoundError:
        write_state_file(state / _OUTPUT, name.encode())
        return
    if owner != name:
        raise OutputUnusable(
            f"{state}: is the state of {owner}. Each output has a --state-dir of its own."
        )


def marked_in(out: Place) -> Fingerprint | None:
    """The fingerprint in an output; earlier versions left it out where the state was in there."""
    try:
        return decoded((out / MARKER).read_bytes(), out / MARKER)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutputUnusable(f"{out / MARKER}: cannot be read: {error.strerror}.") from error


def _adopt(out: Place, marked: Fingerprint | None, fingerprint: Fingerprint) -> Fingerprint:
    """Parts without a state are kept if the output says that they are of this very run."""
    if marked is None:
        raise OutputUnusable(
            f"{out}: has parts but not the state of their run ({STATE}/). Is that elsewhere, pass "
            f"its --state-dir; else choose a new output{_to_reuse(out)}."
        )
    check_same(out, marked, fingerprint)
    _log.warning(
        "%s: the state is lost; its parts are kept, what else was scored is scored again, and the "
        "receipt counts from now on",
        out,
    )
    return marked


def sync(out: Place, state: Path) -> None:
    """Make the names of a new run durable. Raises `StorageFailed`."""
    try:
        sync_folder(state)
        if isinstance(out, Path):
            sync_folder(out)
    except OSError as error:
        raise StorageFailed(f"{out}: cannot be written: {error.strerror}.") from error


_ADDED_SINCE = {"endpoint.unite_rows": False}
"""Keys that earlier versions did not know, and what these did."""

_SCORING = frozenset(
    {
        *("endpoint.provider", "endpoint.model", "endpoint.instruct", "endpoint.scores_lists"),
        *("endpoint.embedded", "endpoint.local_scorer", "limits.max_tokens_per_document"),
    }
)
"""Keys that decide the score of a pair: under others an output's scores cannot be taken over."""

_DISK = {5, 28, 122}
"""EIO, ENOSPC, EDQUOT."""


def _clear(out: Place, state: Path) -> None:
    """Take back a run: first its claim to be finished, then its parts, then what it remembers."""
    (out / SUCCESS).unlink(missing_ok=True)
    pairs = (out / PAIRS).glob("*")
    ours = (out / name for name in (*FILES, MARKER))
    for path in [*pairs, *out.glob("part-*.parquet"), *ours]:
        path.unlink(missing_ok=True)
    if isinstance(out, Path):
        sync_folder(out)
    for file in state.iterdir():
        if file.name not in KEPT:
            file.unlink()


def decoded(begun: bytes, where: Place) -> Fingerprint:
    """A fingerprint that was kept. Raises `OutputUnusable`."""
    try:
        return msgspec.json.decode(begun, type=Fingerprint)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise OutputUnusable(
            f"{where}: is damaged. Choose a new output, which can --reuse the parts of this one; "
            f"{LAST_OF_ALL}."
        ) from error


def check_same(out: Place, begun: Fingerprint, now: Fingerprint) -> None:
    """Raises `InputBad` or `ConfigInvalid` where these are two runs, but for their shards and for
    more rows of the same input.
    """
    last = "" if begun.shards else f"; {LAST_OF_ALL}"
    advice = f"Give that input again, or choose a new output{_to_reuse(out)}{last}."
    _check_files(out, begun.files, now.files, advice)
    check_limit(out, begun, now)
    for name, value in now.config.items():
        before = begun.config.get(name, _ADDED_SINCE.get(name))
        fits = "" if name in _SCORING else _to_reuse(out)
        advice = (
            "Give the -c and the options that it was begun with, or choose a new output"
            f"{fits}{last}."
        )
        if before != value and name == "--reuse":
            raise ConfigInvalid(f"{out}: {_reuse_words(before, value)} {advice}")
        if name == "endpoint.embedded" and before == (not value):
            then = f"with the {EMBEDDED_SCORER}" if before else "with endpoint.base_url"
            raise ConfigInvalid(
                f"{out}: begun {then}, now {'without' if before else 'without endpoint.base_url'}, "
                f"which would mix results. {advice}"
            )
        if before != value and name != "endpoint.embedded":  # earlier versions did not keep it
            raise ConfigInvalid(
                f"{out}: begun with {name} = {before!r}, now {value!r}, which would mix results. "
                f"{advice}"
            )


def _to_reuse(out: Place) -> str:
    """How a new output takes over what this one has scored, where it can."""
    has_pairs = any((out / PAIRS).glob("part-*"))
    return " and --reuse this one to pay nothing twice" if has_pairs else ""


def _reuse_words(before: str | None, now: str | None) -> str:
    if before is None:
        return "begun without --reuse; go on without it."
    if now is None:
        return "begun with --reuse; give the same earlier output again to go on."
    return (
        "begun with --reuse of another output, in another order, or before that changed; give the "
        "same to go on."
    )


def _check_files(
    out: Place, begun: Sequence[FileIdentity], now: Sequence[FileIdentity], advice: str
) -> None:
    if len(begun) != len(now):
        raise InputBad(
            f"{out}: begun with another input ({len(begun)} files, now {len(now)}). {advice}"
        )
    for before, after in zip(begun, now, strict=True):
        if before.name != after.name:
            change = f"was {before.name}, now {after.name}"
        elif before.rows != after.rows:
            change = f"{after.name} had {before.rows:,} rows, now {after.rows:,}"
        elif before != replace(after, modified=before.modified):
            change = f"{before.name} is not what it was"
        else:
            continue
        raise InputBad(f"{out}: begun with another input ({change}). {advice}")
