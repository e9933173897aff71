"""Limits that nobody told are learnt from refusals: a used-up minute, and requests at once.

What this comes to against whole models of a server is promise 35 (`drills.lower_limit`).
"""

import pytest

from batchrank.pacing.at_once import AtOnce
from batchrank.pacing.used_minute import UsedMinute


def use_up(minute: UsedMinute, requests: int, seconds: float) -> float:
    """Let so many requests in, evenly; the gate closes behind them. Return when it closed."""
    for number in range(requests):
        instant = number * seconds / requests
        minute.admit(instant)
        minute.let_in(instant, instant)
    for number in range(5):
        instant = seconds + number / 100
        minute.admit(instant)
        minute.refuse(instant, instant, alone=False, after=None)
    return instant


def probe(minute: UsedMinute, start: float, opens: float) -> float:
    """Ask as often as the gate lets until the endpoint lets something in. Return when."""
    now = start
    while True:
        now += max(0.01, minute.wait(now))
        minute.admit(now)
        if now >= opens:
            minute.let_in(now, now)
            return now
        minute.refuse(now, now, alone=True, after=None)


@pytest.mark.parametrize("opens", [35.0, 60.0], ids=["a fixed minute", "a sliding minute"])
def test_what_a_used_up_minute_let_in_is_the_limit(opens: float) -> None:
    minute = UsedMinute()
    opened = probe(minute, use_up(minute, 1800, 24), opens)
    assert opened - opens <= 5
    assert minute.per_second(opened) * 60 == pytest.approx(1800, rel=0.08)


def test_a_used_up_second_is_no_minute() -> None:
    minute = UsedMinute()
    opened = probe(minute, use_up(minute, 100, 2), 3)
    assert opened <= 3.1
    assert minute.per_second(opened) == float("inf")


def test_few_probes_go_while_a_minute_is_used_up() -> None:
    minute = UsedMinute()
    now, probes = use_up(minute, 1800, 24), 0
    while (now := now + max(0.01, minute.wait(now))) < 60:
        minute.admit(now)
        minute.refuse(now, now, alone=True, after=None)
        probes += 1
    assert 8 <= probes <= 30


def test_an_outage_is_no_minute() -> None:
    minute = UsedMinute()
    opened = probe(minute, use_up(minute, 1800, 24), 200)
    assert minute.per_second(opened) == float("inf")


def test_a_number_at_which_requests_are_refused_and_no_fewer_is_a_limit() -> None:
    at_once = AtOnce()
    for second in range(8):
        for number in range(1, 11):
            at_once.send(number)
        at_once.send(11)
        at_once.refuse(2.0 * second, 11)
        if at_once.most(2.0 * second) == 10:
            return
    raise AssertionError("not learnt")


def test_refusals_at_any_number_are_no_limit_on_the_number() -> None:
    at_once = AtOnce()
    for second in range(60):
        for number in (8, 9, 10, 11, 12) * 6:
            at_once.send(number)
        at_once.refuse(2.0 * second, 8 + second % 5)
    assert at_once.most(120) == float("inf")


def test_a_limit_on_the_number_that_rises_is_found() -> None:
    at_once, now = AtOnce(), 0.0
    for _ in range(4):
        at_once.send(11)
        at_once.refuse(now := now + 2, 11)
    assert at_once.most(now) == 10
    while at_once.most(now) < 20 and now < 200:
        now += 0.03
        at_once.send(int(at_once.most(now)))
    assert now < 60
