"""Outcomes in any order become whole rows, and whole rows whole parts."""

from array import array
from itertools import permutations
from math import isnan, nan

import pytest

from batchrank.output.assembly import Assembly, Part
from batchrank.records import (
    Dropped,
    Failed,
    Outcome,
    PlannedRow,
    RequestPlan,
    RowScores,
    Scored,
    Slot,
    Spent,
    plan_id,
)

NOT_SPENT = Spent()


def plan(row: int, piece: int, positions: list[int], documents: list[int]) -> RequestPlan:
    texts = [f"text {number}" for number in range(max(documents) + 1)]
    slot = Slot(row, positions, documents)
    return RequestPlan(plan_id(row, piece), "q", texts, (slot,), 10, 10, b"")


def planned(
    row: int, *plans: RequestPlan, candidates: int, note: str | None = None, truncated: int = 0
) -> PlannedRow:
    return PlannedRow(row, candidates, plans, truncated, note, len(plans))


def scored(of: RequestPlan, *scores: float, requests: int = 1, note: str | None = None) -> Scored:
    return Scored(of.plan_id, array("d", scores), requests, NOT_SPENT, note)


def failed(of: RequestPlan, reason: str) -> Failed:
    return Failed(of.plan_id, reason, NOT_SPENT)


def assembled(row: PlannedRow, *outcomes: Outcome) -> RowScores:
    """The one row of a part of one row."""
    assembly = Assembly(1, 1)
    assembly.keep(0, "ids")
    part = assembly.begin(row)
    for outcome in outcomes:
        assert part is None
        part = next(iter(assembly.settle(outcome)), None)
    assert isinstance(part, Part)
    (only,) = part.rows
    assert only is not None
    return only


ONE = plan(0, 0, [0, 1, 2], [0, 1, 2])
TWINS = plan(0, 0, [0, 1, 3], [0, 1, 0])
EVEN, ODD = plan(0, 0, [0, 2], [0, 1]), plan(0, 1, [1, 3], [0, 1])


def test_scores_go_to_their_positions() -> None:
    row = assembled(planned(0, ONE, candidates=3), scored(ONE, 0.1, 0.9, 0.5))
    assert row == RowScores(0, array("d", [0.1, 0.9, 0.5]), "scored", None, 1, 0, 0)


def test_twins_share_a_score_and_a_position_not_asked_for_has_none() -> None:
    row = planned(0, TWINS, candidates=4, note="document 2 is empty or blank", truncated=2)
    found = assembled(row, scored(TWINS, 0.25, 0.75))
    assert list(found.relevance_scores)[:2] == [0.25, 0.75]
    assert isnan(found.relevance_scores[2])
    assert found.relevance_scores[3] == 0.25
    assert (found.status, found.error) == ("partial", "document 2 is empty or blank")
    assert (found.requests, found.truncated) == (1, 2)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_split_row_comes_together_in_any_order(order: tuple[int, ...]) -> None:
    pieces = [plan(0, piece, [piece, piece + 3], [0, 1]) for piece in range(3)]
    outcomes = [scored(of, piece / 10, piece / 10 + 0.5) for piece, of in enumerate(pieces)]
    row = assembled(planned(0, *pieces, candidates=6), *[outcomes[number] for number in order])
    assert list(row.relevance_scores) == [0.0, 0.1, 0.2, 0.5, 0.6, 0.7]
    assert (row.status, row.requests) == ("scored", 3)


STATUSES: list[tuple[list[Outcome], str | None, str, str | None, int, int]] = [
    ([scored(EVEN, 1, 2), scored(ODD, 3, 4)], None, "scored", None, 2, 0),
    ([scored(EVEN, 1, 2), failed(ODD, "why")], None, "partial", "why", 1, 1),
    ([failed(EVEN, "b"), failed(ODD, "a")], None, "failed", "a; b", 0, 2),
    ([scored(EVEN, 1, nan, note="n"), scored(ODD, 1, 2)], None, "partial", "n", 2, 0),
    ([scored(EVEN, 1, 2, requests=3), scored(ODD, 1, 2)], None, "scored", None, 4, 0),
    (
        [failed(EVEN, "z"), scored(ODD, nan, 1, note="n")],
        "0 is blank",
        "partial",
        "0 is blank; n; z",
        1,
        1,
    ),
]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(("outcomes", "note", "status", "error", "requests", "failures"), STATUSES)
def test_a_row_is_called(
    outcomes: list[Outcome],
    note: str | None,
    status: str,
    error: str | None,
    requests: int,
    failures: int,
    backwards: bool,
) -> None:
    """Its status and words do not depend on which answer was first."""
    row = planned(0, EVEN, ODD, candidates=4, note=note)
    found = assembled(row, *(outcomes[::-1] if backwards else outcomes))
    assert (found.status, found.error) == (status, error)
    assert (found.requests, found.failed_requests) == (requests, failures)


@pytest.mark.parametrize("candidates", [0, 3])
def test_a_row_with_nothing_to_send_is_skipped_with_the_reason(candidates: int) -> None:
    row = assembled(planned(0, candidates=candidates, note="the row has no candidates"))
    assert (row.status, row.error, row.requests) == ("skipped", "the row has no candidates", 0)
    assert len(row.relevance_scores) == candidates
    assert all(map(isnan, row.relevance_scores))


def test_a_part_is_finished_with_its_last_row_and_holds_them_in_order() -> None:
    assembly = Assembly(5, 2)
    plans = [plan(row, 0, [0], [0]) for row in range(5)]
    for row in range(5):
        assembly.keep(row, f"ids {row}")
        assert assembly.begin(planned(row, plans[row], candidates=1)) is None
    assert assembly.open_parts == 3
    finished = []
    for row in (4, 3, 0, 2, 1):
        finished += assembly.settle(scored(plans[row], row / 10))
    assert [part.index for part in finished] == [2, 1, 0]
    assert [(part.first, len(part.rows)) for part in finished] == [(4, 1), (2, 2), (0, 2)]
    for part in finished:
        indexes = [row.index for row in part.rows if row is not None]
        assert indexes == list(range(part.first, part.first + len(part.rows)))
        assert part.kept == [f"ids {index}" for index in indexes]
    assert (assembly.open_parts, assembly.rows_done) == (0, 5)


def test_a_part_may_end_with_a_row_that_needs_no_request() -> None:
    assembly = Assembly(2, 2)
    first = plan(0, 0, [0], [0])
    assembly.keep(0, "ids")
    assert assembly.begin(planned(0, first, candidates=1)) is None
    assert assembly.settle(scored(first, 1.0)) == []
    part = assembly.begin(planned(1, candidates=0, note="the row has no candidates"))
    assert part is not None
    assert [row.status for row in part.rows if row is not None] == ["scored", "skipped"]


def test_a_dropped_plan_leaves_its_row_open() -> None:
    assembly = Assembly(1, 1)
    assembly.keep(0, "ids")
    assembly.begin(planned(0, ONE, candidates=3))
    assert assembly.settle(Dropped(ONE.plan_id, NOT_SPENT)) == []
    assert assembly.has(0)
    (part,) = assembly.settle(scored(ONE, 1, 2, 3))
    assert not assembly.has(part.index)


def test_notes_of_one_row_are_not_those_of_another() -> None:
    assembly = Assembly(2, 2)
    plans = [plan(row, 0, [0], [0]) for row in range(2)]
    assembly.keep(0, "ids")
    for row in range(2):
        assembly.begin(planned(row, plans[row], candidates=1))
    assembly.settle(failed(plans[0], "only the first"))
    (part,) = assembly.settle(scored(plans[1], 1.0))
    assert [row.error for row in part.rows if row is not None] == ["only the first", None]
