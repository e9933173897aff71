"""An account that workers share is used to its limit, never above it, whoever is lost.

Time is virtual and instants are exact; throttles, leases and coordinator are the real ones, and the
judges are the server's own models of a limit (see `account`).
"""

import asyncio
import os
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import pytest
from account import Account, Worker
from test_throttle_rate import MINUTES, limits, refused
from virtual_time import run

from batchrank.account.coordinator import LEASE_SECONDS
from batchrank.errors import ConfigInvalid, TryLater
from batchrank.server.quotas import Quota, growth, per_second

TRIALS = int(os.environ.get("BATCHRANK_TRIALS", "60"))
RPM = 5400
LATER = 2 * LEASE_SECONDS


def rate_between(account: Account, start: float, stop: float, worker: int | None = None) -> float:
    """What part of the account's requests went out in that time, by one worker or by all."""
    sent = sum(
        start <= instant < stop and worker in (None, by)
        for (instant, _), by in zip(account.admitted, account.by, strict=True)
    )
    return sent * 60 / (account.rate.requests_per_minute * (stop - start))


def holds(account: Account, start: float = 0.0) -> None:
    """No model of a limit refuses anything."""
    rate = account.rate
    for name, window in MINUTES.items():
        quota = Quota(window(rate.requests_per_minute, rate.tokens_per_minute))
        assert refused(account.admitted, quota, start) == 0, name
    assert refused(account.admitted, Quota(per_second(rate.requests_per_minute)), start) == 0


def shared(
    story: Callable[[Account, list[Worker]], Coroutine[Any, Any, None]],
    *,
    workers: int = 8,
    busy: int = 8,
    coordinator: bool = True,
    **rate: float,
) -> Account:
    """An account after a story that begins with so many workers on their seats."""

    async def told() -> Account:
        account = Account(limits(**{"rpm": RPM, **rate}), workers)
        if coordinator:
            account.begin()
        crew = [account.worker(number, busy=number < busy) for number in range(workers)]
        await story(account, crew)
        for worker in crew:
            await worker.kill()
        return account

    return run(told())


@pytest.mark.parametrize("workers", [1, 8, 100])
def test_all_workers_together_are_spaced_as_one(workers: int) -> None:
    """A hundred that each keep a hundredth would meet: here every second holds, too."""
    account = shared(
        lambda account, crew: asyncio.sleep(200), workers=workers, busy=workers, ramp_seconds=10
    )
    assert rate_between(account, 20, 200) >= 0.965
    for start in (0.0, 0.37, 31.7):
        holds(account, start)
    each = [rate_between(account, 20, 200, worker) for worker in range(workers)]
    assert max(each) - min(each) <= 0.004


def test_one_busy_worker_of_eight_has_the_shares_of_the_idle() -> None:
    account = shared(lambda account, crew: asyncio.sleep(300), busy=1)
    assert rate_between(account, 30, 300) >= 0.95
    holds(account)


def test_who_becomes_busy_again_has_a_fair_share_within_two_leases() -> None:
    async def story(account: Account, crew: list[Worker]) -> None:
        await asyncio.sleep(100)
        crew[5].busy = True
        await asyncio.sleep(100)

    account = shared(story, busy=1)
    assert rate_between(account, 100 + LATER, 200, 5) == pytest.approx(0.48, abs=0.01)
    assert rate_between(account, 100 + LATER, 200, 0) == pytest.approx(0.48, abs=0.01)
    assert rate_between(account, 100, 100 + LATER, 5) > 0.2
    holds(account)


def test_a_worker_that_could_use_little_gets_that_and_the_others_the_rest() -> None:
    """Max-min: the smallest wish first, what is left in equal shares."""

    async def story() -> Account:
        account = Account(limits(RPM), 4)
        account.begin()
        account.worker(0, in_flight=1, answer_seconds=0.5)  # two a second at the most
        for number in (1, 2):
            account.worker(number)
        account.worker(3, busy=False)
        await asyncio.sleep(200)
        return account

    account = run(story())
    assert rate_between(account, 50, 200, 0) >= 0.012
    for worker in (1, 2):
        assert rate_between(account, 50, 200, worker) >= 0.44
    holds(account)


def test_a_lost_workers_share_is_back_within_two_leases() -> None:
    async def story(account: Account, crew: list[Worker]) -> None:
        await asyncio.sleep(100)
        await crew[3].kill()
        await asyncio.sleep(100)

    account = shared(story)
    assert rate_between(account, 100 + LATER, 200) >= 0.955
    holds(account)


def test_a_share_that_is_given_back_is_used_at_once() -> None:
    async def story(account: Account, crew: list[Worker]) -> None:
        await asyncio.sleep(100)
        for worker in crew[:4]:
            await worker.leave()
        await asyncio.sleep(100)

    account = shared(story)
    assert rate_between(account, 107, 200) >= 0.955
    holds(account)


def test_without_the_coordinator_each_falls_to_its_own_part_and_never_to_none() -> None:
    """Two are busy and have all. Then they have what is left of the lease, then an eighth each."""

    async def story(account: Account, crew: list[Worker]) -> None:
        await asyncio.sleep(100)
        account.kill()
        await asyncio.sleep(100)
        crew[7].busy = True
        await asyncio.sleep(100)

    account = shared(story, busy=2)
    assert rate_between(account, 90, 100) >= 0.95
    for worker in (0, 1):
        assert rate_between(account, 111, 300, worker) == pytest.approx(0.97 / 8, abs=0.005)
    assert rate_between(account, 210, 300, 7) == pytest.approx(0.97 / 8, abs=0.005)
    holds(account)


def test_a_coordinator_that_is_back_lends_again_once_old_leases_are_over() -> None:
    async def story(account: Account, crew: list[Worker]) -> None:
        await asyncio.sleep(100)
        await crew[6].kill()  # a seat that will say nothing
        account.kill()
        await asyncio.sleep(1)
        account.begin()
        await asyncio.sleep(99)

    account = shared(story, busy=1)
    assert rate_between(account, 104, 111) < 0.3
    assert rate_between(account, 101 + LATER + 10, 200) >= 0.94
    holds(account)


def test_workers_that_begin_without_a_coordinator_have_an_nth_each_and_find_it_later() -> None:
    async def story(account: Account, crew: list[Worker]) -> None:
        await asyncio.sleep(60)
        account.begin()
        await asyncio.sleep(60)

    account = shared(story, busy=2, coordinator=False)
    for worker in (0, 1):
        assert 0 < rate_between(account, 0, 11, worker) < 0.02
        assert rate_between(account, 12, 60, worker) == pytest.approx(0.97 / 8, abs=0.005)
    assert rate_between(account, 60 + LATER, 120) >= 0.94
    holds(account)


def test_without_coordinator_and_without_a_number_there_is_nothing_to_go_by() -> None:
    async def story() -> Worker:
        worker = Account(limits(RPM), 8).worker(0, fixed=False)
        await asyncio.sleep(30)
        return worker

    error = run(story()).error
    assert isinstance(error, TryLater)
    assert "cannot be reached" in str(error) and "--shard" in str(error)


def test_another_accounts_coordinator_is_refused() -> None:
    async def story(rate: float, workers: int) -> Worker:
        account = Account(limits(RPM), 8)
        account.begin()
        account.rate, account.workers = limits(rate), workers
        worker = account.worker(0)
        await asyncio.sleep(1)
        return worker

    for rate, workers, said in [(600, 8, "600"), (RPM, 4, "8 workers")]:
        error = run(story(rate, workers)).error
        assert isinstance(error, ConfigInvalid) and said in str(error)


def test_one_worker_too_many_waits_for_a_seat_and_gets_the_next() -> None:
    async def story() -> tuple[Account, Worker]:
        account = Account(limits(RPM), 2)
        account.begin()
        first = account.worker(0, fixed=False)
        account.worker(1, fixed=False)
        await asyncio.sleep(1)
        late = account.worker(2, fixed=False)
        await asyncio.sleep(5)
        await first.leave()
        await asyncio.sleep(94)
        return account, late

    account, late = run(story())
    assert late.error is None
    assert rate_between(account, 0, 5, 2) == 0
    assert rate_between(account, 20, 100, 2) == pytest.approx(0.97 / 2, abs=0.01)
    holds(account)


def test_a_share_that_grows_is_climbed_into() -> None:
    """Idle, then all: no second has more than twice the one before and a quarter's allowance."""

    async def story(account: Account, crew: list[Worker]) -> None:
        for busy in (1, 3, 8, 2):
            for worker in crew:
                worker.busy = worker.number < busy
            await asyncio.sleep(40)

    account = shared(story, busy=0, ramp_seconds=10)
    assert refused(account.admitted, Quota(growth(RPM / 60 / 4 + 2))) == 0
    holds(account)


def test_tokens_of_a_minute_hold_while_shares_move() -> None:
    """Large requests: what the loser of a share has spent is still in the minute of the winner."""

    async def story() -> Account:
        account = Account(limits(0, 1_000_000), 4)
        account.begin()
        crew = [account.worker(number, lambda: 120_000, busy=number == 0) for number in range(4)]
        for busy in (0, 1, 2, 3, 0, 2):
            for worker in crew:
                worker.busy = worker.number == busy
            await asyncio.sleep(150)
        return account

    account = run(story())
    assert len(account.admitted) >= 50
    for name, window in MINUTES.items():
        for start in (0.0, 31.7):
            assert refused(account.admitted, Quota(window(0, 1_000_000)), start) == 0, name


@pytest.mark.parametrize("seed", range(TRIALS))
def test_any_schedule_of_comings_and_goings_stays_within_every_model(seed: int) -> None:
    """Workers come, go idle, are killed and come back; so does the coordinator; answers get lost.

    At the end all are there and busy, and the account is used; a little less of it where both of
    its limits bind alike, since each worker then waits now for the one and now for the other.
    Clocks differ by two milliseconds.
    """
    random = Random(seed)
    workers = random.choice([1, 2, 3, 5, 8, 13])
    rpm = round(10 ** random.uniform(2, 4.3))
    tpm = random.choice([0, 0, round(10 ** random.uniform(6, 9))])
    most = max(1, tpm // 100 // workers) if tpm else 1
    account = run(
        _schedule(random, limits(rpm, tpm, ramp_seconds=random.choice([0, 10])), most, workers)
    )
    for start in (0.0, random.uniform(0, 60)):
        holds(account, start)
    end = account.admitted[-1][0]
    late = [size for instant, size in account.admitted if instant >= end - 60]
    both_bind = bool(tpm) and 0.8 < (1 + most) / 2 * rpm / tpm < 1.25
    least = 0.88 if both_bind else 0.93
    assert len(late) >= least * rpm or sum(late) >= least * tpm > 0


async def _schedule(random: Random, rate: Any, most: int, workers: int) -> Account:
    account = Account(rate, workers, random)
    crew: list[Worker | None] = [None] * workers

    def come(number: int, *, busy: bool, answer_seconds: float) -> None:
        crew[number] = account.worker(
            number,
            lambda: random.randint(1, most),
            busy=busy,
            in_flight=random.randint(1, 6),
            skew=random.uniform(-0.002, 0.002),
            answer_seconds=answer_seconds,
        )

    def come_as_it_is(number: int) -> None:
        come(number, busy=random.random() < 0.6, answer_seconds=random.choice([0.0, 0.0, 0.3]))

    if random.random() < 0.8:
        account.begin()
    for number in range(workers):
        if random.random() < 0.8:
            come_as_it_is(number)
    for _ in range(random.randint(4, 14)):
        await asyncio.sleep(random.choice([0.1, 1.0, 3.0, 7.0, 15.0, 40.0]))
        for number in range(workers):
            worker, chance = crew[number], random.random()
            if worker is None:
                if chance < 0.5:
                    come_as_it_is(number)
            elif chance < 0.1:
                await worker.kill()
                crew[number] = None
            elif chance < 0.15:
                await worker.leave()
                crew[number] = None
            elif chance < 0.45:
                worker.busy = not worker.busy
        if random.random() < 0.25:
            if account.coordinator is None or random.random() < 0.3:
                account.begin()
            else:
                account.kill()
    if account.coordinator is None:
        account.begin()
    for number in range(workers):
        if (worker := crew[number]) is not None:
            worker.busy, worker.answer_seconds = True, 0.0
        else:
            come(number, busy=True, answer_seconds=0.0)
    await asyncio.sleep(250 if account.rate.tokens_per_minute else 100)
    for one in crew:
        if one is not None:
            await one.kill()
    return account
