"""A model that scores a list as a whole gets each row in one request with all of its texts, or
not at all: nothing is split, halved or merged behind the user's back, and `plan` says so.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from helpers import Server, one_row, output, program, score, table, written
from virtual_time import run

from batchrank.config.limits import RequestLimits
from batchrank.input import Inputs
from batchrank.planning.planner import NOT_WHOLE, Planner
from batchrank.records import Failed, Outcome, PlannedRow, RequestPlan, Row
from batchrank.sending.dispatch import Sender
from batchrank.sending.halt import Halt
from batchrank.sending.verdicts import Answered, Exchange, Verdict
from batchrank.session.forecast import forecast, words

WHOLE = {"endpoint": {"scores_lists": True}, "limits": {"max_documents": 4}}


def planned(texts: Sequence[str], **limits: Any) -> PlannedRow:
    return Planner(RequestLimits(**limits), whole=True).plan(Row(0, "q", texts))


@pytest.mark.parametrize(
    ("texts", "limits"),
    [
        (["a", "b", "c"], {"max_documents": 2}),
        (["a b c d e f g h", "b", "c"], {"max_tokens_per_request": 9}),
        (["a" * 50, "b" * 50], {"max_bytes_per_request": 70}),
        (["one two three four five six", "b"], {"max_tokens_per_request": 5}),
    ],
    ids=["documents", "tokens", "bytes", "one text"],
)
def test_a_row_that_does_not_fit_is_not_sent(texts: list[str], limits: dict[str, int]) -> None:
    row = planned(texts, **limits)
    assert (row.plans, row.failed) == ((), True)
    assert row.note == f"{len(texts)} documents {NOT_WHOLE}"
    assert planned(texts).plans


def test_identical_texts_are_each_sent() -> None:
    """The list is the model's context: one text less is another list."""
    row = planned(["a", "b", "a", " "])
    (plan,) = row.plans
    assert list(plan.documents) == ["a", "b", "a"]
    assert (plan.slots[0].positions, plan.slots[0].documents) == ([0, 1, 2], [0, 1, 2])
    assert row.note == "document 3 is empty or blank"


class Refusing:
    """An endpoint that refuses everything in one way."""

    successes = 0

    def __init__(self, answer: Exchange) -> None:
        self.answer = answer
        self.asked = 0

    def encode(self, query: str, documents: Sequence[str]) -> bytes:
        return b"{}"

    async def admit(self, tokens: int, documents: int) -> float:
        return 0.0

    async def exchange(self, body: bytes, documents: int) -> Exchange:
        self.asked += 1
        return self.answer

    def learn(self, verdict: Verdict, sent_at: float, tokens: int, documents: int) -> None:
        pass


REFUSALS = {
    "size": (413, "", "too large"),
    "content": (400, "DataInspectionFailed", "Input data may contain inappropriate content."),
    "a named document": (400, "InvalidParameter", "document index:1 should not be empty."),
}


def settled(endpoint: Refusing, plan: RequestPlan, *, whole: bool) -> Outcome:
    async def settle() -> Outcome:
        sender = Sender(endpoint, max_in_flight=1, halt=Halt(), random=Random(7), whole=whole)
        await sender.board()
        return await sender.settle(plan)

    return run(settle())


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_a_refused_list_is_neither_halved_nor_shortened(refusal: tuple[int, str, str]) -> None:
    status, code, message = refusal
    answer = Answered(status, json.dumps({"code": code, "message": message}).encode())
    (plan,) = planned(["a", "b", "c"]).plans
    endpoint = Refusing(answer)
    outcome = settled(endpoint, plan, whole=True)
    assert isinstance(outcome, Failed)
    assert f"the endpoint answered {status}" in outcome.reason
    assert outcome.reason.endswith("this model scores a list as a whole: not split")
    assert endpoint.asked == 1
    split = Refusing(answer)
    settled(split, plan, whole=False)
    assert split.asked > 1


def test_the_run_and_the_plan_tell_of_these_rows(server: Server, tmp_path: Path) -> None:
    lists = [["a", "b"], ["c", "d", "e", "f", "g"], ["h", "h"]]
    rows = table(3, 5, tag="whole")
    candidates = [
        [{"doc_id": f"d{place}", "text": f"whole {text}"} for place, text in enumerate(texts)]
        for texts in lists
    ]
    rows = rows.set_column(2, rows.schema.field(2), [candidates])
    source = written(tmp_path / "in.parquet", rows)
    before = server.ledger()
    receipt = score(server, source, tmp_path / "out", **WHOLE)
    after = server.ledger()
    assert (receipt.rows_scored, receipt.rows_failed, receipt.exit_code) == (2, 1, 3)
    assert after["received"] - before["received"] == 2
    found = output(tmp_path / "out").to_pylist()
    assert [row["status"] for row in found] == ["scored", "failed", "scored"]
    assert found[1]["error"] == f"5 documents {NOT_WHOLE}"
    assert [result["relevance_score"] for result in found[1]["results"]] == [None] * 5
    from batchrank.config.settings import load

    config = load(None, {"endpoint": {"scores_lists": True}, "limits": {"max_documents": 4}})
    figures = forecast(config, Inputs([str(source)]))
    assert (figures.rows_too_large, figures.rows_split, figures.requests) == (1, 0, 2)
    assert "1 to fail: too large for one request, and not to be split" in words(figures)


def test_the_model_decides_unless_the_configuration_does(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    source = written(tmp_path / "in.parquet", one_row("q", [f"text {n}" for n in range(70)]))
    url = serve().host + "/v1"
    options = ["run", source, "--provider", "jina", "--base-url", url]
    whole = program(
        *options, "-o", tmp_path / "whole", "--model", "jina-reranker-v3", JINA_API_KEY="k"
    )
    assert (whole.returncode, "1 rows failed" in whole.stderr) == (3, True)
    split = program(*options, "-o", tmp_path / "split", JINA_API_KEY="k")
    assert (split.returncode, split.stderr) == (0, "")
