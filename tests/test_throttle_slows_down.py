"""A 429 slows everybody down, once for each congestion, and teaches what the endpoint bears."""

import asyncio
from itertools import pairwise

import pytest
from virtual_time import run

from batchrank.config.limits import RateLimits
from batchrank.pacing.throttle import Throttle

RATE = RateLimits(requests_per_minute=6000, ramp_seconds=0)


def speeds(*steps: tuple[float, float | None]) -> list[float]:
    """Speeds after each (instant, sent at or None): at each instant a request sent then is
    answered 429, or nothing happens.
    """

    async def over_time() -> list[float]:
        throttle = Throttle(RATE)
        seen = []
        for instant, sent_at in steps:
            await asyncio.sleep(instant - asyncio.get_running_loop().time())
            if sent_at is not None:
                throttle.throttled(sent_at, None)
            seen.append(throttle.speed)
        return seen

    return run(over_time())


def test_the_speed_is_whole_until_somebody_complains() -> None:
    assert speeds((0, None), (100, None)) == [1, 1]


def test_a_throttled_answer_takes_three_tenths_off() -> None:
    assert speeds((5, 4.9)) == pytest.approx([0.7])


def test_all_answers_to_what_was_sent_before_the_fall_are_one_congestion() -> None:
    steps = [(5 + late / 1000, 4.9) for late in range(64)]
    assert max(speeds(*steps)) < 0.72
    assert speeds(*steps)[0] == pytest.approx(0.7)


def test_what_the_rest_of_a_used_up_second_refuses_is_the_same_congestion() -> None:
    assert speeds((5, 4.9), (5.5, 5.4)) == pytest.approx([0.7, 0.825], abs=1e-3)


def test_a_refusal_in_the_second_after_says_that_nothing_is_borne() -> None:
    assert speeds((5, 4.9), (6.2, 6.1))[-1] == pytest.approx(0.01)


def test_what_was_let_in_since_the_fall_says_how_much_is_borne() -> None:
    async def over_time() -> float:
        throttle = Throttle(RATE)
        await asyncio.sleep(5)
        throttle.throttled(4.9, None)
        for _ in range(30):
            throttle.succeeded()
        await asyncio.sleep(1.2)
        for _ in range(70):
            throttle.throttled(5.1, None)
        before = throttle.speed
        throttle.throttled(6.1, None)
        return throttle.speed / before

    assert run(over_time()) == pytest.approx(0.7 * 30 / 101, abs=1e-3)


def test_the_speed_returns_to_just_below_where_it_was_refused_and_stays() -> None:
    assert speeds((5, 4.9), (6, None), (7, None), (16, None)) == pytest.approx(
        [0.7, 0.95, 0.97, 0.97], abs=1e-3
    )


def test_the_speed_then_feels_its_way_up_faster_and_faster_and_no_further_than_whole() -> None:
    found = speeds((5, 4.9), (17, None), (19, None), (21, None), (30, None), (90, None))
    steps = [later - sooner for sooner, later in pairwise(found[1:4])]
    assert 0 < steps[0] < steps[1]
    assert found[-2:] == [1, 1]


def test_a_limit_that_rises_again_is_found_within_a_minute() -> None:
    """From a third to the whole, though nobody says so."""

    async def over_time() -> float:
        throttle = Throttle(RateLimits(requests_per_minute=6000, ramp_seconds=10))
        await asyncio.sleep(3)
        throttle.throttled(2.99, None)
        assert throttle.speed < 0.3
        await asyncio.sleep(60)
        return throttle.speed

    assert run(over_time()) == 1


def test_the_speed_never_falls_to_nothing() -> None:
    steps = [(second, second - 0.01) for second in range(1, 200)]
    assert min(speeds(*steps)) >= 0.01


def test_recovery_to_nine_tenths_takes_less_than_a_minute_from_the_very_bottom() -> None:
    trouble = [(second, second - 0.01) for second in range(1, 100)]
    assert speeds(*trouble, (99 + 60, None))[-1] >= 0.9


def test_fewer_requests_are_sent_when_slowed_down() -> None:
    async def sent_in(seconds: float) -> int:
        throttle = Throttle(RATE)
        clock = asyncio.get_running_loop().time
        await throttle.admit(1)
        throttle.throttled(clock(), None)
        until = clock() + seconds
        sent = 0
        while await throttle.admit(1) < until:
            sent += 1
        return sent

    assert run(sent_in(1)) == pytest.approx((0.7 + 0.95) / 2 * 98.5, abs=2)


def test_a_server_that_allows_half_the_rate_is_found_out_with_hardly_a_refusal() -> None:
    """50 a second of a configured 100."""

    async def against_half() -> tuple[int, int]:
        throttle = Throttle(RATE)
        passed = refused = taken = window = 0
        while (now := await throttle.admit(1)) < 300:
            if int(now) != window:
                window, taken = int(now), 0
            if taken < 50:
                taken += 1
                passed += 1
                throttle.succeeded()
            else:
                refused += 1
                throttle.throttled(now, None)
        return passed, refused

    passed, refused = run(against_half())
    assert passed >= 0.95 * 50 * 300
    assert refused <= 0.01 * passed
