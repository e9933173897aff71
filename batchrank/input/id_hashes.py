"""Ids into 64 bits, a column at a time, for finding equals among millions without holding them.

polars hashes an Arrow column at 50 ns an id and takes it as it lies; pyarrow offers no hash. They
are the same in one process and in no other, and nothing that is written depends on them. Who finds
by a hash compares the ids themselves afterwards: two in 10^7 meet by chance once in 400,000 times.
"""

from typing import Any

import numpy as np
import pyarrow as pa

Hashes = np.ndarray[Any, np.dtype[np.uint64]]


def hashes(column: pa.Array) -> Hashes:
    """A hash for each value of a column of strings or integers."""
    import polars as pl  # 0.3 s and 30 MB, which nested rows do without

    series = pl.from_arrow(column)
    assert isinstance(series, pl.Series)
    return series.hash().to_numpy()


class Distinct:
    """Hashes that have been seen, each once, with the number of the first that had it."""

    def __init__(self) -> None:
        self._pieces: list[Hashes] = []
        self._firsts: list[np.ndarray[Any, np.dtype[np.int64]]] = []
        self._pending = self._known = 0

    def add(self, values: Hashes, first: int) -> None:
        """Take some more, numbered from `first`."""
        unique, at = np.unique(values, return_index=True)
        self._pieces.append(unique)
        self._firsts.append(at + first)
        self._pending += len(unique)
        if self._pending > max(1 << 18, self._known):
            self.found()

    def found(self) -> tuple[Hashes, np.ndarray[Any, np.dtype[np.int64]]]:
        """The hashes in ascending order, and their first numbers."""
        if self._pending:
            unique, at = np.unique(np.concatenate(self._pieces), return_index=True)
            firsts = np.concatenate(self._firsts)[at]
            self._pieces, self._firsts = [unique], [firsts]
            self._known, self._pending = len(unique), 0
        if not self._pieces:
            return np.empty(0, np.uint64), np.empty(0, np.int64)
        return self._pieces[0], self._firsts[0]


def places_in(known: Hashes, values: Hashes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where each value is among ascending hashes; -1 where it is not."""
    if not len(known):
        return np.full(len(values), -1)
    at = np.searchsorted(known, values)
    at[at == len(known)] = 0
    return np.where(known[at] == values, at, -1)
