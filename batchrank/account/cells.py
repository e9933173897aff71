"""How an account is divided: a circle of cells, a hundred for each seat, and sets of them.

A worker has a seat and the seat a home, a hundredth of which, the floor, is never lent: whoever
sits down may begin with it, asked or not. Floors lie together, so that what idle neighbours lend
is one piece. A set of cells is an int, a bit for each: 1,000 seats are 12 KB, and sets are united
and told apart in microseconds. Nothing here takes more than linear time, whatever pieces are given.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

from msgspec import Meta

from batchrank.pacing.request_numbers import CIRCLE

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
    """The set of cells that these pieces are, in time linear in cells and pieces. Raises
    `ValueError` unless they are in order and apart from each other, as `runs` makes them.
    """
    bits, before = bytearray(b"0") * (pieces[-1][1] if pieces else 0), -1
    for start, stop in pieces:
        if not before < start < stop:
            raise ValueError(f"a piece from {start} to {stop} behind one to {before}")
        bits[start:stop] = b"1" * (stop - start)
        before = stop
    bits.reverse()
    return int(bits or b"0", 2)


def first(cells: int, count: int) -> int:
    """The first so many of a set of cells."""
    low, high = 0, cells.bit_length()
    while low < high:  # how many bits, from the lowest, hold so many
        middle = (low + high) // 2
        if (cells & (1 << middle) - 1).bit_count() < count:
            low = middle + 1
        else:
            high = middle
    return cells & (1 << low) - 1


def _runs(cells: int) -> Iterator[tuple[int, int]]:
    # One walk over the bits as text: to shift the set itself by every piece is quadratic.
    bits = f"0{cells:b}"[::-1]
    start = bits.find("1")
    while start >= 0:
        stop = bits.find("0", start)
        yield start, stop
        start = bits.find("1", stop)
