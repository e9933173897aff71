"""How far an output's order is from the input's, and where scores do not decide.

Pure, over arrays; rows come in batches and nothing of them is kept. Without judgments this is what
can be said of a reranking: that it changed the order, not that it improved it.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

TOP = 10
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


class Movement(msgspec.Struct, frozen=True, kw_only=True):
    """Means over rows with scores. `mean_displacement` is in places, over their candidates;
    `kendall_tau` is tau-b between input order and scores, over rows where it is defined. A row's
    top has changed when other candidates are in it than before, or another is the first.

    `top_n`: the output lists so many candidates of a row and leaves others out (0: it lists all).
    Then nobody knows how far the others moved, and what depends on them is None.
    """

    rows: int
    candidates: int
    mean_displacement: float | None
    kendall_tau: float | None
    top_1_changed: float
    top_10_changed: float | None
    tied_candidates: int
    rows_with_ties: int
    top_n: int = 0


class Moves:
    """Adds rows up, a batch at a time."""

    def __init__(self) -> None:
        self._rows = self._candidates = self._places = 0
        self._first = self._top = self._tied = self._rows_tied = 0
        self._tau = 0.0
        self._taus = 0

    def add(self, lengths: Integers, index: Integers, scores: Floats) -> None:
        """Rows of so many scored candidates, best first: their places in the input, and scores."""
        lengths = lengths[lengths > 0]
        if not len(lengths):
            return
        starts = np.cumsum(lengths) - lengths
        row_of = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(len(index)) - starts[row_of]
        equal = np.zeros(len(index) + 1, bool)  # to the candidate before, of the same row
        equal[1:-1] = (scores[1:] == scores[:-1]) & (row_of[1:] == row_of[:-1])
        tied = equal[:-1] | equal[1:]
        self._rows += len(lengths)
        self._candidates += len(index)
        self._places += int(np.abs(index - place).sum())
        self._first += int((index[starts] != 0).sum())
        self._top += len(np.unique(row_of[(place < TOP) & (index >= TOP)]))
        self._tied += int(tied.sum())
        self._rows_tied += len(np.unique(row_of[tied]))
        self._correlate(lengths, starts, index, _tied_pairs(equal[:-1], row_of, len(lengths)))

    def _correlate(
        self, lengths: Integers, starts: Integers, index: Integers, tied_pairs: Integers
    ) -> None:
        """tau-b = (concordant - discordant) / sqrt(all pairs x pairs not tied). Ties are in input
        order, so a discordant pair is one whose places in the input fall.
        """
        for length in np.unique(lengths[lengths > 1]):
            chosen = lengths == length
            places = index[starts[chosen][:, None] + np.arange(length)].astype(np.int32)
            discordant = np.zeros(len(places), np.int64)
            for lag in range(1, length):
                discordant += (places[:, :-lag] > places[:, lag:]).sum(axis=1)
            pairs = length * (length - 1) // 2
            decided = pairs - tied_pairs[chosen]
            defined = decided > 0
            decided, discordant = decided[defined], discordant[defined]
            self._tau += float(((decided - 2 * discordant) / np.sqrt(decided * pairs)).sum())
            self._taus += int(defined.sum())

    def result(self, top_n: int = 0) -> Movement:
        """The figures, of an output that lists `top_n` candidates of a row (0: all of them)."""
        rows = self._rows or 1
        return Movement(
            rows=self._rows,
            candidates=self._candidates,
            mean_displacement=None if top_n else self._places / (self._candidates or 1),
            kendall_tau=self._tau / self._taus if self._taus and not top_n else None,
            top_1_changed=self._first / rows,
            top_10_changed=None if 0 < top_n < TOP else self._top / rows,
            tied_candidates=self._tied,
            rows_with_ties=self._rows_tied,
            top_n=top_n,
        )


def _tied_pairs(equal: NDArray[np.bool_], row_of: Integers, rows: int) -> Integers:
    """Pairs of equal scores in each row: t (t - 1) / 2 for every run of t."""
    begins = np.flatnonzero(~equal)
    runs = np.diff(np.append(begins, len(equal)))
    counts = np.bincount(row_of[begins], weights=runs * (runs - 1) // 2, minlength=rows)
    return counts.astype(np.int64)


def words(movement: Movement) -> str:
    """The figures as a person reads them."""
    share = movement.tied_candidates / (movement.candidates or 1)
    listed = " listed" if movement.top_n else ""
    lines = [
        ("rows", f"{movement.rows:,} with {movement.candidates:,} scored candidates{listed}"),
        ("moved", displacement_words(movement)),
        ("tau", f"{tau_words(movement)} (Kendall's tau-b with the input order, mean of rows)"),
        ("top 1", f"another in {movement.top_1_changed:.1%} of rows"),
        ("top 10", f"others in {top_10_words(movement)} of rows"),
        (
            "ties",
            f"{movement.tied_candidates:,} candidates ({share:.1%}) share their score with "
            f"another{listed} of their row, in {movement.rows_with_ties:,} rows",
        ),
    ]
    if movement.top_n:
        lines.append(
            (
                "top_n",
                f"the output lists {movement.top_n:,} candidates of a row; nobody can say how far "
                "the others moved",
            )
        )
    return "\n".join(f"{name:<11}{text}" for name, text in lines)


def displacement_words(movement: Movement) -> str:
    """The mean displacement in words."""
    mean = movement.mean_displacement
    return "unknown" if mean is None else f"{mean:.1f} places on the mean, up or down"


def tau_words(movement: Movement) -> str:
    """Kendall's tau in words."""
    if movement.kendall_tau is not None:
        return f"{movement.kendall_tau:.3f}"
    return "unknown" if movement.top_n else "undefined"


def top_10_words(movement: Movement) -> str:
    """The share of rows with others in the first 10 in words."""
    changed = movement.top_10_changed
    return "an unknown share" if changed is None else f"{changed:.1%}"
