"""Lines into groups: all lines of a query are one group, queries in order of their first line.

A first look reads only ids and query texts. It says whether each query's lines stand together, and
then groups are read as the lines come, from any group on, with nothing kept. Where they do not, the
lines are parted once into buckets of consecutive groups (`spill`), each small enough to be sorted
in memory. Either way a group's lines keep the order of the input.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchrank.errors import InputBad
from batchrank.files.text_form import as_text, plain_array
from batchrank.input.id_hashes import Distinct, Hashes, hashes, places_in
from batchrank.input.line_files import Lines
from batchrank.input.spill import Spill

_MARK_ROWS = 1024
_CHECK_STARTS = 1 << 18
Flags = np.ndarray[Any, np.dtype[np.bool_]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]


class Gathered(msgspec.Struct, frozen=True):
    """Some consecutive whole groups, the first of them the `first` of all. Group i has the lines
    from `offsets[i]` up to `offsets[i + 1]`.
    """

    first: int
    lines: pa.RecordBatch
    offsets: Numbers


class Together:
    """Groups whose lines stand together: read as they come."""

    def __init__(self, lines: Lines, key: str, names: Sequence[str], marks: Sequence[int]) -> None:
        self._lines = lines
        self._key = key
        self._names = names
        self._marks = marks

    def read(self, first: int, stop: int) -> Iterator[Gathered]:
        """The groups from `first` up to `stop`, some at a time, and maybe some outside."""
        mark = first // _MARK_ROWS
        row = mark * _MARK_ROWS
        open_lines: list[pa.RecordBatch] = []
        last = None
        for batch in self._lines.batches(self._names, self._marks[mark]):
            ids = comparable(batch.column(self._key))
            starts = np.flatnonzero(changed(ids, last))
            last = ids.slice(len(ids) - 1)
            if open_lines and len(starts):
                whole = pa.concat_batches([*open_lines, batch.slice(0, starts[-1])])
                offsets = starts + (whole.num_rows - starts[-1])
                yield Gathered(row, whole, np.concatenate(([0], offsets)))
                row += len(starts)
                batch, open_lines = batch.slice(starts[-1]), []
            elif len(starts) > 1:
                yield Gathered(row, batch.slice(0, starts[-1]), starts)
                row += len(starts) - 1
                batch = batch.slice(starts[-1])
            open_lines.append(batch)
            if row >= stop:
                return
        whole = pa.concat_batches(open_lines)
        yield Gathered(row, whole, np.array([0, whole.num_rows]))


class Scattered:
    """Groups whose lines do not stand together: parted into buckets, and sorted there."""

    def __init__(self, lines: Lines, key: str, names: Sequence[str], query: str | None) -> None:
        self._key = key
        self._known, self._ordinal = _ordinals(lines, key)
        self._spill = Spill(self.rows, lines.total)
        texts = np.zeros(self.rows, np.uint64)
        line = 0
        for batch in lines.batches(names):
            groups = self._groups_of(batch)
            if query is not None:
                _check_texts(texts, groups, hashes(comparable(batch.column(query))), lines, line)
            self._spill.add(groups, batch)
            line += batch.num_rows
        self._spill.flush()

    @property
    def rows(self) -> int:
        return len(self._known)

    def read(self, first: int, stop: int) -> Iterator[Gathered]:
        """The groups from `first` up to `stop`, some at a time, and maybe some outside."""
        for batch in self._spill.read(first, stop):
            groups = self._groups_of(batch)
            order = np.argsort(groups, kind="stable")
            groups, batch = groups[order], batch.take(pa.array(order))
            self._check_ids(groups, batch)
            offsets = np.flatnonzero(np.diff(groups, prepend=-1, append=self.rows))
            yield Gathered(int(groups[0]), batch, offsets)

    def _groups_of(self, batch: pa.RecordBatch) -> Numbers:
        places = places_in(self._known, hashes(comparable(batch.column(self._key))))
        groups: Numbers = self._ordinal[places]
        return groups

    def _check_ids(self, groups: Numbers, batch: pa.RecordBatch) -> None:
        """Different ids must not share a group, which equal hashes would make them do."""
        mixed = changed(comparable(batch.column(self._key)), None)
        if mixed[1:][np.diff(groups) == 0].any():
            raise InputBad(
                f"two values of {self._key} have the same hash, so that unsorted lines cannot be "
                f"told apart. Sort the input by {self._key}."
            )


Groups = Together | Scattered


def gather(lines: Lines, key: str, names: Sequence[str], query: str | None) -> tuple[Groups, int]:
    """The groups of the lines by column `key`, with the columns `names`, and how many they are.

    Raises `InputBad` for a line without a key, or a key with two texts in column `query`.
    """
    look = _look(lines, key, query)
    if look is None:
        scattered = Scattered(lines, key, names, query)
        return scattered, scattered.rows
    rows, marks = look
    return Together(lines, key, names, marks), rows


def pieces(
    gathered: Gathered, first: int, stop: int, rows_per_part: int, most: Callable[[], int]
) -> Iterator[Gathered]:
    """Whole groups as a chunk takes them: those wanted, cut at parts' borders, so many at most."""
    offsets, end = gathered.offsets, gathered.first + len(gathered.offsets) - 1
    at, stop = max(gathered.first, first), min(end, stop)
    while at < stop:
        border = min(stop, at + most(), (at // rows_per_part + 1) * rows_per_part)
        own = offsets[at - gathered.first : border - gathered.first + 1]
        yield Gathered(at, gathered.lines.slice(own[0], own[-1] - own[0]), own - own[0])
        at = border


def comparable(column: pa.Array) -> pa.Array:
    """A column in a form that can be compared and hashed. Raises ArrowInvalid for no text."""
    column = plain_array(column)
    kind = column.type
    if pa.types.is_integer(kind):
        return column
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return as_text(column).cast(pa.large_string())
    column.validate(full=True)
    return column


def changed(ids: pa.Array, last: pa.Array | None) -> Flags:
    """Where a value is not that of the line before; `last` is the one before the first."""
    flags = np.ones(len(ids), np.bool_)
    flags[1:] = pc.not_equal(ids.slice(1), ids.slice(0, max(0, len(ids) - 1))).to_numpy(
        zero_copy_only=False
    )
    if last is not None:
        flags[0] = ids[0] != last[0]
    return flags


def _look(lines: Lines, key: str, query: str | None) -> tuple[int, list[int]] | None:
    """How many groups there are, and the first line of every 1,024th; None where the lines of some
    group do not stand together.
    """
    rows = line = 0
    marks: list[int] = []
    starts: list[Hashes] = []
    last = last_text = None
    unchecked = 0
    for batch in lines.batches([key] if query is None else [key, query]):
        ids = comparable(batch.column(key))
        _check_nulls(ids, key, lines, line)
        new = changed(ids, last)
        last = ids.slice(len(ids) - 1)
        if query is not None:
            texts = hashes(comparable(batch.column(query)))
            other = np.diff(texts, prepend=texts[0] if last_text is None else last_text) != 0
            if (other & ~new).any():
                raise _two_texts(lines, line + int(np.flatnonzero(other & ~new)[0]))
            last_text = texts[-1]
        at = np.flatnonzero(new)
        marks += [line + int(at[m]) for m in range(-rows % _MARK_ROWS, len(at), _MARK_ROWS)]
        starts.append(hashes(ids.filter(pa.array(new))))
        rows, line, unchecked = rows + len(at), line + len(ids), unchecked + len(at)
        if unchecked > max(_CHECK_STARTS, rows // 2):
            starts, unchecked = [np.concatenate(starts)], 0
            if _repeats(starts[0]):
                return None
    if starts and _repeats(np.concatenate(starts)):
        return None
    return rows, marks or [0]


def _repeats(starts: Hashes) -> bool:
    starts.sort()
    return bool((starts[1:] == starts[:-1]).any())


def _ordinals(lines: Lines, key: str) -> tuple[Hashes, Numbers]:
    """The hashes of the keys, ascending, and which of all groups each one's is."""
    distinct, line = Distinct(), 0
    for batch in lines.batches([key]):
        distinct.add(hashes(comparable(batch.column(key))), line)
        line += batch.num_rows
    known, firsts = distinct.found()
    ordinal = np.empty(len(known), np.int64)
    ordinal[np.argsort(firsts)] = np.arange(len(known))
    return known, ordinal


def _check_texts(texts: Hashes, groups: Numbers, found: Hashes, lines: Lines, line: int) -> None:
    unknown = texts[groups] == 0
    texts[groups[unknown]] = found[unknown]
    wrong = texts[groups] != found
    if wrong.any():
        raise _two_texts(lines, line + int(np.flatnonzero(wrong)[0]))


def _check_nulls(ids: pa.Array, key: str, lines: Lines, line: int) -> None:
    if ids.null_count:
        at = ids.is_null().index(True).as_py()
        raise InputBad(f"{lines.where(line + at)}: no {key}; every line needs one.")


def _two_texts(lines: Lines, line: int) -> InputBad:
    return InputBad(
        f"{lines.where(line)}: its query_id has another query text on another line. One id, one "
        "query: give them different ids, or the same text."
    )
