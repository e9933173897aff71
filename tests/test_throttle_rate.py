"""Requests and tokens a minute: all that the limits allow, and nothing that a server would refuse.

Time is virtual and instants are exact; the judges are the server's own models of a limit.
"""

import asyncio
import os
from collections.abc import Sequence
from itertools import count
from random import Random

import msgspec
import pytest
from virtual_time import run

from batchrank.config.limits import AIM, AIM_BY_MINUTE, RateLimits
from batchrank.pacing.throttle import Throttle
from batchrank.server.quotas import Quota, fixed_minute, growth, per_second, sliding_minute

TRIALS = int(os.environ.get("BATCHRANK_TRIALS", "150"))
MINUTES = {"fixed minute": fixed_minute, "sliding minute": sliding_minute}
WINDOWS = {**MINUTES, "per second": per_second}

Admitted = list[tuple[float, int]]


def limits(rpm: float = 0, tpm: float = 0, *, ramp_seconds: float = 0) -> RateLimits:
    return RateLimits(requests_per_minute=rpm, tokens_per_minute=tpm, ramp_seconds=ramp_seconds)


def saturate(rate: RateLimits, sizes: Sequence[int], seconds: float) -> Admitted:
    """What a throttle admits in so many seconds to somebody who always has a next request."""

    async def all_the_time() -> Admitted:
        throttle = Throttle(rate)
        admitted: Admitted = []
        while True:
            size = sizes[len(admitted) % len(sizes)]
            instant = await throttle.admit(size)
            if instant >= seconds:
                return admitted
            admitted.append((instant, size))

    return run(all_the_time())


def refused(admitted: Admitted, quota: Quota, start: float = 0.0) -> int:
    """How many of the admitted requests a server would refuse whose clock began `start` ago."""
    return sum(quota.admit(start + instant, size) is not None for instant, size in admitted)


def test_an_account_of_5400_requests_a_minute_is_used_to_98_percent_for_half_an_hour() -> None:
    admitted = saturate(limits(5400, ramp_seconds=10), [1], 30 * 60)
    assert 0.98 <= len(admitted) / (5400 * 30) <= 1
    for name, window in WINDOWS.items():
        for start in (0.0, 0.37, 31.7):
            assert refused(admitted, Quota(window(5400)), start) == 0, (name, start)


@pytest.mark.parametrize("sizes", [[5_000], [100, 9_000, 40, 2_500]], ids=["even", "mixed"])
def test_an_account_of_a_million_tokens_a_minute_is_used_to_98_percent(sizes: list[int]) -> None:
    """Requests up to 1 % of the limit here: that many fit into what the aim leaves free."""
    admitted = saturate(limits(tpm=1_000_000), sizes, 30 * 60)
    assert 0.98 <= sum(size for _, size in admitted) / 30_000_000 <= 1
    for name, window in MINUTES.items():
        for start in (0.0, 31.7):
            assert refused(admitted, Quota(window(0, 1_000_000)), start) == 0, (name, start)


@pytest.mark.parametrize("tpm", [10_000_000, 5_000_000_000])
def test_tokens_a_second_are_kept_as_well(tpm: int) -> None:
    admitted = saturate(limits(tpm=tpm), [tpm // 60 // 500], 60)
    assert refused(admitted, Quota(per_second(0, tpm))) == 0


def test_both_limits_hold_when_both_bind_by_turns() -> None:
    sizes = [10] * 500 + [9_000] * 100
    admitted = saturate(limits(5400, 1_500_000), sizes, 600)
    for window in MINUTES.values():
        assert refused(admitted, Quota(window(5400, 1_500_000))) == 0
    assert refused(admitted, Quota(per_second(5400))) == 0


@pytest.mark.parametrize("rpm", [1, 7, 60, 61, 90, 600, 5400, 14_999, 15_300, 30_000, 100_000])
def test_any_rate_is_reached_and_never_passed(rpm: int) -> None:
    seconds = max(20.0, 600 / rpm * 60) if rpm < 600 else 20.0
    admitted = saturate(limits(rpm), [1], seconds)
    assert len(admitted) >= AIM * rpm / 60 * seconds * 0.99 - 1
    for name, window in WINDOWS.items():
        assert refused(admitted, Quota(window(rpm))) == 0, name


@pytest.mark.parametrize("rpm", [1, 61, 199, 201, 600, 5400, 15_300, 100_000])
def test_where_minutes_alone_are_held_more_of_them_is_used(rpm: int) -> None:
    rate = RateLimits(requests_per_minute=rpm, ramp_seconds=0, held_per_second=False)
    seconds = max(130.0, 600 / rpm * 60) if rpm <= 5400 else 130.0
    admitted = saturate(rate, [1], seconds)
    assert len(admitted) >= AIM_BY_MINUTE * rpm / 60 * seconds * 0.998 - 1
    spans = zip(admitted, admitted[rpm:], strict=False)
    assert min(last - first for (first, _), (last, _) in spans) >= 60.29
    for name, window in MINUTES.items():
        assert refused(admitted, Quota(window(rpm))) == 0, name


def test_a_limit_with_a_fraction_keeps_the_wider_margin() -> None:
    rate = RateLimits(requests_per_minute=1000 / 7, ramp_seconds=0, held_per_second=False)
    admitted = saturate(rate, [1], 400)
    for name, window in MINUTES.items():
        assert refused(admitted, Quota(window(1000 / 7))) == 0, name


def test_the_first_request_waits_its_turn_so_that_a_restart_adds_no_burst() -> None:
    first, second = saturate(limits(60), [1], 3)
    assert first[0] == pytest.approx(1 / AIM, abs=1e-3)
    assert second[0] == pytest.approx(2 / AIM, abs=1e-3)


def test_runs_started_one_after_the_other_stay_within_the_limits() -> None:
    admitted: Admitted = []
    for session in range(60):
        latest = saturate(limits(600), [1], 1.0)
        admitted += [(session + instant, size) for instant, size in latest]
    for name, window in WINDOWS.items():
        assert refused(admitted, Quota(window(600))) == 0, name


def test_no_limit_costs_no_wait() -> None:
    async def thousand() -> float:
        throttle = Throttle(limits())
        return [await throttle.admit(120_000) for _ in range(1000)][-1]

    assert run(thousand()) < 1e-3


def test_a_request_larger_than_the_token_bucket_passes_and_leaves_a_debt() -> None:
    """Once the small bucket is full it goes; the next one waits until its debt is paid."""
    rate = 60_000 / 60 * AIM
    admitted = saturate(limits(tpm=60_000), [30_000], 95)
    expected = [turn * 30_000 / rate for turn in range(len(admitted))]
    assert [instant for instant, _ in admitted] == pytest.approx(expected, abs=0.02)
    assert len(admitted) == 4


def test_a_request_larger_than_a_whole_minute_passes_too() -> None:
    admitted = saturate(limits(tpm=1_000), [5_000], 700)
    assert [instant for instant, _ in admitted] == pytest.approx(
        [0, 300 / AIM, 600 / AIM], abs=0.02
    )


def test_large_requests_never_pass_a_minutes_tokens() -> None:
    """Eight of 120,000 fit into a million; nine within sixty seconds are refused."""
    admitted = saturate(limits(tpm=1_000_000), [120_000], 30 * 60)
    for name, window in MINUTES.items():
        assert refused(admitted, Quota(window(0, 1_000_000))) == 0, name


def test_a_second_after_an_idle_gap_holds_no_more_tokens_than_a_sixtieth() -> None:
    async def gap() -> Admitted:
        throttle = Throttle(limits(tpm=6_000_000))
        await asyncio.sleep(5)
        return [(await throttle.admit(100), 100) for _ in range(1100)]

    assert refused(run(gap()), Quota(per_second(0, 6_000_000))) == 0


def test_after_an_idle_gap_the_rate_rises_as_at_the_start() -> None:
    """A limit on the slope sees nothing before the first request after the gap."""

    async def gap() -> tuple[list[float], list[float]]:
        throttle = Throttle(limits(6000, ramp_seconds=10))
        clock = asyncio.get_running_loop().time
        first = [await throttle.admit(1) for _ in range(1000)]
        await asyncio.sleep(5)
        began = clock()
        return first, [await throttle.admit(1) - began for _ in range(1000)]

    first, again = run(gap())
    assert again == pytest.approx(first, abs=0.05)


def test_answers_that_take_long_make_no_gap_while_somebody_waits() -> None:
    async def slow() -> float:
        throttle = Throttle(limits(120, ramp_seconds=10))
        for _ in range(20):
            await throttle.admit(1)
            await asyncio.sleep(0.3)
        return asyncio.get_running_loop().time()

    assert run(slow()) == pytest.approx(20 / (2 * AIM), rel=0.1)


def test_a_large_request_is_not_overtaken_by_small_ones() -> None:
    """Arrival order is kept, whatever the sizes: nobody starves."""
    sizes = [50, 20_000, 50, 50, 7_000, 1] * 20

    async def all_at_once() -> list[int]:
        throttle = Throttle(limits(6000, 1_000_000))
        order: list[int] = []

        async def ask(number: int, size: int) -> None:
            await throttle.admit(size)
            order.append(number)

        async with asyncio.TaskGroup() as group:
            for number, size in enumerate(sizes):
                group.create_task(ask(number, size))
        return order

    assert run(all_at_once()) == list(range(len(sizes)))


def test_no_request_waits_longer_than_a_tenth_above_its_ideal() -> None:
    """The ideal: each before it took its share of the dearer limit, requests or tokens."""
    admitted = saturate(limits(600, 6_000_000), [20_000, 100, 100, 5_000], 120)
    ideal = 0.1
    for instant, size in admitted:
        assert instant <= 1.1 * ideal + 0.02
        ideal += max(0.1, size / 100_000)


def test_usage_above_the_estimate_is_charged_and_below_it_refunded() -> None:
    async def settled(actual: int) -> float:
        throttle = Throttle(limits(tpm=60_000))
        await throttle.admit(1_000)
        throttle.settle(1_000, actual)
        return await throttle.admit(1_000)

    rate = 60_000 / 60 * AIM
    for actual in (1_000, 1_500, 600):
        assert run(settled(actual)) == pytest.approx(actual / rate, abs=0.03)


@pytest.mark.parametrize("answers", [1, 20])
def test_no_usage_holds_the_next_request_up_for_more_than_a_minute(answers: int) -> None:
    async def next_one() -> float:
        throttle = Throttle(limits(tpm=60_000))
        for _ in range(answers):
            await throttle.admit(100)
        began = asyncio.get_running_loop().time()
        for _ in range(answers):
            throttle.settle(100, 10**12, began)
        return await throttle.admit(100) - began

    assert 59 <= run(next_one()) <= 62


def test_a_debt_of_a_large_request_is_not_forgiven_by_a_small_one() -> None:
    async def next_one() -> float:
        throttle = Throttle(limits(tpm=1_000))
        await throttle.admit(5_000)
        throttle.settle(10, 11)
        return await throttle.admit(10)

    assert run(next_one()) >= 299


def test_a_refund_never_fills_more_than_the_bucket() -> None:
    async def refunded() -> Admitted:
        throttle = Throttle(limits(tpm=6_000_000))
        await throttle.admit(1)
        throttle.settle(1_000_000, 1)
        return [(await throttle.admit(1_000), 1_000) for _ in range(10)]

    first, last = run(refunded())[0], run(refunded())[-1]
    assert last[0] - first[0] >= (10 * 1_000 - 2_000) / (100_000 * AIM) - 2e-3


def test_the_ramp_begins_at_a_tenth_and_takes_its_ten_seconds() -> None:
    admitted = saturate(limits(5400, ramp_seconds=10), [1], 14)
    in_second = [sum(int(instant) == second for instant, _ in admitted) for second in range(14)]
    assert in_second[0] <= 0.2 * 90
    assert in_second[:10] == sorted(in_second[:10])
    assert all(87 <= requests <= 90 for requests in in_second[11:])
    assert refused(admitted, Quota(growth(base=20, factor=2, seconds=1))) == 0


def test_a_clock_that_ticks_between_two_readings_begins_no_new_ramp() -> None:
    """Virtual time stands still within a step; a real clock does not, and a ramp that begins anew
    by chance costs ten seconds of half the rate.
    """

    async def half_a_minute() -> float:
        readings, time = count(), asyncio.get_running_loop().time
        throttle = Throttle(limits(5400, ramp_seconds=10), lambda: time() + next(readings) * 1e-6)
        while await throttle.admit(1) < 30:
            pass
        return throttle.speed

    assert run(half_a_minute()) == 1


def test_a_slow_account_needs_no_ramp() -> None:
    ramped = saturate(limits(60, ramp_seconds=10), [1], 30)
    assert ramped == saturate(limits(60), [1], 30)


def test_waits_are_told_apart_by_what_was_waited_for() -> None:
    async def waited() -> dict[str, float]:
        throttle = Throttle(limits(60, 60_000))
        for size in (1, 1, 10_000, 1):
            await throttle.admit(size)
        return throttle.waited_seconds

    seconds = run(waited())
    assert seconds["requests"] == pytest.approx(3 / AIM, abs=0.1)
    assert seconds["tokens"] == pytest.approx(10_000 / (1_000 * AIM), abs=0.1)
    assert seconds["pause"] == 0


def test_cancelled_waiters_leave_nothing_behind() -> None:
    """2,000 cancelled while waiting: no task, no turn and no token of theirs is missed after."""

    async def cancelled() -> tuple[float, list[float]]:
        throttle = Throttle(limits(600, 6_000_000))
        random = Random(7)
        for _ in range(20):
            waiters = [asyncio.create_task(throttle.admit(1_000)) for _ in range(100)]
            await asyncio.sleep(random.uniform(0, 0.05))
            for waiter in waiters:
                waiter.cancel()
            await asyncio.gather(*waiters, return_exceptions=True)
        assert len(asyncio.all_tasks()) == 1
        began = asyncio.get_running_loop().time()
        return began, [await throttle.admit(1_000) for _ in range(50)]

    began, instants = run(cancelled())
    assert instants[0] - began <= 0.11
    assert instants[-1] - began == pytest.approx(50 / (10 * AIM), abs=0.15)


def test_a_cancelled_head_hands_the_gate_on() -> None:
    async def handed_on() -> float:
        throttle = Throttle(limits(tpm=60_000))
        await throttle.admit(60_000)
        head = asyncio.create_task(throttle.admit(1))
        small = asyncio.create_task(throttle.admit(1))
        await asyncio.sleep(1)
        head.cancel()
        return await small

    assert run(handed_on()) == pytest.approx(60_000 / (1_000 * AIM), abs=0.1)


@pytest.mark.parametrize("seed", range(TRIALS))
def test_any_schedule_stays_within_every_model(seed: int) -> None:
    """Random rates, sizes, idle gaps, cancels, throttled answers and restarts.

    Sizes are such that a minute's allowance holds many; see the test on large requests.
    """
    random = Random(seed)
    rpm = round(10 ** random.uniform(0, 5))
    tpm = random.choice([0, round(10 ** random.uniform(4, 9))])
    most = max(1, min(tpm // 100, 120_000)) if tpm else 120_000
    rate = msgspec.structs.replace(
        limits(rpm, tpm, ramp_seconds=random.choice([0, 0, 10])),
        held_per_second=random.random() < 0.8,
    )

    async def schedule() -> Admitted:
        clock = asyncio.get_running_loop().time
        admitted: Admitted = []

        async def ask(throttle: Throttle, size: int) -> None:
            admitted.append((await throttle.admit(size), size))

        for _ in range(random.randint(1, 3)):
            throttle = Throttle(rate)
            for _ in range(random.randint(1, 8)):
                waiters = [
                    asyncio.create_task(ask(throttle, random.randint(1, most)))
                    for _ in range(random.randint(1, 30))
                ]
                await asyncio.sleep(random.choice([0, 0.001, 0.1, 1, 30, 70]))
                if random.random() < 0.3:
                    for waiter in random.sample(waiters, len(waiters) // 2):
                        waiter.cancel()
                if random.random() < 0.2:
                    throttle.throttled(clock(), random.choice([None, 0.5, 20.0]))
                await asyncio.gather(*waiters, return_exceptions=True)
        return admitted

    admitted = run(schedule())
    start = random.uniform(0, 60)
    for name, window in MINUTES.items():
        assert refused(admitted, Quota(window(rpm, tpm)), start) == 0, name
    if rate.held_per_second:
        assert refused(admitted, Quota(per_second(rpm)), start) == 0
