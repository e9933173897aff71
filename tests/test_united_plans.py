"""Rows with one query share requests: within all limits, each pair once, no row that fits split."""

import subprocess
import sys
from array import array
from collections.abc import Iterator
from math import ceil, isnan, nan
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest
from helpers import inside
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plans_respect_limits import (
    LIMITS,
    TEXTS,
    body,
    envelope,
    is_blank,
    lengths,
    placed,
    weigh,
)

from batchrank.config.limits import RequestLimits
from batchrank.planning.planner import Planner
from batchrank.planning.shared_requests import Waiting, complete
from batchrank.planning.tokens import counts
from batchrank.records import PlannedRow, RequestPlan, Row

ROOT = Path(__file__).parents[1]


@st.composite
def groups(draw: st.DrawFn) -> list[Row]:
    """Rows of one query whose lists overlap."""
    query = draw(TEXTS.filter(lambda text: text.strip()))
    pool = draw(st.lists(TEXTS | st.none(), min_size=1, max_size=30))
    lists = draw(st.lists(st.lists(st.sampled_from(pool), max_size=20), min_size=2, max_size=6))
    indexes = sorted(draw(st.sets(st.integers(0, 700), min_size=len(lists), max_size=len(lists))))
    return [Row(index, query, texts) for index, texts in zip(indexes, lists, strict=True)]


def planner(limits: RequestLimits, *, exact: bool = False) -> Planner:
    return Planner(limits, exact=exact, envelope_bytes=envelope("flat"))


def requests(rows: list[PlannedRow]) -> list[RequestPlan]:
    """The requests of some rows, each once."""
    return list({plan.plan_id: plan for row in rows for plan in row.plans}.values())


@settings(max_examples=300)
@given(groups(), LIMITS)
def test_no_shared_request_passes_any_limit(rows: list[Row], limits: RequestLimits) -> None:
    for plan in requests(planner(limits).plan_together(rows)):
        assert 1 <= len(plan.documents) <= limits.max_documents
        weight = weigh(plan.query, list(plan.documents), limits.max_tokens_per_document)
        assert weight <= plan.tokens <= limits.max_tokens_per_request
        if limits.max_bytes_per_request:
            assert len(body(plan, "flat")) <= limits.max_bytes_per_request


@settings(max_examples=300)
@given(groups(), LIMITS)
def test_each_candidate_takes_one_score_and_it_is_that_of_its_text(
    rows: list[Row], limits: RequestLimits
) -> None:
    plans = requests(planner(limits).plan_together(rows))
    alone = {row.index: planner(limits).plan(row) for row in rows}
    for row in rows:
        found = {}
        for plan in plans:
            for slot in plan.slots:
                if slot.row == row.index:
                    for position, document in zip(slot.positions, slot.documents, strict=True):
                        assert position not in found
                        found[position] = plan.documents[document]
        sent = {at for plan in alone[row.index].plans for at, _ in placed(plan)}
        assert found == {at: row.texts[at] for at in sent}


@settings(max_examples=300)
@given(groups(), LIMITS)
def test_a_text_is_in_a_request_once_and_only_if_a_row_wants_it(
    rows: list[Row], limits: RequestLimits
) -> None:
    for plan in requests(planner(limits).plan_together(rows)):
        assert len(set(plan.documents)) == len(plan.documents)
        assert not any(map(is_blank, plan.documents))
        wanted = {document for slot in plan.slots for document in slot.documents}
        assert wanted == set(range(len(plan.documents)))


@settings(max_examples=300)
@given(groups(), LIMITS)
def test_a_row_that_fits_is_not_split_and_says_the_same_of_its_texts(
    rows: list[Row], limits: RequestLimits
) -> None:
    for row, together in zip(rows, planner(limits).plan_together(rows), strict=True):
        alone = planner(limits).plan(row)
        assert len(together.plans) <= 1 or len(alone.plans) > 1
        assert bool(together.plans) == bool(alone.plans)
        assert (together.note, together.truncated) == (alone.note, alone.truncated)
        assert (together.index, together.candidates) == (alone.index, alone.candidates)


@given(groups(), LIMITS)
def test_a_request_goes_once_with_the_last_of_its_rows(
    rows: list[Row], limits: RequestLimits
) -> None:
    begun: set[int] = set()
    sent = []
    for row in planner(limits).plan_together(rows):
        begun.add(row.index)
        for plan in complete(row):
            assert {slot.row for slot in plan.slots} <= begun
            sent.append(plan.plan_id)
    assert len(sent) == len(set(sent))
    assert set(sent) == {plan.plan_id for plan in requests(planner(limits).plan_together(rows))}


@given(groups(), LIMITS)
def test_counting_every_token_changes_no_request(rows: list[Row], limits: RequestLimits) -> None:
    """`--max-cost` has every token counted, and a run may go on with it."""
    bounded = requests(planner(limits).plan_together(rows))
    exact = requests(planner(limits, exact=True).plan_together(rows))
    parts = [(plan.plan_id, plan.digest, plan.slots) for plan in bounded]
    assert parts == [(plan.plan_id, plan.digest, plan.slots) for plan in exact]


@given(groups(), LIMITS)
def test_a_row_by_itself_is_planned_as_ever(rows: list[Row], limits: RequestLimits) -> None:
    assert planner(limits).plan_together(rows[:1]) == [planner(limits).plan(rows[0])]


@given(groups(), LIMITS, st.data())
def test_what_has_a_score_is_not_sent(
    rows: list[Row], limits: RequestLimits, data: st.DataObject
) -> None:
    scores = [
        array("d", data.draw(st.lists(st.sampled_from([nan, 0.5]), min_size=n, max_size=n)))
        for n in (len(row.texts) for row in rows)
    ]
    half = [
        msgspec.structs.replace(row, known=known) for row, known in zip(rows, scores, strict=True)
    ]
    for plan in requests(planner(limits).plan_together(half)):
        for slot in plan.slots:
            (known,) = (row.known for row in half if row.index == slot.row)
            assert known is not None and all(isnan(known[at]) for at in slot.positions)


def test_rows_that_fit_together_are_one_request_whatever_their_number() -> None:
    rows = [Row(at, "q", [f"text {at + place}" for place in range(10)]) for at in range(400)]
    planned = Planner(RequestLimits(), counts=lengths).plan_together(rows)
    (plan,) = requests(planned)
    assert len(plan.documents) == 409
    assert [slot.row for slot in plan.slots] == list(range(400))
    assert sum(row.fewest for row in planned) == 1


def test_rows_too_large_for_a_request_share_theirs_too() -> None:
    """1,200 distinct texts in three lists of 600, of which any two share 300: three requests, where
    each row by itself would take two.
    """
    texts = [f"text {place}" for place in range(1200)]
    rows = [Row(at, "q", texts[300 * at : 300 * at + 600]) for at in range(3)]
    planned = Planner(RequestLimits(), counts=lengths).plan_together(rows)
    assert len(requests(planned)) == 3 == sum(row.fewest for row in planned)
    assert sum(len(plan.documents) for plan in requests(planned)) == 1200


SEQUENCES = st.lists(st.integers(0, 6), min_size=1, max_size=60)


def released(queries: list[int], held_bytes: int) -> Iterator[tuple[int, list[list[Row]]]]:
    waiting = Waiting(100, [None if q == 6 else f"q{q}" for q in queries], held_bytes)
    for at, query in enumerate(queries):
        texts = [f"{query} {(at + place) % 9}" for place in range(5)]
        row = Row(100 + at, None if query == 6 else f"q{query}", texts)
        yield at, waiting.take(row)


@given(SEQUENCES)
def test_rows_wait_for_the_last_with_their_query(queries: list[int]) -> None:
    for at, ready in released(queries, 1 << 30):
        query = queries[at]
        same = [100 + place for place, other in enumerate(queries) if other == query]
        if query == 6:  # no query: nobody to wait for
            assert [[row.index for row in rows] for rows in ready] == [[100 + at]]
        elif 100 + at == same[-1]:
            assert [[row.index for row in rows] for rows in ready] == [same]
        else:
            assert ready == []


@given(SEQUENCES, st.integers(0, 8000))
def test_what_waits_is_bounded_and_no_row_is_lost(queries: list[int], held_bytes: int) -> None:
    waiting: dict[int, Row] = {}
    gone = []
    for at, ready in released(queries, held_bytes):
        waiting[100 + at] = Row(100 + at, "", [f"{queries[at]} {(at + p) % 9}" for p in range(5)])
        for rows in ready:
            assert len({row.query for row in rows}) == 1
            assert [row.index for row in rows] == sorted(row.index for row in rows)
            for row in rows:
                assert row.texts == waiting.pop(row.index).texts
                gone.append(row.index)
        held = {text for row in waiting.values() for text in row.texts}
        assert sum(256 + len(text or "") for text in held) <= held_bytes
    assert sorted(gone) == [100 + at for at in range(len(queries))]


def test_those_who_would_wait_longest_go_first() -> None:
    queries = ["far", "near", "near", "far"]
    waiting = Waiting(0, queries, held_bytes=600)
    ready = [waiting.take(Row(at, query, [query])) for at, query in enumerate(queries)]
    assert [[[row.index for row in rows] for rows in one] for one in ready] == [
        [],
        [],
        [[1, 2]],
        [[0, 3]],
    ]
    waiting = Waiting(0, queries, held_bytes=300)
    ready = [waiting.take(Row(at, query, [query])) for at, query in enumerate(queries)]
    assert [[[row.index for row in rows] for rows in one] for one in ready] == [
        [],
        [[0]],
        [[1, 2]],
        [[3]],
    ]


@pytest.fixture(scope="module")
def retrievers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The queries of samples/scifact with the lists of four retrievers each."""
    out = tmp_path_factory.mktemp("retrievers") / "rows.parquet"
    sample = ROOT / "samples" / "scifact" / "rows.parquet"
    subprocess.run([sys.executable, ROOT / "scripts/make-retrievers", sample, out], check=True)
    return out


def lower_bound(path: Path, most_tokens: int) -> int:
    """Requests that no packing could do with fewer of, worked out without the planner."""
    pools: dict[str, set[str]] = {}
    for row in pq.read_table(path).to_pylist():
        pools.setdefault(row["query"], set()).update(one["text"] for one in row["candidates"])
    bound = 0
    for query, pool in pools.items():
        (own,) = counts([query])
        weight = own * len(pool) + sum(min(n, 4000) for n in counts(sorted(pool)))
        bound += max(ceil(len(pool) / 500), ceil(weight / most_tokens))
    return bound


def test_lists_of_several_retrievers_reach_the_lower_bound_within_two_percent(
    retrievers: Path,
) -> None:
    figures = msgspec.json.decode(
        inside("plan", retrievers, "--unite-rows", "--summary", "json").stdout
    )
    assert figures["requests_apart"] == figures["rows"] == 400
    assert figures["requests_lower_bound"] == lower_bound(retrievers, 120_000)
    assert figures["requests"] <= 1.02 * figures["requests_lower_bound"]
    assert figures["requests"] == figures["requests_united"] < 400 / 3
    assert figures["tokens"] == figures["tokens_united"] < figures["tokens_apart"]
    assert figures["rows_split"] == 0
