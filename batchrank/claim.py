"""Whose output folder it is: the lock, the fingerprint of the run, and a fresh start when asked.

A folder belongs to one input under one configuration. Going on under another would mix scores that
do not compare, so it is refused, with the field or the file named.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from batchrank import checkpoint
from batchrank.errors import ConfigInvalid, InputBad, OutputUnusable, StorageFailed
from batchrank.sink import SUCCESS, sync_folder
from batchrank.source import STATE, FileIdentity

RECEIPT = "run.json"
PAGE = "report.html"


class Fingerprint(msgspec.Struct, frozen=True):
    """What decides the results of a run."""

    files: list[FileIdentity]
    limit_rows: int
    config: dict[str, Any]


class Claim(msgspec.Struct, frozen=True):
    """An output folder held by this process. `finished`: there is nothing left to do."""

    folder: Path
    state: Path
    database: Path
    finished: bool


@contextmanager
def claimed(out: Path, fingerprint: Fingerprint, *, restart: bool) -> Iterator[Claim]:
    """Hold an output folder for this run, new or resumed.

    Raises `OutputUnusable` for a folder that is not a run's or is damaged, `TryLater` when another
    process has it, `InputBad` or `ConfigInvalid` when it was begun with another input or
    configuration, `StorageFailed` when the disk refuses.
    """
    state = out / STATE
    _make(out, state)
    database = state / "checkpoint.sqlite"
    with checkpoint.locked(state):
        if restart:
            _clear(out, state)
        begun = checkpoint.read_fingerprint(database)
        if begun is None:
            if any(out.glob("part-*.parquet")):
                raise OutputUnusable(
                    f"{out}: has parts but not the state of their run ({STATE}/). Choose a new "
                    "output, or pass --restart to score everything again."
                )
            database.unlink(missing_ok=True)
            checkpoint.begin(database, msgspec.json.encode(fingerprint))
            try:
                sync_folder(state)
                sync_folder(out)
            except OSError as error:
                raise StorageFailed(f"{out}: cannot be written: {error.strerror}.") from error
        else:
            _check_same(out, _decoded(begun, database), fingerprint)
        yield Claim(out, state, database, (out / SUCCESS).exists())


def _make(out: Path, state: Path) -> None:
    try:
        if out.exists() and not out.is_dir():
            raise OutputUnusable(f"{out}: is a file; the output is a folder.")
        if out.is_dir() and not state.exists() and any(out.iterdir()):
            raise OutputUnusable(f"{out}: is not empty, and no run of batchrank. Choose another.")
        out.mkdir(parents=True, exist_ok=True)
        state.mkdir(mode=0o700, exist_ok=True)
        state.chmod(0o700)
    except OSError as error:
        if error.errno is not None and error.errno in _DISK:
            raise StorageFailed(f"{out}: cannot be written: {error.strerror}.") from error
        raise OutputUnusable(f"{out}: cannot be made or written: {error.strerror}.") from error


_DISK = {5, 28, 122}
"""EIO, ENOSPC, EDQUOT."""


def _clear(out: Path, state: Path) -> None:
    """Take back a run: first its claim to be finished, then its parts, then what it remembers."""
    (out / SUCCESS).unlink(missing_ok=True)
    for path in [*out.glob("part-*.parquet"), out / RECEIPT, out / PAGE]:
        path.unlink(missing_ok=True)
    sync_folder(out)
    for path in state.iterdir():
        if path.name != "lock":
            path.unlink()


def _decoded(begun: bytes, database: Path) -> Fingerprint:
    try:
        return msgspec.json.decode(begun, type=Fingerprint)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise OutputUnusable(
            f"{database}: is damaged. Choose a new output, or pass --restart."
        ) from error


def _check_same(out: Path, begun: Fingerprint, now: Fingerprint) -> None:
    _check_files(out, begun.files, now.files)
    if begun.limit_rows != now.limit_rows:
        raise ConfigInvalid(
            f"{out}: begun with --limit {begun.limit_rows}, now {now.limit_rows} (0: all rows). "
            "Choose a new output, or pass --restart."
        )
    for name, value in now.config.items():
        if begun.config.get(name) != value:
            raise ConfigInvalid(
                f"{out}: begun with {name} = {begun.config.get(name)!r}, now {value!r}, which "
                "would mix results. Choose a new output, or pass --restart."
            )


def _check_files(out: Path, begun: Sequence[FileIdentity], now: Sequence[FileIdentity]) -> None:
    if list(begun) == list(now):
        return
    advice = "Choose a new output, or pass --restart."
    if len(begun) != len(now):
        raise InputBad(
            f"{out}: begun with another input ({len(begun)} files, now {len(now)}). {advice}"
        )
    for before, after in zip(begun, now, strict=True):
        if before.rows != after.rows:
            change = f"{after.name} had {before.rows:,} rows, now {after.rows:,}"
        elif before != after:
            change = f"{before.name} is not what it was"
        else:
            continue
        raise InputBad(f"{out}: begun with another input ({change}). {advice}")
