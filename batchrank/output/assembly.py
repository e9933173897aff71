"""Outcomes into finished rows, and finished rows into finished parts.

A row is finished once all of its requests are settled, whatever order they settle in; a part once
all of its rows are. Texts never come here. This file does not know where answers come from: from
the endpoint a moment ago, or from the checkpoint of a run that was killed.
"""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isnan, nan
from typing import Any

import msgspec

from batchrank.records import (
    Dropped,
    Failed,
    Outcome,
    PlannedRow,
    RequestPlan,
    RowScores,
    Scored,
    Share,
    Slot,
    Spent,
    request_id,
)


class Part(msgspec.Struct):
    """Rows `first` to `first + size` of the input, on their way to one file.

    `kept` are the sink's Arrow batches of ids and kept columns, in row order; this file only holds
    them.
    """

    index: int
    first: int
    rows: list[RowScores | None]
    waiting: int
    kept: list[Any]

    def finished(self) -> list[RowScores]:
        """The rows, once none is waited for."""
        return [row for row in self.rows if row is not None]


class _OpenRow(msgspec.Struct, gc=False):
    planned: PlannedRow
    scores: "array[float]"
    waiting: int
    requests: int = 0
    failed_requests: int = 0
    notes: list[str] = []
    request_ids: tuple[int, ...] = ()


class Assembly:
    """The rows and parts that are not finished yet; every input row passes through once. Of which
    answers a row's scores are is kept if `keep_ids`.
    """

    def __init__(self, total_rows: int, rows_per_part: int, *, keep_ids: bool = False) -> None:
        self._keep_ids = keep_ids
        self._total_rows = total_rows
        self._rows_per_part = rows_per_part
        self._parts: dict[int, Part] = {}
        self._rows: dict[int, _OpenRow] = {}
        self._slots: dict[int, Sequence[Slot]] = {}
        self.rows_done = 0
        self.statuses = Counter[str]()

    @property
    def open_parts(self) -> int:
        """Parts begun and not finished."""
        return len(self._parts)

    def has(self, part: int) -> bool:
        """Whether a part is begun and not finished."""
        return part in self._parts

    def keep(self, first_row: int, kept: Any) -> None:
        """Take a batch's ids and kept columns; its rows all belong to one part."""
        index = first_row // self._rows_per_part
        part = self._parts.get(index)
        if part is None:
            first = index * self._rows_per_part
            size = min(self._rows_per_part, self._total_rows - first)
            part = self._parts[index] = Part(index, first, [None] * size, size, [])
        part.kept.append(kept)

    def begin(self, planned: PlannedRow, before: RowScores | None = None) -> Part | None:
        """Expect the outcomes of a row's plans; its part, if that was all the part still lacked.
        `before`: what the row had, of which only what has no score is planned.
        """
        scores = planned.known or array("d", [nan]) * planned.candidates
        row = _OpenRow(planned, scores[:], len(planned.plans))
        if before is not None:
            row.requests, row.request_ids = before.requests, tuple(before.request_ids)
        for plan in planned.plans:
            self._slots[plan.plan_id] = plan.slots
        if not planned.plans:
            return self.place(_finished(row))
        # Texts are in the plans, which dispatch lets go of; only what assembly needs stays.
        row.planned = msgspec.structs.replace(planned, plans=())
        self._rows[planned.index] = row
        return None

    def expects(self, plan_id: int) -> bool:
        """Whether a plan's row is begun, and its outcome not there."""
        return plan_id in self._slots

    def settle(self, outcome: Outcome) -> list[Part]:
        """Take an outcome; the parts that it finishes."""
        if isinstance(outcome, Dropped):
            return []
        finished = []
        for place, slot in enumerate(self._slots.pop(outcome.plan_id)):
            row = self._rows[slot.row]
            share = _share(outcome, place)
            _take(row, slot, outcome, share)
            if self._keep_ids:
                ids = [request_id(outcome.plan_id, answer) for answer in share.answers]
                row.request_ids = (*row.request_ids, *ids)
            if not row.waiting:
                del self._rows[slot.row]
                part = self.place(_finished(row))
                if part is not None:
                    finished.append(part)
        return finished

    def place(self, row: RowScores) -> Part | None:
        """Take a finished row; its part, if it was the last."""
        index = row.index // self._rows_per_part
        part = self._parts[index]
        part.rows[row.index - part.first] = row
        part.waiting -= 1
        self.rows_done += 1
        self.statuses[row.status] += 1
        if part.waiting:
            return None
        return self._parts.pop(index)


def assemble(planned: PlannedRow, outcomes: Mapping[int, Outcome]) -> RowScores:
    """Return the finished row of a plan, whose requests all have an outcome."""
    row = _OpenRow(planned, (planned.known or array("d", [nan]) * planned.candidates)[:], 0)
    for plan in planned.plans:
        outcome = outcomes[plan.plan_id]
        assert not isinstance(outcome, Dropped), "an outcome that settles nothing"
        for place, slot in enumerate(plan.slots):
            if slot.row != planned.index:
                continue
            share = _share(outcome, place)
            _take(row, slot, outcome, share)
            ids = [request_id(plan.plan_id, answer) for answer in share.answers]
            row.request_ids = (*row.request_ids, *ids)
    return _finished(row)


def outcomes_before(plans: Sequence[RequestPlan], row: RowScores) -> dict[int, Scored]:
    """The outcomes, by plan id, that a finished row still knows: of plans scored whole, with one
    answer each. Where one had been halved nobody can tell any more which: then it knows none.
    """
    found = [outcome for plan in plans if (outcome := _outcome_before(plan, row)) is not None]
    return {one.plan_id: one for one in found} if len(found) == row.requests else {}


def _outcome_before(plan: RequestPlan, row: RowScores) -> Scored | None:
    scores = array("d", [nan]) * len(plan.documents)
    for slot in plan.slots:
        for position, document in zip(slot.positions, slot.documents, strict=True):
            scores[document] = row.relevance_scores[position]
    if any(map(isnan, scores)):
        return None
    return Scored(plan.plan_id, scores, requests=1, spent=Spent())


def _share(outcome: Scored | Failed, place: int) -> Share:
    """What the row of a plan's slot has of its outcome."""
    if outcome.shares:
        return outcome.shares[place]
    if isinstance(outcome, Failed):
        return Share((), outcome.reason)
    return Share(range(outcome.requests), outcome.note)


def _take(row: _OpenRow, slot: Slot, outcome: Scored | Failed, share: Share) -> None:
    row.waiting -= 1
    if share.note:
        row.notes = [*row.notes, share.note]
    if isinstance(outcome, Failed) or not share.answers:
        row.failed_requests += 1
        return
    scores = outcome.relevance_scores
    whole = len(scores) == len(row.scores)
    if whole and slot.documents == range(len(scores)) == slot.positions:  # nothing left out
        row.scores = scores
    else:
        for position, document in zip(slot.positions, slot.documents, strict=True):
            row.scores[position] = scores[document]
    row.requests += len(share.answers)


def _finished(row: _OpenRow) -> RowScores:
    unscored = sum(map(isnan, row.scores)) if isnan(sum(row.scores)) else 0
    failed_requests = row.failed_requests or int(row.planned.failed)
    asked = row.requests or failed_requests or row.planned.known
    if not asked:
        status = "skipped"
    elif not unscored:
        status = "scored"
    else:
        status = "failed" if unscored == len(row.scores) else "partial"
    # Notes come in the order of answers; the output must not depend on that.
    notes = [row.planned.note, *sorted(row.notes)]
    return RowScores(
        index=row.planned.index,
        relevance_scores=row.scores,
        status=status,
        error="; ".join(note for note in notes if note) or None,
        requests=row.requests,
        truncated=row.planned.truncated,
        failed_requests=failed_requests,
        pairs=row.planned.pairs,
        request_ids=tuple(sorted(row.request_ids)),
    )
