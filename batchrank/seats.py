"""How an account is divided: a circle of cells, a hundred for each seat, and sets of them.

A worker has a seat and the seat a home, a hundredth of which, the floor, is never lent: whoever
sits down may begin with it, asked or not. Floors lie together, so that what idle neighbours lend
is one piece. A set of cells is an int, a bit for each: 1,000 seats are 12 KB, and sets are united
and told apart in microseconds.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

from msgspec import Meta

from batchrank.ticks import CIRCLE

CELLS = 100
"""Of a seat's home; one of them is the floor."""

MOST_SEATS = 10_000
_Cell = Annotated[int, Meta(ge=0, le=MOST_SEATS * CELLS)]
Runs = list[tuple[_Cell, _Cell]]


class Seats:
    """The division of an account among so many workers."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.cells = workers * CELLS
        self.all = (1 << self.cells) - 1
        self.floors = (1 << workers) - 1

    def floor(self, seat: int) -> int:
        """What is never lent of a seat's home."""
        return 1 << seat

    def home(self, seat: int, cells: int = CELLS) -> int:
        """The first so many cells of a seat's home, of which the floor is one."""
        most = max(0, min(cells, CELLS) - 1)
        return self.floor(seat) | ((1 << most) - 1) << (self.workers + seat * (CELLS - 1))

    def share(self, cells: int) -> float:
        """What part of the account a set of cells is."""
        return cells.bit_count() / self.cells

    def arcs(self, cells: int) -> list[tuple[int, int]]:
        """A set of cells on the circle of the account's requests."""
        return [(self._point(start), self._point(stop)) for start, stop in runs(cells)]

    def _point(self, cell: int) -> int:
        return -(-cell * CIRCLE // self.cells)


def runs(cells: int) -> Runs:
    """A set of cells as pieces: from a cell up to before another."""
    return list(_runs(cells))


def of_runs(pieces: Sequence[tuple[int, int]]) -> int:
    """The set of cells that these pieces are. Raises `ValueError` where one is inside out."""
    cells = 0
    for start, stop in pieces:
        if stop < start:
            raise ValueError(f"a piece from {start} to {stop}")
        cells |= (1 << stop) - (1 << start)
    return cells


def first(cells: int, count: int) -> int:
    """The first so many of a set of cells."""
    found = 0
    for start, stop in _runs(cells):
        if count <= 0:
            break
        found |= (1 << min(stop, start + count)) - (1 << start)
        count -= stop - start
    return found


def _runs(cells: int) -> Iterator[tuple[int, int]]:
    at = 0
    while cells:
        gap = (cells & -cells).bit_length() - 1
        cells >>= gap
        length = (~cells & (cells + 1)).bit_length() - 1
        yield at + gap, at + gap + length
        cells >>= length
        at += gap + length
