"""The rules of leasing by themselves: nothing is given twice, what is wanted is divided fairly."""

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrank.account.cells import Seats, first, of_runs, runs
from batchrank.account.coordinator import (
    LEASE_SECONDS,
    MARGIN,
    REST_SECONDS,
    Ask,
    Coordinator,
    Lease,
    Refusal,
)
from batchrank.account.share import Holding
from batchrank.pacing.request_numbers import CIRCLE, next_number

_SECTION = 2654435769


def ask(worker: str, serial: int, **more: object) -> Ask:
    given = {"requests_per_minute": 5400.0, "tokens_per_minute": 0.0, **more}
    return Ask(worker=worker, serial=serial, **given)  # type: ignore[arg-type]


def renewed(coordinator: Coordinator, asked: Ask, now: float) -> Lease:
    lease = coordinator.renew(asked, now)
    assert isinstance(lease, Lease), lease
    return lease


def settled(wants: list[float]) -> list[float]:
    """What share each of some workers has that want so much, once all have asked a few times."""
    coordinator = Coordinator(len(wants), 0, requests_per_minute=5400)
    held: list[list[tuple[int, int]]] = [[] for _ in wants]
    for turn in range(1, 7):
        for seat, share in enumerate(wants):
            asked = ask(f"w{seat}", turn, wants=share, holding=held[seat], seat=seat)
            held[seat] = renewed(coordinator, asked, turn).cells
    return [coordinator.seats.share(of_runs(cells)) for cells in held]


@pytest.mark.parametrize(
    ("wants", "shares"),
    [
        ([1, 1, 1, 1], [0.25, 0.25, 0.25, 0.25]),
        ([1, 0, 0, 0], [0.9925, 0.0025, 0.0025, 0.0025]),
        ([1, 1, 0.1, 0.1], [0.4, 0.4, 0.1, 0.1]),
        ([0.3, 1, 0.05, 1], [0.3, 0.325, 0.05, 0.325]),
        ([0.1, 0.2, 0.1, 0.2], [0.1, 0.2, 0.1, 0.2]),
    ],
)
def test_shares_are_max_min_fair(wants: list[float], shares: list[float]) -> None:
    assert settled(wants) == pytest.approx(shares, abs=0.003)


def test_nobody_is_given_what_another_may_still_be_using() -> None:
    """A killed worker's cells come back when its lease has run out, with the margin, not before."""
    coordinator = Coordinator(2, 0, requests_per_minute=5400)
    renewed(coordinator, ask("a", 1, seat=0, wants=0), 1)
    renewed(coordinator, ask("b", 1, seat=1, wants=1), 1)
    lent = renewed(coordinator, ask("b", 2, seat=1, wants=1), 2)
    assert coordinator.seats.share(of_runs(lent.cells)) == pytest.approx(0.995)
    until = 2 + LEASE_SECONDS * MARGIN
    early = renewed(coordinator, ask("a", 2, seat=0, wants=1), until - 0.01)
    assert coordinator.seats.share(of_runs(early.cells)) == pytest.approx(0.005)
    assert early.again_seconds < LEASE_SECONDS / 4
    late = renewed(coordinator, ask("a", 3, seat=0, wants=1, holding=early.cells), until)
    assert coordinator.seats.share(of_runs(late.cells)) == pytest.approx(0.995)


def test_what_was_spent_in_a_minute_rests_for_a_minute() -> None:
    tokens = {"tokens_per_minute": 1e6}
    coordinator = Coordinator(2, 0, requests_per_minute=5400, tokens_per_minute=1e6)
    renewed(coordinator, ask("a", 1, seat=0, wants=0, **tokens), 1)
    renewed(coordinator, ask("b", 1, seat=1, wants=1, **tokens), 1)
    lent = renewed(coordinator, ask("b", 2, seat=1, wants=1, **tokens), 2)
    coordinator.renew(ask("b", 3, seat=1, leaving=True, holding=lent.cells, **tokens), 3)
    before = renewed(coordinator, ask("a", 2, wants=1, **tokens), 3 + REST_SECONDS - 0.01)
    assert coordinator.seats.share(of_runs(before.cells)) < 0.5
    after = renewed(coordinator, ask("a", 3, wants=1, **tokens), 3 + REST_SECONDS)
    assert coordinator.seats.share(of_runs(after.cells)) > 0.9


def test_a_coordinator_without_memory_lends_nothing_until_it_knows() -> None:
    coordinator = Coordinator(2, 100, requests_per_minute=5400)
    held = runs(coordinator.seats.home(0, 30))
    asked = ask("a", 1, seat=0, wants=1, workers=2, holding=held)
    assert renewed(coordinator, asked, 101).cells == held
    sure = 100 + LEASE_SECONDS * MARGIN
    later = renewed(coordinator, ask("a", 2, wants=1, workers=2, holding=held), sure)
    assert coordinator.seats.share(of_runs(later.cells)) == pytest.approx(0.995)


def test_an_ask_that_comes_late_changes_nothing() -> None:
    coordinator = Coordinator(1, 0, requests_per_minute=5400)
    renewed(coordinator, ask("a", 2), 1)
    assert isinstance(coordinator.renew(ask("a", 1), 2), Refusal)


@given(seed=st.integers(0, 10**9))
@settings(deadline=None)
def test_all_that_may_be_used_at_any_instant_is_never_used_twice(seed: int) -> None:
    """Any order of asks, lost answers, deaths and restarts, by the rules of both sides alone."""
    random = Random(seed)
    workers = random.randint(1, 5)
    tokens = random.choice([0, 1_000_000])
    now = 0.0

    def coordinator_of(now: float) -> Coordinator:
        return Coordinator(workers, now, requests_per_minute=600, tokens_per_minute=tokens)

    def begun(seat: int, life: int) -> Holding:
        return Holding(
            f"{seat}.{life}",
            now,
            requests_per_minute=600,
            tokens_per_minute=tokens,
            shard=(seat, workers),
        )

    coordinator: Coordinator | None = coordinator_of(now)
    crew = [begun(seat, 0) for seat in range(workers)]
    asked_at = [0.0] * workers
    for step in range(200):
        now += random.choice([0.01, 0.5, 1.0])
        if random.random() < 0.02:
            coordinator = None if coordinator else coordinator_of(now)
        for seat, holding in enumerate(crew):
            if random.random() < 0.01:
                crew[seat] = holding = begun(seat, step + 1)
            # A worker asks at least every other second: out of reach means for all.
            if random.random() < 0.5 or now - asked_at[seat] >= 2:
                asked_at[seat] = now
                holding.wants = random.choice([0.0, 0.1, 0.4, 1.0])
                answer = coordinator.renew(holding.ask(now), now) if coordinator else None
                if isinstance(answer, Lease) and random.random() < 0.95:
                    holding.answered(answer, now, now)
        used = 0
        for holding in crew:
            assert not used & holding.cells(now), "a cell in use by two"
            used |= holding.cells(now)


@given(
    begin=st.integers(0, CIRCLE - 1),
    length=st.integers(CIRCLE // 3000, CIRCLE),
    number=st.integers(0, 10**13),
)
def test_the_next_number_is_the_first_whose_point_is_on_an_arc(
    begin: int, length: int, number: int
) -> None:
    stop = min(CIRCLE, begin + length)
    found = next_number(number, [(begin, stop)]) if stop - begin > CIRCLE // 3000 else None
    if found is not None:
        counted = number
        while not begin <= counted * _SECTION % CIRCLE < stop:
            counted += 1
        assert found == counted


@pytest.mark.parametrize("share", [1 / 2, 1 / 3, 1 / 8, 0.3, 1 / 1000])
def test_an_arcs_numbers_are_evenly_spread(share: float) -> None:
    """Of three gaps at the most, the longest is under three times the mean."""
    arc = (CIRCLE // 7, CIRCLE // 7 + int(CIRCLE * share * 0.8))
    numbers, at = [], 1_790_000_000 * 90
    for _ in range(500):
        found = next_number(at, [arc])
        assert found is not None
        numbers.append(found)
        at = found + 1
    gaps = {later - earlier for earlier, later in pairwise(numbers)}
    assert len(gaps) <= 3
    assert max(gaps) * share * 0.8 < 3


@given(cells=st.integers(0, 2**300), count=st.integers(0, 400))
def test_sets_of_cells_are_what_their_pieces_are(cells: int, count: int) -> None:
    assert of_runs(runs(cells)) == cells
    some = first(cells, count)
    assert some & ~cells == 0
    assert some.bit_count() == min(count, cells.bit_count())
    assert some == 0 or (cells & ~some) == 0 or some.bit_length() <= (cells & ~some).bit_length()


def test_homes_cover_the_account_and_do_not_overlap() -> None:
    seats = Seats(7)
    covered = 0
    for seat in range(7):
        assert not covered & seats.home(seat)
        assert seats.home(seat, 1) == seats.floor(seat)
        covered |= seats.home(seat)
    assert covered == seats.all
    assert seats.arcs(seats.all) == [(0, CIRCLE)]
