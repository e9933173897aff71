"""The time left knows the ramp, at the start and after a pause, and an endpoint that is slower."""

import asyncio

import pytest
from virtual_time import run

from batchrank.config.limits import RateLimits
from batchrank.pacing.throttle import Throttle
from batchrank.pacing.time_left import TimeLeft

TICK = 0.25
Course = list[tuple[float, float | None]]


def course(
    rows: int, rate: RateLimits, *, latency: float = 0.3, pause: tuple[float, float] | None = None
) -> tuple[Course, float]:
    """What was estimated when, and when all rows were done. `pause`: its instant, its length."""

    async def session() -> tuple[Course, float]:
        throttle, estimates, looks = Throttle(rate), TimeLeft(), Course()
        clock = asyncio.get_running_loop().time
        flights = asyncio.Semaphore(rate.max_in_flight)
        done = in_flight = 0

        async def ask() -> None:
            nonlocal done, in_flight
            try:
                await throttle.admit(1)
                in_flight += 1
                await asyncio.sleep(latency)
                in_flight -= 1
                done += 1
                throttle.succeeded()
            finally:
                flights.release()

        async def look() -> None:
            while True:
                left = estimates.look(clock(), rows, done, in_flight, throttle.pacing)
                looks.append((clock(), left))
                await asyncio.sleep(TICK)

        if pause is not None:
            asyncio.get_running_loop().call_later(pause[0], throttle.throttled, 0.0, pause[1])
        async with asyncio.TaskGroup() as group:
            looking = group.create_task(look())
            async with asyncio.TaskGroup() as asking:
                for _ in range(rows):
                    await flights.acquire()
                    asking.create_task(ask())
            looking.cancel()
        return looks, clock()

    return run(session())


def errors(looks: Course, end: float, since: float, until: float) -> list[float]:
    """How far estimates of these moments are off, as shares of the true time left."""
    found = [(left, end - now) for now, left in looks if since <= now < until]
    assert found and all(left is not None for left, _ in found)
    return [abs((left or 0.0) - true) / true for left, true in found]


@pytest.mark.parametrize("ramp_seconds", [0, 10, 30])
def test_a_second_after_the_start_it_is_right_to_a_tenth(ramp_seconds: float) -> None:
    rate = RateLimits(requests_per_minute=5400, ramp_seconds=ramp_seconds)
    looks, end = course(9_000, rate)
    assert max(errors(looks, end, 1.5, end - 5)) < 0.1


def test_in_a_pause_and_after_it_too() -> None:
    rate = RateLimits(requests_per_minute=5400, ramp_seconds=10)
    looks, end = course(9_000, rate, pause=(40.0, 30.0))
    # The fall after the refusal is made good step by step: what is learnt of it is not foretold.
    assert max(errors(looks, end, 41.0, 69.0)) < 0.25
    assert max(errors(looks, end, 72.0, end - 5)) < 0.25


def test_where_the_endpoint_is_the_limit_the_rows_of_the_last_moments_count() -> None:
    rate = RateLimits(requests_per_minute=5400, ramp_seconds=0, max_in_flight=8)
    looks, end = course(2_000, rate, latency=1.0)
    assert max(errors(looks, end, 12.0, end - 12)) < 0.2


def test_before_anything_is_known_there_is_no_estimate() -> None:
    assert TimeLeft().look(0.0, 100, 0, 0, None) is None
