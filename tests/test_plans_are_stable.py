"""Same rows and limits, same plans, same ids: what makes a run resumable."""

from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchrank.config.limits import RequestLimits
from batchrank.planning.planner import Planner
from batchrank.records import PLAN_BITS, PlannedRow, RequestPlan, Row, plan_id, row_of

settings.register_profile("timeless", deadline=None)
settings.load_profile("timeless")

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    ["", "  ", "twice", "世界" * 9, "a longer text " * 4]
)
ROWS = st.builds(
    Row,
    index=st.integers(0, 10_000),
    query=st.none() | TEXTS,
    texts=st.lists(st.none() | TEXTS, max_size=30),
)
LIMITS = st.builds(
    RequestLimits,
    max_documents=st.integers(1, 12),
    max_tokens_per_document=st.integers(1, 40),
    max_tokens_per_request=st.integers(1, 300),
    max_bytes_per_request=st.just(0) | st.integers(150, 600),
)


def sent(planned: PlannedRow) -> Any:
    """What decides scores and resuming: all but the estimate, which is for show."""
    plans = [msgspec.structs.replace(plan, estimate=0) for plan in planned.plans]
    return msgspec.to_builtins(msgspec.structs.replace(planned, plans=plans), enc_hook=list)


def requests(planned: PlannedRow) -> list[tuple[int, str, list[str], bytes]]:
    return [(plan.plan_id, plan.query, list(plan.documents), plan.digest) for plan in planned.plans]


def only(planned: PlannedRow) -> RequestPlan:
    (plan,) = planned.plans
    return plan


@given(ROWS, LIMITS)
def test_the_same_row_gives_the_same_plans_twice(row: Row, limits: RequestLimits) -> None:
    planner = Planner(limits)
    assert planner.plan(row) == Planner(limits).plan(row)
    assert sent(planner.plan(row)) == sent(planner.plan(row))


@given(st.lists(ROWS, max_size=6), ROWS, LIMITS)
def test_rows_planned_before_make_no_difference(
    before: list[Row], row: Row, limits: RequestLimits
) -> None:
    """A resumed run plans the rest alone."""
    planner = Planner(limits)
    for other in before:
        planner.plan(other)
    assert sent(planner.plan(row)) == sent(Planner(limits).plan(row))


@example(
    Row(65, "0", ["0 adr"]), RequestLimits(max_tokens_per_document=5, max_tokens_per_request=3)
)
@given(ROWS, LIMITS)
def test_counting_exactly_or_not_makes_no_difference_to_what_is_sent(
    row: Row, limits: RequestLimits
) -> None:
    """Rates and --max-cost decide whether every text is counted; they must not decide results."""
    exact, bounded = Planner(limits, exact=True).plan(row), Planner(limits).plan(row)
    assert requests(exact) == requests(bounded)
    assert (exact.note, exact.truncated) == (bounded.note, bounded.truncated)


def test_a_row_over_the_document_limit_is_split_alike_however_it_is_counted() -> None:
    """Bytes and tokens rank these documents differently, and not for being sampled."""
    texts = [
        "x1 2 " * 5,
        "international " * 3,
        "international " * 4,
        "of the and " * 4,
        "of the and " * 2,
    ]
    limits = RequestLimits(max_documents=3)
    row = Row(1001, "a query", texts)
    assert requests(Planner(limits, exact=True).plan(row)) == requests(Planner(limits).plan(row))


@given(ROWS, LIMITS)
def test_ids_name_the_row_and_number_its_requests(row: Row, limits: RequestLimits) -> None:
    planned = Planner(limits).plan(row)
    assert planned.index == row.index
    assert planned.candidates == len(row.texts)
    ids = [plan.plan_id for plan in planned.plans]
    assert ids == [plan_id(row.index, piece) for piece in range(len(ids))]
    assert all(row_of(id_) == row.index for id_ in ids)


def test_ids_are_distinct_up_to_a_million_requests_a_row() -> None:
    assert plan_id(1, 0) - plan_id(0, 2**PLAN_BITS - 1) == 1
    assert row_of(plan_id(10**9, 2**PLAN_BITS - 1)) == 10**9


def test_the_digest_is_the_same_on_any_machine_and_any_day() -> None:
    plan = only(Planner(RequestLimits()).plan(Row(7, "query", ["one", "two", "one"])))
    assert plan.plan_id == 7 << 20
    assert plan.digest.hex() == "4a3dccb3f4aaf120"
    assert (plan.tokens, plan.estimate) == (16, 4)  # a token for each text and for its query


def test_the_digest_changes_with_any_text_and_with_their_order() -> None:
    planner = Planner(RequestLimits())
    rows = [
        Row(7, "query", ["one", "two"]),
        Row(7, "query", ["two", "one"]),
        Row(7, "Query", ["one", "two"]),
        Row(7, "query", ["one", "two "]),
        Row(7, "query", ["one"]),
        Row(7, "query", ["onetwo"]),
    ]
    assert len({only(planner.plan(row)).digest for row in rows}) == len(rows)


def test_the_digest_tells_a_text_with_a_nul_from_two_texts() -> None:
    planner = Planner(RequestLimits())
    one = only(planner.plan(Row(0, "q", ["a\0b", "c"])))
    other = only(planner.plan(Row(0, "q", ["a", "b\0c"])))
    assert one.digest != other.digest
