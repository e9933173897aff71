"""The most valuable rows first, within bounds: rows in bands, and a pass over the input for each.

To hold every part open until its last row is sent would take as much memory as the input has
texts, so rows are not sorted. They are cut into at most `BANDS` bands by the quantiles of their
priorities, and sent band by band, in input order within each. A byte a row is kept. Pure.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

BANDS = 10
"""Passes over the input, the last one of which sends the lowest band and publishes the parts."""

_SAMPLE = 1 << 20
"""Priorities that quantiles are taken from: all of them, up to a million rows."""

_CLOSED, _SETTLED = 254, 255
Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Bands:
    """Which band each row is in, from 0, the most valuable. Rows without a priority (NaN) are in a
    band of their own, the last; rows that are not `wanted` are in none.

    `ahead` counts rows that are settled before their part's turn: those `settled` beforehand too.
    """

    def __init__(self, priorities: Numbers, wanted: Flags, settled: Flags) -> None:
        self._of_row = np.full(len(priorities), _CLOSED, np.uint8)
        self._of_row[settled] = _SETTLED
        self.ahead = int(settled.sum())
        step = int(wanted.sum()) // _SAMPLE + 1
        falling = -_borders(priorities[::step][wanted[::step]])[::-1]  # they must rise, negated
        without = False
        for first in range(0, len(priorities), _SAMPLE):
            block = slice(first, first + _SAMPLE)
            values = priorities[block]
            band = np.searchsorted(falling, -values)
            band[np.isnan(values)] = len(falling)
            self._of_row[block] = np.where(wanted[block], band, self._of_row[block])
            without |= bool(np.isnan(values[wanted[block]]).any())
        self.count = len(falling) + without

    def rows(self, band: int) -> Flags:
        """A flag for each row of the input: whether it is in this band."""
        flags: Flags = self._of_row == band
        return flags

    def settle(self, row: int) -> None:
        """A row has its answers, before its part's turn."""
        self._of_row[row] = _SETTLED
        self.ahead += 1

    def begin(self, row: int) -> None:
        """A row's part has come: whether the row is done is counted there."""
        if self._of_row[row] == _SETTLED:
            self._of_row[row] = _CLOSED
            self.ahead -= 1


def gathered(priorities: Iterable[Numbers], rows: int) -> Numbers:
    """The priorities of the first rows of the input: 8 bytes each, until they are bands."""
    values = np.full(rows, np.nan)
    at = 0
    for some in priorities:
        taken = some[: rows - at]
        values[at : at + len(taken)] = taken
        at += len(taken)
        if at == rows:
            break
    return values


def _borders(sample: Numbers) -> Numbers:
    """The least priority of each band, rising: every value of a few, else quantiles."""
    sample = sample[~np.isnan(sample)]
    borders = np.unique(sample)
    if len(borders) > BANDS:
        shares = np.linspace(0, 1, BANDS, endpoint=False)
        borders = np.unique(np.quantile(sample, shares, method="higher"))
    if len(borders):
        borders[0] = -np.inf  # what the sample has missed below is in the last band too
    return borders
