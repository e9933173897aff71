"""A 429 slows everybody down, once for each congestion, and the speed creeps back."""

import asyncio

import pytest
from virtual_time import run

from batchrank.limits import RateLimits
from batchrank.throttle import Throttle

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
    assert speeds(*steps) == pytest.approx([0.7] * 64, abs=0.01)


def test_an_answer_to_what_was_sent_after_the_fall_is_another_congestion() -> None:
    assert speeds((5, 4.9), (6, 5.5)) == pytest.approx([0.7, 0.72 * 0.7], abs=1e-3)


def test_the_speed_creeps_back_by_two_hundredths_a_second_and_no_further_than_whole() -> None:
    assert speeds((5, 4.9), (10, None), (20, None), (21, None)) == pytest.approx(
        [0.7, 0.8, 1, 1], abs=1e-3
    )


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

    assert run(sent_in(1)) == pytest.approx(0.71 * 98.5, abs=2)


def test_a_server_that_allows_half_the_rate_is_found_out_without_many_refusals() -> None:
    """50 a second of a configured 100: the refused stay a small part, the server stays busy."""

    async def against_half() -> tuple[int, int]:
        throttle = Throttle(RATE)
        passed = refused = taken = window = 0
        while (now := await throttle.admit(1)) < 300:
            if int(now) != window:
                window, taken = int(now), 0
            if taken < 50:
                taken += 1
                passed += 1
            else:
                refused += 1
                throttle.throttled(now, None)
        return passed, refused

    passed, refused = run(against_half())
    assert passed >= 0.7 * 50 * 300
    assert refused <= 0.1 * passed
