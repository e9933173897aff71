"""The committed answers of a run's state, read without leaving a trace in it.

The state may be of a run that is at work, was killed or has ended. Its lock is never taken and no
file of it is written: SQLite reads the shared memory of a run that is at work, or of one that was
killed, as it is, and a database without a write-ahead log as one that nobody changes. Each reading
is short, since the log grows while somebody reads.
"""

import sqlite3
import time
from array import array
from collections.abc import Callable, Container
from contextlib import closing
from math import isfinite
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import TypeVar

import msgspec

from batchrank.errors import OutputUnusable
from batchrank.records import PLAN_BITS, row_of
from batchrank.state.answer_rows import COLUMNS, Answer, is_whole, read_answer
from batchrank.state.checkpoint import ROWS_OF_PART, VERSION

T = TypeVar("T")

_WAITS_SECONDS = (0.05, 0.2, 0.5)
"""A run that begins or ends at this moment makes or removes the log."""


class KeptAnswers:
    """The answers in one state's database. Every method raises `OutputUnusable` where it cannot be
    read.
    """

    def __init__(self, database: Path) -> None:
        self._path = database

    def fingerprint(self) -> bytes:
        """Return what the run was begun with."""

        def read(database: sqlite3.Connection) -> bytes:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version != VERSION:
                raise OutputUnusable(
                    f"{self._path}: is of state version {version}; this batchrank reads {VERSION}."
                )
            (value,) = database.execute(
                "SELECT value FROM meta WHERE name = 'fingerprint'"
            ).fetchone()
            return bytes(value)

        return self._read(read)

    def parts(self) -> set[int]:
        """Return the parts that have answers."""
        return self._numbers("SELECT DISTINCT part FROM answers")

    def parts_written_again(self) -> set[int]:
        """Return the parts that were published, and some rows of which were asked again."""
        return self._numbers("SELECT part FROM parts WHERE part IN (SELECT part FROM answers)")

    def count_rows(self, parts: Container[int]) -> int:
        """Return how many rows of these parts have answers."""
        asked = {"scored": False, "bits": PLAN_BITS}
        mine = [part for part in self.parts() if part in parts]

        def read(database: sqlite3.Connection) -> int:
            counts = (database.execute(ROWS_OF_PART, {**asked, "part": part}) for part in mine)
            return sum(int(count.fetchone()[0]) for count in counts)

        return self._read(read)

    def answers(self, part: int) -> tuple[dict[int, Answer], set[int]]:
        """Return the answers of a part by plan id, and the rows that they are of."""

        def read(database: sqlite3.Connection) -> tuple[dict[int, Answer], set[int]]:
            answers, rows = {}, set()
            query = f"SELECT also, {COLUMNS} FROM answers WHERE part = ?"
            for also, *sealed, seal in database.execute(query, (part,)):
                if not is_whole(sealed, seal):
                    raise OutputUnusable(f"{self._path}: is damaged; see `batchrank verify`.")
                answers[sealed[0]] = read_answer(*sealed)
                rows.add(row_of(sealed[0]))
                rows.update(msgspec.json.decode(also, type=list[int]) if also else ())
            return answers, rows

        return self._read(read)

    def score_range(self) -> tuple[float, float] | None:
        """Return the lowest and the highest score of all answers; None where there is none."""

        def read(database: sqlite3.Connection) -> tuple[float, float] | None:
            low, high = float("inf"), float("-inf")
            for (blob,) in database.execute("SELECT scores FROM answers WHERE scores IS NOT NULL"):
                scores = array("d")
                scores.frombytes(blob)
                for score in filter(isfinite, scores):
                    low, high = min(low, score), max(high, score)
            return (low, high) if low <= high else None

        return self._read(read)

    def _numbers(self, query: str) -> set[int]:
        return self._read(lambda database: {int(one) for (one,) in database.execute(query)})

    def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        for wait in (*_WAITS_SECONDS, None):
            try:
                return self._read_once(read)
            except (sqlite3.Error, OSError, UnicodeDecodeError, TypeError) as error:
                if wait is None:
                    raise OutputUnusable(f"{self._path}: cannot be read: {error}.") from error
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _read_once(self, read: Callable[[sqlite3.Connection], T]) -> T:
        log, memory = (self._path.with_name(self._path.name + end) for end in ("-wal", "-shm"))
        if not log.exists():
            return _read_from(self._path, "immutable=1", read)
        if memory.exists():
            return _read_from(self._path, "mode=ro&readonly_shm=1", read)
        with TemporaryDirectory(prefix="batchrank-") as folder:  # a copy that somebody has made
            for file in (self._path, log):
                copyfile(file, Path(folder) / file.name)
            return _read_from(Path(folder) / self._path.name, "mode=rw", read)


def _read_from(path: Path, how: str, read: Callable[[sqlite3.Connection], T]) -> T:
    address = f"{path.absolute().as_uri()}?{how}"
    with closing(sqlite3.connect(address, uri=True, isolation_level=None)) as database:
        database.execute("BEGIN")  # all statements see the same moment
        return read(database)
