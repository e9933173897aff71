"""What the earlier rows of one query come to, as a table that is searched instead of the rows.

Pure. Either a score for each pair: of the latest day, the first of a day. Or, where rows are reused
as a whole, a row for each list of texts: the latest, the first of a day. 18 bytes an entry.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from batchrank.reuse.pair_files import Stored

_DTYPES = (np.uint64, np.float64, np.uint16)


class Table(msgspec.Struct, frozen=True, gc=False):
    """Sorted `keys`, and for each a value and the day that it is of."""

    keys: NDArray[np.uint64]
    values: NDArray[np.float64]
    since: NDArray[np.uint16]

    @staticmethod
    def size(rows: int) -> int:
        """How many bytes so many entries take."""
        return 18 * rows

    @classmethod
    def of_bytes(cls, content: memoryview, rows: int) -> "Table":
        """What `to_bytes` has made."""
        keys, values, since = (
            content[: 8 * rows],
            content[8 * rows : 16 * rows],
            content[16 * rows :],
        )
        return cls(*map(np.frombuffer, (keys, values, since), _DTYPES))

    def to_bytes(self) -> bytes:
        """The entries, column by column."""
        return b"".join(column.tobytes() for column in (self.keys, self.values, self.since))

    def find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.float64], NDArray[np.uint16]]:
        """The value and day of each key; day 0 where there is none."""
        if not len(self.keys):
            return np.full(len(keys), np.nan), np.zeros(len(keys), np.uint16)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        there = self.keys[places] == keys
        return (
            np.where(there, self.values[places], np.nan),
            np.where(there, self.since[places], np.uint16(0)),
        )


def tabulate_pairs(rows: Sequence[tuple[int, Stored]]) -> Table:
    """The score of each pair that any of these rows has."""
    return _latest(
        np.frombuffer(b"".join(row.texts for _, row in rows), np.uint64),
        np.frombuffer(b"".join(row.scores for _, row in rows), np.float64),
        np.frombuffer(b"".join(row.since for _, row in rows), np.uint16),
    )


def tabulate_lists(rows: Sequence[tuple[int, Stored]], *, ordered: bool) -> Table:
    """The number of the row of each list of texts that was scored as a whole, in one answer."""
    whole = [(number, row) for number, row in rows if row.together and row.complete]
    return _latest(
        np.array([list_key(row.texts, ordered=ordered) for _, row in whole], np.uint64),
        np.array([number for number, _ in whole], np.float64),
        np.array([max(row.since, default=0) for _, row in whole], np.uint16),
    )


def list_key(texts: Sequence[int], *, ordered: bool) -> int:
    """A number that changes with a list of texts; unless `ordered`, not with their order and how
    often each is there. Blank texts (0) do not count.
    """
    some = filter(None, texts)
    listed = list(some) if ordered else sorted(set(some))
    return xxhash.xxh3_64_intdigest(np.array(listed, np.uint64).tobytes())


def _latest(
    keys: NDArray[np.uint64], values: NDArray[np.float64], since: NDArray[np.uint16]
) -> Table:
    """One entry for each key: that of the latest day, the first of a day; day 0 is none."""
    known = np.flatnonzero(since)
    order = known[np.lexsort((-since[known].astype(np.int32), keys[known]))]  # ties as they came
    keys = keys[order]
    first = np.ones(len(keys), np.bool_)
    first[1:] = keys[1:] != keys[:-1]
    chosen = order[first]
    return Table(keys[first], values[chosen], since[chosen])
