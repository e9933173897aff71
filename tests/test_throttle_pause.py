"""A pause that the server asked for: nobody is sent before it is over."""

import asyncio
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

import pytest
from virtual_time import run

from batchrank.config.limits import RateLimits
from batchrank.errors import TryLater
from batchrank.pacing.throttle import Throttle

FAST = RateLimits(requests_per_minute=0, ramp_seconds=0)


def after_pause(
    asked: Callable[[Throttle], Coroutine[Any, Any, None]],
    rate: RateLimits = FAST,
    requests: int = 1,
) -> list[float]:
    """When requests that come at second 10 are admitted, after `asked` has spoken before."""

    async def wait() -> list[float]:
        throttle = Throttle(rate)
        await asked(throttle)
        await asyncio.sleep(10 - asyncio.get_running_loop().time())
        return [await throttle.admit(1) for _ in range(requests)]

    return run(wait())


@pytest.mark.parametrize(
    ("after_seconds", "instant"), [(25.0, 25), (9.0, 10), (0.0, 10), (None, 10)]
)
def test_nothing_is_sent_before_the_time_asked_for(
    after_seconds: float | None, instant: float
) -> None:
    async def asked(throttle: Throttle) -> None:
        throttle.throttled(0.0, after_seconds)

    assert after_pause(asked) == pytest.approx([instant], abs=1e-3)


def test_the_longest_of_several_pauses_counts() -> None:
    async def asked(throttle: Throttle) -> None:
        for after_seconds in (30.0, 90.0, 5.0, None):
            throttle.throttled(0.0, after_seconds)

    assert after_pause(asked) == pytest.approx([90], abs=1e-3)


def test_a_pause_made_longer_while_waiting_is_waited_out() -> None:
    async def lengthened() -> float:
        throttle = Throttle(FAST)
        throttle.throttled(0.0, 10.0)
        waiter = asyncio.create_task(throttle.admit(1))
        await asyncio.sleep(8)
        throttle.throttled(0.0, 30.0)
        return await waiter

    assert run(lengthened()) == pytest.approx(38, abs=1e-3)


@pytest.mark.parametrize(
    ("rate", "tokens"),
    [
        (RateLimits(requests_per_minute=6, ramp_seconds=0), 1),
        (RateLimits(requests_per_minute=0, tokens_per_minute=6_000, ramp_seconds=0), 1_000),
    ],
    ids=["for its turn", "for tokens"],
)
def test_a_request_that_waits_already_waits_for_the_pause_too(
    rate: RateLimits, tokens: int
) -> None:
    async def paused() -> float:
        throttle = Throttle(rate)
        await throttle.admit(tokens)
        waiter = asyncio.create_task(throttle.admit(tokens))
        await asyncio.sleep(1)
        now = asyncio.get_running_loop().time()
        throttle.throttled(0.0, 100.0)
        return await waiter - now

    assert run(paused()) >= 100


def test_a_turn_taken_before_the_pause_is_not_added_to_one_after_it() -> None:
    """Six a minute: the two that wait go ten seconds apart, also when both had to wait longer."""
    rate = RateLimits(requests_per_minute=6, ramp_seconds=0)

    async def two() -> list[float]:
        throttle = Throttle(rate)
        waiters = [asyncio.create_task(throttle.admit(1)) for _ in range(3)]
        await asyncio.sleep(9)
        throttle.throttled(-1.0, 100.0)
        return [await waiter for waiter in waiters]

    instants = run(two())
    assert instants[0] >= 109
    assert min(later - earlier for earlier, later in pairwise(instants)) >= 10


def test_a_pause_is_followed_by_a_ramp_and_not_by_a_burst() -> None:
    rate = RateLimits(requests_per_minute=5400, ramp_seconds=10)

    async def counted() -> list[int]:
        throttle = Throttle(rate)
        loop = asyncio.get_running_loop()
        while await throttle.admit(1) < 30:
            pass
        throttle.throttled(0.0, 20.0)  # sent long ago: it slows down, as the first of its kind
        began = loop.time() + 20
        instants: list[float] = []
        while not instants or instants[-1] < began + 11:
            instants.append(await throttle.admit(1))
        assert instants[0] >= began
        return [sum(int(instant - began) == second for instant in instants) for second in range(11)]

    in_second = run(counted())
    assert in_second[0] <= 20
    assert in_second[:9] == sorted(in_second[:9])


def test_a_hundred_who_wait_out_a_pause_keep_their_order() -> None:
    async def all_at_once() -> list[int]:
        throttle = Throttle(FAST)
        throttle.throttled(0.0, 50.0)
        order: list[int] = []

        async def ask(number: int) -> None:
            assert await throttle.admit(number) >= 50
            order.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(100):
                group.create_task(ask(number))
        return order

    assert run(all_at_once()) == list(range(100))


def test_the_time_paused_is_told() -> None:
    async def waited() -> dict[str, float]:
        throttle = Throttle(FAST)
        throttle.throttled(0.0, 12.0)
        await throttle.admit(1)
        return throttle.waited_seconds

    assert run(waited())["pause"] == pytest.approx(12, abs=1e-3)


def test_cancelling_everybody_during_a_pause_leaves_nothing_behind() -> None:
    async def cancelled() -> float:
        throttle = Throttle(FAST)
        throttle.throttled(0.0, 60.0)
        waiters = [asyncio.create_task(throttle.admit(1)) for _ in range(1000)]
        await asyncio.sleep(1)
        for waiter in waiters:
            waiter.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)
        assert len(asyncio.all_tasks()) == 1
        return await throttle.admit(1)

    assert run(cancelled()) == pytest.approx(60, abs=1e-3)


@pytest.mark.parametrize(("blamed", "instants"), [(True, [0, 0]), (False, [5, 10])])
def test_a_request_that_is_to_blame_itself_makes_nobody_wait(
    blamed: bool, instants: list[float]
) -> None:
    async def admitted() -> list[float]:
        throttle = Throttle(FAST)
        for _ in range(200):
            throttle.failed("a fault", broken=False, blamed=blamed)
        return [await throttle.admit(1) for _ in range(2)]

    assert run(admitted()) == pytest.approx(instants, abs=1e-3)


def test_the_failures_of_what_is_to_blame_are_no_outage() -> None:
    async def admitted(*, blamed: bool) -> float:
        throttle = Throttle(FAST, None, 60)
        throttle.failed("a fault", broken=False)
        await asyncio.sleep(50)
        throttle.failed("a fault", broken=False, blamed=blamed)
        await asyncio.sleep(50)
        return await throttle.admit(1)

    assert run(admitted(blamed=True)) == pytest.approx(100, abs=1e-3)
    with pytest.raises(TryLater):
        run(admitted(blamed=False))


def stopped_for(seconds: float, *, told: bool) -> float:
    """The speed of the first request after a process that met a failure was stopped for so long.
    Raises `TryLater` where that counts as an outage.
    """

    async def go_on() -> float:
        throttle = Throttle(RateLimits(requests_per_minute=6000, ramp_seconds=10), None, 60)
        await throttle.admit(1)
        throttle.failed("a fault", broken=False)
        await asyncio.sleep(seconds)
        if told:
            throttle.resume_after(seconds)
        await throttle.admit(1)
        return throttle.speed

    return run(go_on())


def test_a_process_that_was_stopped_does_not_take_that_for_an_outage() -> None:
    with pytest.raises(TryLater):
        stopped_for(100, told=False)
    assert stopped_for(100, told=True) < 0.2, "it goes on at full speed"
