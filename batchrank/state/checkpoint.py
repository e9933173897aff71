"""Answers that count.

An answer counts once its transaction is committed and synced; until then it will be asked for
again. Published parts outlive their answers, which are dropped in the same transaction that records
the part. Scores and counts are kept here, texts never.

SQLite (WAL, synchronous=FULL), written by one thread that commits what has come in 50 ms together:
4.5 us an answer, where a commit each would cost 122 (measured). A group is few statements, because
Python gives its interpreter lock away for each, and a busy event loop returns it after 5 ms.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, TypeVar

import msgspec

from batchrank.errors import OutputUnusable, StorageFailed, TryLater
from batchrank.records import PLAN_BITS, Outcome, Spent
from batchrank.state.answer_rows import (
    COLUMNS,
    TABLE,
    Answer,
    Settled,
    insertions,
    is_whole,
    read_answer,
)

T = TypeVar("T")

COMMIT_SECONDS = 0.05
COMMIT_GROUP = 512
"""Answers on their way to the disk at which sending waits. So no more than `max_in_flight` + 512
answers are ever lost by a kill. Half of it is committed at once: at 10,000 answers a second, the
most that was measured, that is each 26 ms, and a commit takes 5 to 10. At 256 in all the wait was
measured (1.07 times the CPU of a run), at 512 it was not (1.01, 9 rounds in turn)."""
VERSION = 3
_SCHEMA = f"""
BEGIN;
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
{TABLE}
CREATE TABLE parts (part INTEGER PRIMARY KEY, record BLOB NOT NULL);
COMMIT;
"""
_SINCE = {
    1: "ALTER TABLE answers ADD COLUMN shares BLOB; ALTER TABLE answers ADD COLUMN also TEXT",
    2: "",  # digests of another kind (see `digests`)
}
"""What makes a checkpoint of a version one of the next."""
ROWS_OF_PART = """
WITH mine AS (
    SELECT plan, also FROM answers WHERE part = :part AND (scores IS NOT NULL OR NOT :scored)
)
SELECT count(*) FROM (SELECT plan >> :bits FROM mine UNION SELECT value FROM mine, json_each(also))
"""
"""The rows of a part that have answers: those of a request that rows share are all of them."""


class _Published(msgspec.Struct, frozen=True, gc=False):
    part: int
    record: bytes


class _Lease(msgspec.Struct, frozen=True, gc=False):
    tokens: int


class _Attempts(msgspec.Struct, frozen=True, gc=False):
    failures: dict[str, int]


class _Flush(msgspec.Struct, frozen=True, gc=False):
    committed: Callable[[], object]


_Item = Settled | _Published | _Lease | _Attempts | _Flush | None


class Checkpoint:
    """The state of one run. Made by `opened`; `record` and `forget` may be called from the loop:
    they hand over to the writing thread and return at once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: SimpleQueue[_Item] = SimpleQueue()
        with closing(_connection(path)) as database:
            _bring_up_to_date(database)
            self.spent = self._meta(database, "spent", Spent) or Spent()
            self.leased = self._meta(database, "leased", int) or 0
            attempts = self._meta(database, "attempts", dict[str, int]) or {}
        self.attempts = {int(plan): failures for plan, failures in attempts.items()}
        self._untold = max(0, self.leased - _most(self.spent))
        self._recorded = self._taken_up = self._committed = 0
        self._half_a_group = Event()
        self._catching_up = asyncio.Lock()
        self.waited_seconds = 0.0
        self._thread: Thread | None = None
        self.error: StorageFailed | None = None

    def record(self, part: int, digest: bytes, outcome: Outcome, also: Sequence[int] = ()) -> None:
        """Keep an outcome. It counts a moment later, once committed. `also`: rows that share it
        with the one that gives the plan its id.
        """
        self._queue.put(Settled(part, digest, outcome, also))
        self._recorded += 1
        if self._recorded - self._taken_up == COMMIT_GROUP // 2:
            self._half_a_group.set()

    @property
    def is_behind(self) -> bool:
        """Whether a commit group or more is recorded and not yet durable."""
        return self._recorded - self._committed >= COMMIT_GROUP

    async def wait_while_behind(self) -> None:
        """Wait while the checkpoint is behind. Never returns if a commit fails, as `durable`."""
        async with self._catching_up:  # one asks the thread, for all who wait
            began = time.monotonic()
            while self.is_behind:
                await self.durable()
            self.waited_seconds += time.monotonic() - began

    def forget(self, part: int, record: bytes) -> None:
        """A part is published: keep its record, drop its answers."""
        self._queue.put(_Published(part, record))

    def lease(self, tokens: int) -> None:
        """Should this session be killed, so many tokens may have been spent in all. A session that
        ends well leaves what it spent, and what those killed before it may have.
        """
        self._queue.put(_Lease(tokens))

    def keep_attempts(self, failures: Mapping[int, int]) -> None:
        """Keep for a next start how often plans have failed that are to blame for it themselves."""
        self._queue.put(_Attempts({str(plan): count for plan, count in failures.items()}))

    def flush(self, committed: Callable[[], object]) -> None:
        """Have `committed` called, from the writing thread, once all that was handed over is
        durable. It is never called when that fails.
        """
        self._queue.put(_Flush(committed))

    async def durable(self) -> None:
        """Wait until all that was handed over is. For good when that fails: the run ends then."""
        loop, committed = asyncio.get_running_loop(), asyncio.Event()
        self.flush(lambda: loop.call_soon_threadsafe(committed.set))
        await committed.wait()

    def answered(self) -> Iterator[tuple[int, int, bool]]:
        """The part and plan id of every committed answer, and whether it has scores. Raises
        `OutputUnusable` at the first that is not what was written.
        """
        try:
            with closing(_connection(self._path)) as database:
                rows = database.execute(f"SELECT part, {COLUMNS} FROM answers")
                for part, *sealed, seal in rows:
                    if not is_whole(sealed, seal):
                        raise _damaged(self._path)
                    plan, _, scores, *_ = sealed
                    yield part, plan, scores is not None
        except sqlite3.Error as error:  # such as a note that is no text any more
            raise _damaged(self._path) from error

    def answers(self, part: int) -> dict[int, Answer]:
        """The committed answers of an unpublished part, by plan id."""
        try:
            with closing(_connection(self._path)) as database:
                rows = database.execute(f"SELECT {COLUMNS} FROM answers WHERE part = ?", (part,))
                return {row[0]: self._answer(*row) for row in rows}
        except sqlite3.Error as error:
            raise StorageFailed(f"{self._path}: cannot be read: {error}.") from error

    def _answer(self, *row: Any) -> Answer:
        *sealed, seal = row
        if not is_whole(sealed, seal):
            raise _damaged(self._path)
        return read_answer(*sealed)

    def rows_kept(self, published: Container[int], *, scored: bool) -> int:
        """How many rows of parts that are not published have answers, or scores."""
        asked = {"scored": scored, "bits": PLAN_BITS}
        try:
            with closing(_connection(self._path)) as database:
                parts = database.execute("SELECT DISTINCT part FROM answers").fetchall()
                return sum(
                    database.execute(ROWS_OF_PART, {**asked, "part": part}).fetchone()[0]
                    for (part,) in parts
                    if part not in published
                )
        except sqlite3.Error as error:
            raise StorageFailed(f"{self._path}: cannot be read: {error}.") from error

    def parts(self) -> Mapping[int, bytes]:
        """The records of the published parts."""
        with closing(_connection(self._path)) as database:
            return dict(database.execute("SELECT part, record FROM parts ORDER BY part"))

    def decoded(self, value: bytes, kind: type[T]) -> T:
        """A value that was kept here. Raises `OutputUnusable` where it is none any more."""
        try:
            return msgspec.json.decode(value, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _damaged(self._path) from error

    def _meta(self, database: sqlite3.Connection, name: str, kind: type[T]) -> T | None:
        row = database.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else self.decoded(row[0], kind)

    def start(self, on_error: Callable[[StorageFailed], None]) -> None:
        """Begin to write. A failed commit is told to `on_error`, from the writing thread."""
        self._thread = Thread(target=self._write, args=(on_error,), name="checkpoint")
        self._thread.start()

    def close(self) -> None:
        """Commit what has been handed over; `error` says whether that could be done."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()

    def _write(self, on_error: Callable[[StorageFailed], None]) -> None:
        with ExitStack() as open_until_told:  # closing takes long when the disk refuses
            try:
                database = open_until_told.enter_context(closing(_connection(self._path)))
                while self._commit_group(database):
                    pass
            except sqlite3.Error as error:
                self.error = StorageFailed(f"{self._path}: cannot be written: {error}.")
                on_error(self.error)

    def _commit_group(self, database: sqlite3.Connection) -> bool:
        """Write what came within `COMMIT_SECONDS`; False once there is no more to come."""
        group = [self._queue.get()]
        if group[0] is not None:
            self._half_a_group.wait(COMMIT_SECONDS)
        self._half_a_group.clear()
        while not self._queue.empty():
            group.append(self._queue.get())
        spent = self.spent
        settled = [item for item in group if isinstance(item, Settled)]
        self._taken_up += len(settled)
        database.execute("BEGIN IMMEDIATE")
        for statement, values in insertions(settled):
            database.execute(statement, values)
        for item in group:
            if isinstance(item, Settled):
                spent = spent + item.outcome.spent
            elif isinstance(item, _Lease):
                _write_meta(database, "leased", item.tokens)
            elif isinstance(item, _Attempts):
                _write_meta(database, "attempts", item.failures)
            elif item is None:
                _write_meta(database, "leased", _most(spent) + self._untold)
            elif isinstance(item, _Published):
                database.execute(
                    "INSERT OR REPLACE INTO parts VALUES (?, ?)", (item.part, item.record)
                )
                database.execute("DELETE FROM answers WHERE part = ?", (item.part,))
        _write_meta(database, "spent", spent)
        database.execute("COMMIT")
        self.spent = spent
        self._committed += len(settled)
        for item in group:
            if isinstance(item, _Lease):
                self.leased = item.tokens
            elif isinstance(item, _Flush):
                with suppress(RuntimeError):  # the loop that waited may have ended
                    item.committed()
        return group[-1] is not None


class NoLocks(OutputUnusable):
    """The file system refuses locks, as Lustre without `-o flock` does."""


@contextmanager
def locked(
    state: Path, out: object, waits_seconds: Sequence[float] = (0.05, 0.2)
) -> Iterator[None]:
    """Hold the output for this process alone. Raises `TryLater` when another has it. A look by
    `status` holds the lock for an instant: hence a second and a third try.
    """
    try:
        descriptor = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StorageFailed(f"{state / 'lock'}: cannot be made: {error.strerror}.") from error
    try:
        _take(descriptor, out, waits_seconds)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, out: object, waits_seconds: Sequence[float]) -> None:
    for wait in (*waits_seconds, None):
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
            return
        except BlockingIOError:
            if wait is None:
                raise TryLater(f"{out}: another batchrank is at work on this output.") from None
            time.sleep(wait)
        except OSError as error:
            raise NoLocks(
                f"{out}: its file system has no locks ({error.strerror}), and two runs could work "
                "on it at once. Pass --state-dir DIR on a disk of this machine."
            ) from error


def begin(path: Path, fingerprint: bytes) -> None:
    """Make an empty checkpoint for the run of this fingerprint."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite's side files take its mode
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            mode = database.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            if mode != "wal":  # a refused write does not raise here, and would go unnoticed
                raise StorageFailed(f"{path}: cannot be written: no write-ahead log can be kept.")
            database.execute("PRAGMA synchronous=FULL")
            database.executescript(_SCHEMA)
            database.execute("BEGIN")
            database.execute("INSERT INTO meta VALUES ('fingerprint', ?)", (fingerprint,))
            database.execute(f"PRAGMA user_version={VERSION}")
            database.execute("COMMIT")
    except (sqlite3.Error, OSError) as error:
        raise StorageFailed(f"{path}: cannot be written: {error}.") from error


def renew(path: Path, fingerprint: bytes) -> None:
    """Keep another fingerprint of the same run. Raises `StorageFailed`."""
    try:
        with closing(_connection(path)) as database:
            database.execute("UPDATE meta SET value = ? WHERE name = 'fingerprint'", (fingerprint,))
    except sqlite3.Error as error:
        raise StorageFailed(f"{path}: cannot be written: {error}.") from error


def has_answers(path: Path) -> bool:
    """Whether answers wait for others of their parts. Raises `StorageFailed`."""
    try:
        with closing(_connection(path)) as database:
            return database.execute("SELECT 1 FROM answers LIMIT 1").fetchone() is not None
    except sqlite3.Error as error:
        raise StorageFailed(f"{path}: cannot be read: {error}.") from error


def read_fingerprint(path: Path) -> bytes | None:
    """The fingerprint that a checkpoint was begun with; None where there is no checkpoint yet.

    Raises `OutputUnusable` for a damaged one, or one of another version.
    """
    if not path.exists():
        return None
    try:
        with closing(_connection(path)) as database:
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                return None
            if version > VERSION:
                raise OutputUnusable(
                    f"{path}: was written by a newer batchrank (state version {version}; this one "
                    f"knows {VERSION}). Update batchrank, or choose a new output."
                )
            tables = "SELECT count(*) FROM sqlite_master WHERE name IN ('answers', 'meta', 'parts')"
            if database.execute(tables).fetchone()[0] != 3:
                raise _damaged(path)
            if database.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
                raise _damaged(path)
            row = database.execute("SELECT value FROM meta WHERE name = 'fingerprint'").fetchone()
    except (sqlite3.Error, UnicodeDecodeError) as error:  # a message may quote what is damaged
        raise _damaged(path) from error
    if row is None:
        raise _damaged(path)
    return bytes(row[0])


def _bring_up_to_date(database: sqlite3.Connection) -> None:
    """Let a run go on that an earlier version began."""
    version = database.execute("PRAGMA user_version").fetchone()[0]
    for step in range(version, VERSION):
        database.executescript(f"BEGIN; {_SINCE[step]}; PRAGMA user_version={step + 1}; COMMIT")


def _damaged(path: Path) -> OutputUnusable:
    return OutputUnusable(
        f"{path}: is damaged. The published parts are whole: choose a new output and --reuse this "
        "one, to score the rest; --restart would throw the parts away too."
    )


def _connection(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA synchronous=FULL")
    return database


def _most(spent: Spent) -> int:
    """What may have been billed for it."""
    return spent.units + spent.units_at_risk


def _write_meta(
    database: sqlite3.Connection, name: str, value: Spent | int | dict[str, int]
) -> None:
    database.execute(
        "INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, msgspec.json.encode(value))
    )
