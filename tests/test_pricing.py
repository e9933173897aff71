"""What requests cost: tokens by the million, or Cohere's searches by the thousand."""

from math import ceil, inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrank.config.pricing import Price
from batchrank.wire.replies import Scores

settings.register_profile("timeless", deadline=None)
settings.load_profile("timeless")

TOKENS = Price(0.1)
SEARCHES = Price(2.0, "searches", margin=2)


@pytest.mark.parametrize(
    ("tokens", "documents", "searches"),
    [
        (10, 1, 1),
        (50_000, 100, 1),
        (10_000, 101, 2),
        (25_000, 250, 3),
        (60_000, 100, 2),  # 600 tokens each, the query's among them: 120 are counted
        (500_000, 1000, 10),
    ],
)
def test_a_search_is_a_query_with_up_to_100_documents(
    tokens: int, documents: int, searches: int
) -> None:
    assert SEARCHES.likely(tokens, documents) == searches
    assert SEARCHES.cost(searches) == pytest.approx(searches * 0.002)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=300))
def test_no_way_of_cutting_long_documents_costs_more_than_the_most(pairs: list[int]) -> None:
    """Each number is the tokens of a document with the query: cut at 500, the last piece counts."""
    pieces = sum(ceil(tokens / 500) for tokens in pairs)
    price = Price(2.0, "searches")
    assert ceil(pieces / 100) <= price.most(sum(pairs), len(pairs))
    assert price.likely(sum(pairs), len(pairs)) <= ceil(pieces / 100)


@given(st.integers(1, 10**6), st.integers(1, 1000), st.sampled_from([TOKENS, SEARCHES]))
def test_the_most_is_never_less_than_what_is_likely(
    tokens: int, documents: int, price: Price
) -> None:
    assert price.most(tokens, documents) >= price.likely(tokens, documents)


def test_another_tokenizer_may_make_more_tokens_than_ours() -> None:
    assert Price(0.05, margin=2).most(1000, 1) >= 2000


def test_what_a_server_adds_to_each_document_is_foreseen() -> None:
    """Two captured counts of qwen3.7-text-rerank: 261 and 237 for three short documents, which
    by the formula weigh about 36.
    """
    assert Price(0.069, per_document=75).most(36, 3) >= 261


def test_an_answer_that_tells_its_bill_is_believed() -> None:
    told = Scores([0.5], 17, None, searches=3)
    silent = Scores([0.5], None, None)
    assert (TOKENS.billed(told), TOKENS.billed(silent)) == (17, None)
    assert (SEARCHES.billed(told), SEARCHES.billed(silent)) == (3, None)


@pytest.mark.parametrize("used", [0, 1, 17, 10 * TOKENS.most(10, 1)])
def test_a_usage_up_to_ten_times_the_most_is_taken_as_said(used: int) -> None:
    answer = Scores([0.5], used, None)
    assert TOKENS.plausible(answer, 10, 1) is answer


@pytest.mark.parametrize("used", [-1, 10 * TOKENS.most(10, 1) + 1, 10**18, 10**400])
def test_beyond_that_the_most_is_counted_instead(used: int) -> None:
    answer = TOKENS.plausible(Scores([0.5], used, None), 10, 1)
    assert answer.tokens == TOKENS.most(10, 1)


@pytest.mark.parametrize("searches", [-1, 11, int(1e308)])
def test_absurd_searches_are_counted_as_the_most(searches: int) -> None:
    answer = SEARCHES.plausible(Scores([0.5], None, None, searches=searches), 10, 1)
    assert answer.searches == 1
    plausible = Scores([0.5], None, None, searches=10)
    assert SEARCHES.plausible(plausible, 10, 1) is plausible


def test_what_is_free_is_without_end() -> None:
    assert Price().affordable(1) == inf
    assert TOKENS.affordable(1) == pytest.approx(10_000_000)
    assert SEARCHES.affordable(1) == pytest.approx(500)
