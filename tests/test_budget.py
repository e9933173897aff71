"""A cap on the cost is never passed, whatever is in flight and whatever stays unknown."""

from math import inf
from random import Random

import pytest

from batchrank.config.pricing import ceiling
from batchrank.pacing.budget import Budget

CAPTURED = [(50, 3, 102), (53, 3, 105), (46, 3, 98)]
"""Formula, documents and reported tokens of three real replies of qwen3-rerank."""


@pytest.mark.parametrize(("tokens", "documents", "billed"), CAPTURED)
def test_no_captured_reply_was_billed_above_the_ceiling(
    tokens: int, documents: int, billed: int
) -> None:
    assert ceiling(tokens, documents) >= billed


@pytest.mark.parametrize("documents", [1, 3, 500])
def test_the_ceiling_covers_every_reading_of_the_constant(documents: int) -> None:
    """52 however many documents, 17 for each and one, or 13 for each and 13."""
    constant = ceiling(1000, documents) - 1000
    assert constant >= max(52, 17 * documents + 1, 13 * (documents + 1))


def test_what_is_reserved_counts_as_spent_until_it_is_settled() -> None:
    budget = Budget(cap=100, spent=40)
    assert budget.reserve(60)
    assert not budget.reserve(1)
    assert budget.reserved == 60
    budget.settle(60, 20)
    assert budget.reserved == 0
    assert not budget.reserve(41)
    assert budget.reserve(40)


def test_a_refusal_costs_nothing_and_an_unknown_outcome_all_that_was_reserved() -> None:
    budget = Budget(cap=100)
    assert budget.reserve(60)
    budget.settle(60, 0)
    assert budget.reserve(60)
    budget.settle(60, None)
    assert not budget.reserve(41)
    assert budget.reserve(40)


def test_a_refused_reservation_reserves_nothing() -> None:
    budget = Budget(cap=10)
    assert not budget.reserve(11)
    assert budget.reserved == 0
    assert budget.reserve(10)


def test_a_run_that_has_spent_its_cap_reserves_nothing_more() -> None:
    assert not Budget(cap=100, spent=100).reserve(1)
    assert not Budget(cap=0).reserve(1)


def test_without_a_cap_everything_is_reserved() -> None:
    assert Budget().reserve(10**15)
    assert Budget(inf, spent=10**15).reserve(10**15)


def test_a_lease_is_extended_before_the_last_one_is_used_up() -> None:
    budget = Budget(cap=5000)  # so a lease is 100 ahead
    assert budget.reserve(10)
    assert budget.extend_lease() == 110
    assert budget.reserve(50)
    assert budget.extend_lease() is None
    assert budget.reserve(1)
    assert budget.extend_lease() == 161


def test_what_was_leased_covers_all_that_is_reserved() -> None:
    budget, random = Budget(cap=100_000, spent=17), Random(7)
    leased = 0
    for _ in range(1000):
        reserved = random.randint(1, 300)
        if not budget.reserve(reserved):
            break
        leased = budget.extend_lease() or leased
        assert budget.total <= leased
        if random.random() < 0.7:
            budget.settle(reserved, random.randint(0, reserved))


@pytest.mark.parametrize("seed", range(50))
def test_the_bill_stays_under_the_cap_in_any_run(seed: int) -> None:
    """Bills up to the ceiling, outcomes in any order, some unknown, some of them billed."""
    random = Random(seed)
    cap = random.randint(0, 20_000)
    budget = Budget(cap)
    in_flight: list[int] = []
    bill = 0
    for _ in range(400):
        if random.random() < 0.5 and in_flight:
            reserved = in_flight.pop(random.randrange(len(in_flight)))
            billed = random.choice([0, random.randint(0, reserved), reserved])
            bill += billed
            budget.settle(reserved, random.choice([None, billed]))
        else:
            tokens = random.randint(1, 900)
            if budget.reserve(tokens):
                in_flight.append(tokens)
        assert bill + sum(in_flight) <= cap
