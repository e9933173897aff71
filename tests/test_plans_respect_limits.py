"""Every request is within every limit, and every candidate worth sending is sent once.

How few requests there are, against the lower bound `L = max(ceil(n / max_documents),
ceil(weight / max_tokens))`: L or L + 1 where no document weighs more than a request's limit / L
(dealing heaviest first to the lightest, a pile holds at most its share of the weight and one
document more); at most 2 L + 1 whatever the sizes; L itself on nearly every row of realistic sizes.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from batchrank.config.limits import RequestLimits
from batchrank.planning.planner import Planner
from batchrank.planning.tokens import count
from batchrank.records import PlannedRow, RequestPlan, Row
from batchrank.wire import DIALECTS, Ask

settings.register_profile("timeless", deadline=None)
settings.load_profile("timeless")

WORDS = ["panda", " ", "bear", "世界", "\u0301", "🐼", '"', "\n", "ab1", "\ufb2c", "of the "]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=20).map("".join)


def lengths(texts: Sequence[str]) -> list[int]:
    """A token for each character."""
    return list(map(len, texts))


ROWS = st.builds(
    Row,
    index=st.integers(0, 700),
    query=TEXTS.filter(lambda text: text.strip()),
    texts=st.lists(st.none() | TEXTS, max_size=40),
)
LIMITS = st.builds(
    RequestLimits,
    max_documents=st.integers(1, 12),
    max_tokens_per_document=st.integers(5, 40),
    max_tokens_per_request=st.integers(30, 300),
    max_bytes_per_request=st.just(0) | st.integers(200, 800),
)

CAUTION = 0
"""Bytes that planning counts too many: the quotes of the query twice, and two commas."""


def body(plan: RequestPlan, dialect: str) -> bytes:
    ask = Ask(model="qwen3-rerank", query=plan.query, documents=plan.documents)
    return DIALECTS[dialect].request(ask)


def envelope(dialect: str) -> int:
    return len(DIALECTS[dialect].request(Ask(model="qwen3-rerank", query="", documents=())))


def planned(row: Row, limits: RequestLimits, dialect: str = "flat") -> PlannedRow:
    return Planner(limits, envelope_bytes=envelope(dialect)).plan(row)


def weigh(query: str, documents: list[str], cap: int) -> int:
    """n x query + the documents, each cut to the limit: the server's formula."""
    cut = [min(count(text), cap) for text in documents]
    return min(count(query), cap) * len(cut) + sum(cut)


def is_blank(text: str | None) -> bool:
    return text is None or not text.strip()


def placed(plan: RequestPlan) -> list[tuple[int, int]]:
    (slot,) = plan.slots
    return list(zip(slot.positions, slot.documents, strict=True))


@settings(max_examples=300)
@given(ROWS, LIMITS, st.sampled_from(sorted(DIALECTS)))
def test_no_request_passes_any_limit(row: Row, limits: RequestLimits, dialect: str) -> None:
    for plan in planned(row, limits, dialect).plans:
        assert 1 <= len(plan.documents) <= limits.max_documents
        weight = weigh(plan.query, list(plan.documents), limits.max_tokens_per_document)
        assert weight <= plan.tokens <= limits.max_tokens_per_request
        if limits.max_bytes_per_request:
            assert len(body(plan, dialect)) <= limits.max_bytes_per_request


@settings(max_examples=300)
@given(ROWS, LIMITS)
def test_every_candidate_worth_sending_has_one_slot_and_the_others_are_named(
    row: Row, limits: RequestLimits
) -> None:
    found = planned(row, limits)
    homes = [position for plan in found.plans for position, _ in placed(plan)]
    assert len(homes) == len(set(homes))
    absent = sorted(set(range(len(row.texts))) - set(homes))
    for position in absent:
        text = row.texts[position]
        if text is None or is_blank(text):
            continue
        assert row.query is not None
        alone = RequestPlan(0, row.query, [text], [], 0, 0, b"")
        weight = weigh(row.query, [text], limits.max_tokens_per_document)
        assert weight > limits.max_tokens_per_request or (
            0 < limits.max_bytes_per_request < len(body(alone, "flat")) + CAUTION
        )
    assert (found.note is not None) == bool(absent or not row.texts)


@given(ROWS, LIMITS)
def test_every_slot_holds_the_text_it_is_for(row: Row, limits: RequestLimits) -> None:
    for plan in planned(row, limits).plans:
        assert plan.query == row.query
        assert all(row.texts[at] == plan.documents[document] for at, document in placed(plan))
        assert {document for _, document in placed(plan)} == set(range(len(plan.documents)))


@given(ROWS, LIMITS)
def test_a_text_is_sent_once_and_a_blank_one_never(row: Row, limits: RequestLimits) -> None:
    sent = [text for plan in planned(row, limits).plans for text in plan.documents]
    assert len(sent) == len(set(sent))
    assert not any(map(is_blank, sent))


@given(ROWS, LIMITS)
def test_documents_stand_in_candidate_order_and_requests_in_that_of_their_first(
    row: Row, limits: RequestLimits
) -> None:
    plans = planned(row, limits).plans
    firsts = [row.texts.index(plan.documents[0]) for plan in plans]
    assert firsts == sorted(firsts)
    for plan in plans:
        order = [row.texts.index(text) for text in plan.documents]
        assert order == sorted(order)


@settings(max_examples=300)
@given(ROWS, LIMITS)
def test_a_row_that_fits_is_one_request(row: Row, limits: RequestLimits) -> None:
    texts = list(dict.fromkeys(text for text in row.texts if text and text.strip()))
    assume(texts and row.query)
    assert row.query is not None
    fits = (
        len(texts) <= limits.max_documents
        and weigh(row.query, texts, limits.max_tokens_per_document) <= limits.max_tokens_per_request
    )
    whole = RequestPlan(0, row.query, texts, [], 0, 0, b"")
    if limits.max_bytes_per_request:
        fits = fits and len(body(whole, "flat")) + CAUTION <= limits.max_bytes_per_request
    assert (len(planned(row, limits).plans) == 1) or not fits


def sized(tokens: list[int], limits: RequestLimits, query_tokens: int = 1) -> PlannedRow:
    """A row whose documents have so many tokens, by a tokenizer that counts letters."""
    texts = [f"{number:07}".ljust(size, "x") for number, size in enumerate(tokens)]
    assert all(len(text) == size for text, size in zip(texts, tokens, strict=True))
    return Planner(limits, exact=True, counts=lengths).plan(Row(0, "q" * query_tokens, texts))


def lower_bound(tokens: list[int], limits: RequestLimits, query_tokens: int = 1) -> int:
    weight = sum(tokens) + query_tokens * len(tokens)
    return max(
        ceil(len(tokens) / limits.max_documents), ceil(weight / limits.max_tokens_per_request)
    )


@settings(max_examples=500)
@given(st.data())
def test_requests_are_the_lower_bound_or_one_above_where_no_document_is_large(
    data: st.DataObject,
) -> None:
    limits = RequestLimits(
        max_documents=data.draw(st.integers(1, 20)),
        max_tokens_per_request=data.draw(st.integers(50, 600)),
    )
    most = limits.max_tokens_per_request
    sizes = st.integers(7, 100) | st.sampled_from([7, 8, 20, 30, 100])
    tokens = data.draw(st.lists(sizes, min_size=1, max_size=60))
    bound = lower_bound(tokens, limits)
    assume(max(tokens) + 1 <= most / bound)
    found = sized(tokens, limits)
    assert found.fewest == bound
    assert bound <= len(found.plans) <= bound + 1


@settings(max_examples=300)
@given(st.lists(st.integers(7, 99), min_size=1, max_size=60), st.integers(1, 20))
def test_requests_are_fewer_than_twice_the_lower_bound_and_one_whatever_the_sizes(
    tokens: list[int], max_documents: int
) -> None:
    limits = RequestLimits(max_documents=max_documents, max_tokens_per_request=100)
    bound = lower_bound(tokens, limits)
    assert bound <= len(sized(tokens, limits).plans) <= 2 * bound + 1


def test_requests_are_nearly_always_the_lower_bound_on_realistic_sizes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """1,000 rows of 50 to 3,000 documents, log-normal, mean about 400 tokens, cut at 4,000."""
    random = Random(7)
    limits = RequestLimits()
    above = {0: 0, 1: 0}
    for _ in range(300):
        documents = round(10 ** random.uniform(1.7, 3.5))
        tokens = [
            max(7, min(4000, round(random.lognormvariate(5.7, 0.8)))) for _ in range(documents)
        ]
        above[len(sized(tokens, limits, 12).plans) - lower_bound(tokens, limits, 12)] += 1
    with capsys.disabled():
        print(f" [{above[0]} of 300 rows at the lower bound, {above[1]} one above]", end="")
    assert above[0] >= 0.99 * 300


@pytest.mark.parametrize(
    ("max_documents", "documents", "sizes"),
    [(500, 500, [500]), (500, 501, [251, 250]), (500, 1316, [439, 439, 438]), (3, 7, [3, 2, 2])],
)
def test_requests_of_a_row_are_balanced_in_documents(
    max_documents: int, documents: int, sizes: list[int]
) -> None:
    limits = RequestLimits(max_documents=max_documents)
    found = [len(plan.documents) for plan in sized([20] * documents, limits).plans]
    assert sorted(found, reverse=True) == sizes


def test_requests_of_a_row_are_balanced_in_tokens() -> None:
    random = Random(7)
    tokens = [random.randint(50, 3000) for _ in range(400)]
    weights = [plan.tokens for plan in sized(tokens, RequestLimits()).plans]
    assert len(weights) == ceil(sum(weights) / 120_000)
    assert max(weights) - min(weights) <= 3000


def test_a_texts_tokens_above_the_cap_do_not_count_and_are_told() -> None:
    limits = RequestLimits(max_tokens_per_document=100, max_tokens_per_request=450)
    found = sized([5000, 100, 101, 99], limits, query_tokens=1)
    (plan,) = found.plans
    assert plan.tokens == 4 * 1 + 100 + 100 + 100 + 99
    assert found.truncated == 2


def test_a_query_over_the_cap_is_cut_and_told() -> None:
    found = sized([10, 10], RequestLimits(max_tokens_per_document=100), query_tokens=5000)
    assert found.plans[0].tokens == 2 * 100 + 20
    assert found.truncated == 1


def test_a_cut_text_in_two_places_is_told_twice() -> None:
    planner = Planner(RequestLimits(max_tokens_per_document=5), exact=True, counts=lengths)
    assert planner.plan(Row(0, "q", ["a long text", "b", "a long text"])).truncated == 2


NOTES = [
    (["a", ""], "document 1 is empty or blank"),
    (["a", " \n\u3000", None], "documents 1, 2 are empty or blank"),
    (["a"] + [""] * 7, "documents 1, 2, 3, 4, 5 and 2 more are empty or blank"),
    (["a", "x" * 50], "document 1 is too large for a request with this query"),
    (["x" * 50, "a", "x" * 50], "documents 0, 2 are too large for a request with this query"),
    (
        ["", "x" * 50, "a"],
        "document 0 is empty or blank; document 1 is too large for a request with this query",
    ),
    (["a", "b"], None),
]


@pytest.mark.parametrize(("texts", "note"), NOTES)
def test_what_is_not_sent_is_named(texts: list[str | None], note: str | None) -> None:
    planner = Planner(RequestLimits(max_tokens_per_request=30), exact=True, counts=lengths)
    found = planner.plan(Row(0, "q", texts))
    assert found.note == note
    assert [list(plan.documents) for plan in found.plans] == [
        [text for text in dict.fromkeys(texts) if text and text.strip() and len(text) < 30]
    ]


NOTHING = [
    (None, ["a"], "the query is null or blank"),
    ("", ["a"], "the query is null or blank"),
    (" \t\u3000", ["a"], "the query is null or blank"),
    ("q", [], "the row has no candidates"),
    ("q", ["", None, " "], "every candidate is empty or blank"),
    ("q" * 99, ["a", "b"], "documents 0, 1 are too large for a request with this query"),
]


@pytest.mark.parametrize(("query", "texts", "note"), NOTHING)
def test_a_row_with_nothing_to_send_says_why(
    query: str | None, texts: list[str | None], note: str
) -> None:
    planner = Planner(RequestLimits(max_tokens_per_request=30), exact=True, counts=lengths)
    found = planner.plan(Row(4, query, texts))
    assert (list(found.plans), found.note) == ([], note)
    assert found.candidates == len(texts)


def test_bytes_alone_split_a_row_too() -> None:
    texts = ["世" * 100 + str(number) for number in range(10)]
    limits = RequestLimits(max_bytes_per_request=1000)
    plans = planned(Row(0, "q", texts), limits).plans
    assert [len(plan.documents) for plan in plans] == [3, 3, 2, 2]
    assert all(len(body(plan, "flat")) <= 1000 for plan in plans)


def test_a_quote_counts_its_backslash() -> None:
    limits = RequestLimits(max_bytes_per_request=200)
    found = planned(Row(0, "q", ['"' * 60, "b" * 60]), limits)
    assert [len(body(plan, "flat")) for plan in found.plans] == [
        len(body(plan, "flat")) for plan in found.plans if len(body(plan, "flat")) <= 200
    ]
    assert len(found.plans) == 2


def test_a_text_is_counted_only_where_bytes_leave_it_open() -> None:
    counted: list[str] = []

    def counting(texts: Sequence[str]) -> list[int]:
        counted.extend(texts)
        return [len(text.split()) for text in texts]

    planner = Planner(RequestLimits(max_tokens_per_request=100), counts=counting)
    planner.plan(Row(1001, "q", ["short", "texts"]))
    assert counted == []
    (plan,) = planner.plan(Row(1001, "q", ["five words are here now " * 4, "and " * 4])).plans
    assert counted == ["q", "five words are here now " * 4]
    assert plan.tokens <= 100


def test_pieces_of_a_row_in_turn_hold_no_neighbours_only() -> None:
    """Balance comes before neighbourhood; within a request the order is the input's."""
    plans = sized([10, 90, 20, 80, 30, 70], RequestLimits(max_tokens_per_request=160)).plans
    assert [plan.tokens for plan in plans] == [102, 102, 102]
    assert all(a < b for plan in plans for a, b in pairwise(plan.slots[0].positions))
