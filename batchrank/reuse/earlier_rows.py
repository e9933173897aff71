"""The rows of an earlier output, found again by the digest of their query.

The index is one array of 8 bytes for each earlier row, sorted: the upper bits of its query's
digest, and below them the row's number. Rows whose upper bits fit are compared by the whole digest.
Pair digests and scores stay in the side files, of which the blocks last read are kept.

A query may have many earlier rows. They are read once and become a table (see `score_table`) that
the next row of that query uses as well. Only the last table is in memory: where queries come back
after others, as in a night of several retrievers, a table that is made for the second time is kept
in a nameless file. So no earlier row is read more than twice, but for queries with few rows.

Nothing damaged is ever used: what cannot be read, or is not what was written, is scored again.
"""

import logging
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from shutil import copyfileobj, rmtree
from tempfile import mkdtemp
from weakref import finalize

import msgspec
import numpy as np

from batchrank.errors import StorageFailed
from batchrank.files.paths import Place, Remote, plain
from batchrank.input.spill import Nameless, spill_folder
from batchrank.reuse.pair_files import DAMAGE, Block, SideFile, Stored
from batchrank.reuse.score_table import Table

_log = logging.getLogger(__name__)

_OPEN_FILES = 32
_OPEN_BLOCKS = 16
_MOST_ROWS = 1000
"""Of one query in an earlier run, so many rows are looked at: the first."""
_FEW_ROWS = 4
"""So many rows are read again whenever their query comes: that is as fast as a table on disk."""


class Previous(msgspec.Struct, frozen=True, kw_only=True):
    """An earlier output: its side files that can be opened and the rows of each. `identity` changes
    with anything that decides what will be reused.
    """

    out: Place
    files: Sequence[Place]
    rows: Sequence[int]
    begun: int
    rows_only: bool
    identity: str


class Found(msgspec.Struct, frozen=True, gc=False):
    """Where the earlier rows of a query are in the index: `rows` of them, from `place` on. Rows of
    another query whose digest begins alike may be among them.
    """

    query: bytes
    place: int
    rows: int


class EarlierRows:
    """The rows of one earlier output, by the digest of their query. `tabulate` makes a table of
    the numbers and rows of a query.
    """

    def __init__(
        self,
        previous: Previous,
        tabulate: Callable[[Sequence[tuple[int, Stored]]], Table],
    ) -> None:
        self._previous = previous
        self._tabulate = tabulate
        self._warned: set[Place] = set()
        self._files = previous.files
        if any(isinstance(file, Remote) for file in previous.files):
            folder = Path(mkdtemp(prefix="batchrank-", dir=spill_folder()))
            finalize(self, rmtree, folder, ignore_errors=True)
            self._files = [_copied(file, folder) for file in previous.files]
        self._starts = [0]
        for rows in previous.rows:
            self._starts.append(self._starts[-1] + rows)
        self._batches: list[list[int]] = []
        self._shift = self._starts[-1].bit_length()
        self._keys = self._sorted_keys()
        self._file = lru_cache(_OPEN_FILES)(self._open)
        self._block = lru_cache(_OPEN_BLOCKS)(self._read)
        self._last: tuple[bytes, Table] | None = None
        self._kept = _KeptTables()
        self.rows_read = 0

    def find(self, query: bytes) -> Found:
        """Where the rows of this query are."""
        prefix = int.from_bytes(query[:8], "little") >> self._shift
        bounds = np.array([prefix << self._shift, ((prefix + 1) << self._shift) - 1], np.uint64)
        first, stop = np.searchsorted(self._keys, bounds).tolist()
        return Found(query, first, min(stop - first, _MOST_ROWS))

    def numbers(self, found: Found) -> list[int]:
        """The numbers of the rows of a query, in their order."""
        mask = np.uint64((1 << self._shift) - 1)
        numbers: list[int] = (self._keys[found.place : found.place + found.rows] & mask).tolist()
        return numbers

    def table(self, found: Found) -> Table:
        """The table of the rows of a query."""
        if self._last is not None and self._last[0] == found.query:
            return self._last[1]
        many = found.rows > _FEW_ROWS
        table = self._kept.read(found) if many else None
        if table is None:
            rows = ((number, self.row(number, found.query)) for number in self.numbers(found))
            table = self._tabulate([(number, row) for number, row in rows if row is not None])
            if many:
                self._kept.keep_if_seen(found, table)
        self._last = found.query, table
        return table

    def row(self, number: int, query: bytes) -> Stored | None:
        """A row, if it is of this query and is what was written."""
        file = bisect_right(self._starts, number) - 1
        if file >= len(self._batches):
            return None
        batches = self._batches[file]
        place = bisect_right(batches, number) - 1
        self.rows_read += 1
        try:
            block = self._block(file, place)
            offset = number - batches[place]
            if block.query(offset) != query:
                return None
            stored = block.row(offset, self._previous.begun)
        except DAMAGE:
            stored = None
        if stored is None:
            self._damaged(self._files[file])
        return stored

    def _sorted_keys(self) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """One array, filled and sorted in place: 8 bytes a row are all that there ever is."""
        keys = np.full(self._starts[-1], np.iinfo(np.uint64).max, np.uint64)
        shift = np.uint64(self._shift)
        for file, start, stop in zip(self._files, self._starts, self._starts[1:], strict=False):
            batches = [start]
            try:
                for names in SideFile(file).queries():
                    first, end = batches[-1], batches[-1] + len(names)
                    if end > stop:
                        raise ValueError("more rows than it says")
                    numbers = np.arange(first, end, dtype=np.uint64)
                    keys[first:end] = names >> shift << shift | numbers
                    batches.append(end)
            except DAMAGE:
                self._damaged(file)
            self._batches.append(batches)
        keys.sort()
        return keys

    def _open(self, file: int) -> SideFile:
        return SideFile(self._files[file])

    def _read(self, file: int, place: int) -> Block:
        return self._file(file).block(place)

    def _damaged(self, file: Place) -> None:
        if file not in self._warned:
            _log.warning("%s: is damaged; what is wrong in it is scored again", file)
            self._warned.add(file)


_NEVER, _ONCE = 0, 1


class _KeptTables:
    """Tables that were made twice, in a file without a name. Another such file says where each one
    is, 8 bytes at the place of its query in the index: memory does not grow with the tables.
    """

    def __init__(self) -> None:
        self._files: tuple[Nameless, Nameless] | None = None

    def read(self, found: Found) -> Table | None:
        """The table of a query, if it is here."""
        state = self._state(found)
        if self._files is None or state in (_NEVER, _ONCE):
            return None
        start = state - 2
        head = self._files[1].read(start, 24)
        if head[:16] != found.query:  # of another whose digest begins alike
            return None
        rows = int.from_bytes(head[16:], "little")
        return Table.of_bytes(self._files[1].mapped(start + 24, Table.size(rows)), rows)

    def keep_if_seen(self, found: Found, table: Table) -> None:
        """Write a table down, if it has been made before. Raises `StorageFailed`."""
        if self._files is None:
            self._files = Nameless(), Nameless()
        directory, tables = self._files
        state = self._state(found)
        if state == _NEVER:
            directory.put(8 * found.place, array("Q", [_ONCE]).tobytes())
        elif state == _ONCE:
            head = found.query + len(table.keys).to_bytes(8, "little")
            content = head + table.to_bytes()
            start = tables.append(content + bytes(-len(content) % 8))  # numbers stay aligned
            directory.put(8 * found.place, array("Q", [start + 2]).tobytes())

    def _state(self, found: Found) -> int:
        if self._files is None:
            return _NEVER
        return int.from_bytes(self._files[0].read(8 * found.place, 8), "little")


def _copied(file: Place, folder: Path) -> Path:
    """A file of a bucket on this machine, for as long as the index is there: its rows are read one
    by one. Raises `StorageFailed`.
    """
    copy = folder / file.name
    try:
        with file.open_input() as source, copy.open("wb") as target:  # type: ignore[union-attr]
            copyfileobj(source, target, 1 << 20)
    except OSError as error:
        raise StorageFailed(f"{file}: cannot be copied to {folder}: {plain(error)}.") from error
    return copy
