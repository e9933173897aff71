"""Answers on their way to the disk are few: sending waits for it, and a group is few statements."""

import asyncio
from array import array
from contextlib import closing
from pathlib import Path

import pytest

from batchrank.records import Dropped, Failed, Outcome, Scored, Spent, plan_id
from batchrank.state.answer_rows import Settled, insertions
from batchrank.state.checkpoint import COMMIT_GROUP, Checkpoint, begin


def scored(row: int) -> Scored:
    return Scored(plan_id(row, 0), array("d", [0.5, row]), 1, Spent(requests=1, units=100))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """An empty one, whose thread does not write yet."""
    begin(tmp_path / "checkpoint.sqlite", b"{}")
    return Checkpoint(tmp_path / "checkpoint.sqlite")


def test_a_checkpoint_is_behind_once_a_whole_group_waits(checkpoint: Checkpoint) -> None:
    for row in range(COMMIT_GROUP - 1):
        checkpoint.record(0, b"digest", scored(row))
    assert not checkpoint.is_behind
    checkpoint.record(0, b"digest", scored(COMMIT_GROUP))
    assert checkpoint.is_behind


def test_who_waits_for_the_checkpoint_goes_on_once_it_has_caught_up(
    checkpoint: Checkpoint,
) -> None:
    async def waited() -> None:
        waiting = asyncio.create_task(checkpoint.wait_while_behind())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        checkpoint.start(lambda error: pytest.fail(str(error)))
        await asyncio.wait_for(waiting, 60)

    for row in range(COMMIT_GROUP):
        checkpoint.record(0, b"digest", scored(row))
    with closing(checkpoint):
        asyncio.run(waited())
        assert not checkpoint.is_behind
        assert len(checkpoint.answers(0)) == COMMIT_GROUP


def test_a_group_of_answers_is_written_by_few_statements_of_few_kinds() -> None:
    """Each statement gives the interpreter away, and a busy event loop keeps it for 5 ms."""
    texts = set()
    for count in range(COMMIT_GROUP + 1):
        statements = list(insertions([Settled(0, b"", scored(row), ()) for row in range(count)]))
        assert len(statements) <= 14
        texts.update(text for text, _ in statements)
    assert len(texts) <= 7


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 200, 300])
def test_whatever_a_group_holds_is_read_as_it_was_written(
    checkpoint: Checkpoint, count: int
) -> None:
    given: dict[int, Outcome] = {}
    for row in range(count):
        plan = plan_id(row, 0)
        outcome: Outcome = scored(row)
        if row % 5 == 1:
            outcome = Failed(plan, f"row {row} was refused", Spent(requests=1))
        if row % 5 == 3:
            outcome = Dropped(plan, Spent(requests=1))
        checkpoint.record(row % 2, row.to_bytes(8), outcome)
        given[plan] = outcome
    checkpoint.start(lambda error: pytest.fail(str(error)))
    checkpoint.close()
    found = {**checkpoint.answers(0), **checkpoint.answers(1)}
    kept = {plan for plan, outcome in given.items() if not isinstance(outcome, Dropped)}
    assert found.keys() == kept
    for plan, answer in found.items():
        outcome = given[plan]
        assert answer.digest == (plan >> 20).to_bytes(8)
        if isinstance(outcome, Scored):
            assert isinstance(answer.outcome, Scored)
            assert answer.outcome.relevance_scores == outcome.relevance_scores
        else:
            assert isinstance(answer.outcome, Failed) and isinstance(outcome, Failed)
            assert answer.outcome.reason == outcome.reason
    assert checkpoint.spent.requests == count
