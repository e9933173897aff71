"""What the published parts say of a run: rows by status and reason, scores, moves, ties.

One pass, a batch at a time; the histogram's range is known beforehand from the parts' footers.
"""

import re
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchrank.analysis.output_reader import Depth, opened, score_range, scored
from batchrank.analysis.rank_changes import Movement, Moves
from batchrank.files.paths import Place
from batchrank.files.text_form import shown, takeable

FINE = 1000
"""Steps of a histogram: a quantile is known to a thousandth of the scores' range."""

_REASONS = 50
_DOCUMENTS = re.compile(r"\bdocuments? \d+(?:, \d+)*(?: (?:to|and) \d+(?: more)?)?")


class Reason(msgspec.Struct, kw_only=True):
    """Rows whose error says the same but for the documents' numbers, and the id of the first."""

    text: str
    rows: int
    first: str


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """`scores` counts all candidates, `best` the first of each row, in `FINE` steps from `low` to
    `high`. `rows_answered` are rows of parts that are not complete.
    """

    rows: int
    statuses: dict[str, int]
    reasons: list[Reason]
    low: float
    high: float
    scores: NDArray[np.int64]
    best: NDArray[np.int64]
    movement: Movement
    rows_answered: int = 0

    def quantile(self, share: float, counts: NDArray[np.int64]) -> float | None:
        """The score that this share of them does not exceed; None where there is no score."""
        total = counts.sum()
        if not total:
            return None
        step = int(np.searchsorted(np.cumsum(counts), share * total))
        return self.low + (step + 0.5) / FINE * (self.high - self.low)


def findings(out: Place, state_dir: Path | None = None) -> Findings:
    """Read an output through. Raises `OutputUnusable` where nothing is published yet."""
    output = opened(out, state_dir)
    low, high = score_range(output)
    moves, depth, statuses = Moves(), Depth(output), Counter[str]()
    reasons: dict[str, Reason] = {}
    scores = np.zeros(FINE, np.int64)
    best = np.zeros(FINE, np.int64)
    columns = ["results", "status", "error", output.identity]
    for batch in output.batches(columns):
        lengths, index, found = scored(batch)
        moves.add(lengths, index, found)
        depth.add(batch)
        starts = (np.cumsum(lengths) - lengths)[lengths > 0]
        scores += np.histogram(found, FINE, (low, high))[0]
        best += np.histogram(found[starts], FINE, (low, high))[0]
        statuses.update(batch.column("status").to_pylist())
        _count_reasons(reasons, batch, output.identity)
    return Findings(
        rows=sum(statuses.values()),
        statuses=dict(statuses),
        reasons=sorted(reasons.values(), key=lambda reason: -reason.rows),
        low=low,
        high=high,
        scores=scores,
        best=best,
        movement=moves.result(depth.top_n),
        rows_answered=sum(statuses.values()) - output.rows,
    )


def _count_reasons(reasons: dict[str, Reason], batch: pa.RecordBatch, identity: str) -> None:
    wrong = batch.column("error").is_valid()
    ids = shown(takeable(batch.column(identity)).filter(wrong))
    failed = batch.select(["error"]).filter(wrong)
    for place, error in enumerate(failed.column("error").to_pylist()):
        for text in {_DOCUMENTS.sub("document n", part) for part in error.split("; ")}:
            if text not in reasons and len(reasons) >= _REASONS:
                text = "other reasons"
            reason = reasons.setdefault(text, Reason(text=text, rows=0, first=""))
            reason.rows += 1
            reason.first = reason.first or ids[place]
