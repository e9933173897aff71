"""What an earlier run has scored already, looked up row by row: `run --reuse PREVIOUS_OUT`.

The index is one array of 8 bytes for each earlier row, sorted: the upper bits of its query's name,
and below them the row's number. Whatever the upper bits let through is compared by the whole name.
Digests and scores stay in the side files, of which the batch last read is kept: rows in the order
of the earlier run are read through once, any other order costs a read for each row.

Nothing damaged is ever used: what cannot be read, or is not what was written, is scored again.
"""

import logging
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from math import nan
from pathlib import Path
from shutil import copyfileobj, rmtree
from tempfile import mkdtemp
from weakref import finalize

import msgspec
import numpy as np
import xxhash

from batchrank.config import JobConfig
from batchrank.digests import Digests
from batchrank.errors import ConfigInvalid, InputBad, InputMissing, StorageFailed
from batchrank.pairs import (
    DAMAGE,
    VERSION,
    Block,
    SideFile,
    Stored,
    begun,
    days_of,
    listed,
)
from batchrank.places import Place, Remote, plain
from batchrank.records import Pairs, Row
from batchrank.shapes.spill import spill_folder
from batchrank.sink import REUSED, SUCCESS

_log = logging.getLogger(__name__)

_OPEN_FILES = 32
_OPEN_BLOCKS = 16
_MOST_ROWS = 1000
"""Of one query in the earlier run, so many rows are looked at: the first."""


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


def opened(out: Place, config: JobConfig, *, rows_only: bool) -> Previous:
    """An earlier output whose scores are to be taken. Raises `InputMissing`, `InputBad`, or
    `ConfigInvalid` where none of its scores could be used.
    """
    if not out.is_dir():
        raise InputMissing(f"{out}: no such folder; --reuse names the output of an earlier run.")
    if REUSED in (config.input.id_column, *config.input.keep_columns):
        raise ConfigInvalid(f"input: with --reuse the output has a column {REUSED} of its own.")
    try:
        run = begun(out)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputBad(
            f"{out}: what it says of its pairs is damaged. Leave --reuse out."
        ) from error
    files = listed(out)
    if run is None or not files:
        raise InputMissing(
            f"{out}: has no scores to reuse: it is no output of `batchrank run`, has no part yet "
            "(finish it first), or was written with output.reusable = false."
        )
    if run.version != VERSION:
        raise InputBad(f"{out}: its _pairs/ are of another batchrank. Leave --reuse out.")
    for name, value in config.scoring().items():
        if run.scoring.get(name) != value:
            raise ConfigInvalid(
                f"{out}: was scored with {name} = {run.scoring.get(name)!r}, now {value!r}: none "
                "of its scores fit. Leave --reuse out to score everything."
            )
    sound = [(path, foot) for path in files if (foot := _foot(path)) is not None]
    if not sound:
        raise InputBad(f"{out}: all of its _pairs/ are damaged. Leave --reuse out.")
    _warn_of_gaps(out, len(files))
    rows_only = rows_only or config.endpoint.scores_lists
    named = [run.begun.isoformat(), *(f"{path.name} {foot}" for path, foot in sound)]
    return Previous(
        out=out,
        files=[path for path, _ in sound],
        rows=[rows for _, (rows, _) in sound],
        begun=days_of(run.begun),
        rows_only=rows_only,
        identity=xxhash.xxh3_128_hexdigest("\n".join(named).encode())
        + (" rows only" if rows_only else ""),
    )


def _foot(path: Place) -> tuple[int, str] | None:
    try:
        foot = SideFile(path).foot
    except DAMAGE as error:
        unreached = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        if unreached and isinstance(path, Remote):  # not damage: what is in it would be paid again
            raise StorageFailed(f"{path}: cannot be read: {plain(error)}.") from error
        _log.warning("%s: is damaged; its pairs are scored again", path)
        return None
    return foot.rows, foot.seal


def _warn_of_gaps(out: Place, files: int) -> None:
    if not (out / SUCCESS).exists():
        _log.warning("%s: is not finished (no _SUCCESS); what it has published is reused", out)
    parts = sum(1 for _ in out.glob("part-*.parquet"))
    if parts > files:
        _log.warning("%s: %d of %d parts have no _pairs/; not reused", out, parts - files, parts)


class Reuse:
    """Tells rows what `previous` has scored of them."""

    def __init__(self, config: JobConfig, previous: Previous) -> None:
        self._digests = Digests(config.scoring())
        self._lists = config.endpoint.scores_lists
        self._previous = previous
        self._index: _Index | None = None

    def prepare(self) -> None:
        """Read the earlier output's index: seconds for millions of rows."""
        if self._index is None:
            self._index = _Index(self._previous)

    def __call__(self, row: Row) -> Row:
        """The row with the names of its pairs and the scores that are known."""
        pairs = self._digests.of(row)
        if not any(pairs.texts):
            return Row(row.index, row.query, row.texts, None, pairs)
        self.prepare()
        assert self._index is not None
        earlier = self._index.rows(pairs.query)
        taken = self._whole if self._previous.rows_only else _each
        scores, since, together = taken(pairs.texts, earlier) if earlier.rows else _NOTHING
        if not any(since):
            return Row(row.index, row.query, row.texts, None, pairs)
        pairs = Pairs(pairs.query, pairs.texts, since, together)
        return Row(row.index, row.query, row.texts, scores, pairs)

    def _whole(self, texts: "array[int]", earlier: "_Earlier") -> "_Taken":
        """The scores of an earlier row of the same texts, all of one answer: the latest."""
        kind = list if self._lists else set
        asked = kind(filter(None, texts))
        fitting = [
            one
            for one in earlier.rows
            if one.together and one.complete and kind(filter(None, one.texts)) == asked
        ]
        if not fitting:
            return _NOTHING
        latest = max(fitting, key=lambda one: max(one.since, default=0))
        if not self._lists:
            return (*_matched(texts, _Earlier([latest])), True)
        given = iter([pair for pair in zip(latest.scores, latest.since, strict=True) if pair[1]])
        pairs = [next(given) if text else _UNKNOWN for text in texts]
        return (*_apart(pairs), True)


_Taken = tuple["array[float]", "array[int]", bool]
_NOTHING: _Taken = array("d"), array("H"), False
_UNKNOWN = (nan, 0)


class _Earlier:
    """The earlier rows of a query, in their order."""

    def __init__(self, rows: Sequence[Stored]) -> None:
        self.rows = rows

    @cached_property
    def best(self) -> dict[int, tuple[float, int]]:
        """The score of each of their pairs, of the latest day, the first of a day."""
        best: dict[int, tuple[float, int]] = {}
        for one in self.rows:
            for text, score, day in zip(one.texts, one.scores, one.since, strict=True):
                if day > best.get(text, _UNKNOWN)[1]:
                    best[text] = score, day
        return best


def _each(texts: "array[int]", earlier: _Earlier) -> _Taken:
    """The score of each pair that any of these rows has."""
    if len(earlier.rows) == 1 and earlier.rows[0].texts == texts:  # nearly every row
        (one,) = earlier.rows
        return one.scores, one.since, one.together and one.complete
    return (*_matched(texts, earlier), False)


def _matched(texts: "array[int]", earlier: _Earlier) -> "tuple[array[float], array[int]]":
    return _apart([earlier.best.get(text, _UNKNOWN) for text in texts])


def _apart(pairs: Sequence[tuple[float, int]]) -> "tuple[array[float], array[int]]":
    return array("d", [score for score, _ in pairs]), array("H", [day for _, day in pairs])


class _Index:
    """The rows of an earlier output, by the name of their query."""

    def __init__(self, previous: Previous) -> None:
        self._previous = previous
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
        self.rows = lru_cache(1)(self._rows)

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

    def _rows(self, query: bytes) -> _Earlier:
        found = (self._stored(number, query) for number in self._numbers(query))
        return _Earlier([row for row in found if row is not None])

    def _numbers(self, query: bytes) -> Iterator[int]:
        prefix = int.from_bytes(query[:8], "little") >> self._shift << self._shift
        first = int(np.searchsorted(self._keys, np.uint64(prefix)))
        for key in self._keys[first : first + _MOST_ROWS].tolist():
            if key >> self._shift << self._shift != prefix:
                return
            yield key - prefix

    def _stored(self, number: int, query: bytes) -> Stored | None:
        file = bisect_right(self._starts, number) - 1
        if file >= len(self._batches):
            return None
        batches = self._batches[file]
        place = bisect_right(batches, number) - 1
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

    def _open(self, file: int) -> SideFile:
        return SideFile(self._files[file])

    def _read(self, file: int, place: int) -> Block:
        return self._file(file).block(place)

    def _damaged(self, file: Place) -> None:
        if file not in self._warned:
            _log.warning("%s: is damaged; what is wrong in it is scored again", file)
            self._warned.add(file)


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
