"""The rate limit models, given times: what each lets through, and with which code it refuses."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrank.server.quotas import (
    ALLOCATION_QUOTA,
    BURST_RATE,
    RATE_QUOTA,
    Quota,
    QuotaSettings,
    fixed_minute,
    growth,
    per_second,
    sliding_minute,
)


def admitted(quota: Quota, times: list[float], tokens: int = 1) -> list[bool]:
    return [quota.admit(now, tokens) is None for now in times]


def test_fixed_minute_starts_anew_at_each_full_minute() -> None:
    quota = Quota(fixed_minute(2))
    assert admitted(quota, [58, 59, 59.9, 60, 61, 62]) == [True, True, False, True, True, False]
    assert quota.admit(63, 1) == RATE_QUOTA
    assert admitted(quota, [600, 600, 600]) == [True, True, False]


def test_sliding_minute_looks_back_sixty_seconds() -> None:
    quota = Quota(sliding_minute(2))
    times = [58, 59, 60, 117.9, 118, 118.5, 119]
    assert admitted(quota, times) == [True, True, False, False, True, False, True]


def test_tokens_are_an_allocation_and_one_request_above_it_never_passes() -> None:
    for gates in (fixed_minute(0, 1000), sliding_minute(0, 1000)):
        quota = Quota(gates)
        assert quota.admit(0, 600) is None
        assert quota.admit(1, 401) == ALLOCATION_QUOTA
        assert quota.admit(2, 400) is None
        assert quota.admit(3, 1) == ALLOCATION_QUOTA
        assert quota.admit(600, 1001) == ALLOCATION_QUOTA


def test_per_second_holds_each_second_to_a_sixtieth() -> None:
    quota = Quota(per_second(5400))
    assert sum(admitted(quota, [7.5] * 200)) == 90
    assert quota.admit(7.9, 1) == RATE_QUOTA
    assert sum(admitted(quota, [8.0] * 200)) == 90


def test_per_second_below_sixty_a_minute_is_one_in_so_many_seconds() -> None:
    quota = Quota(per_second(30))
    assert admitted(quota, [0, 1, 2, 3, 4]) == [True, False, True, False, True]


def test_tokens_above_a_seconds_share_delay_what_follows() -> None:
    quota = Quota(per_second(0, 6000))  # 100 tokens a second
    assert quota.admit(0, 250) is None
    assert quota.admit(0.9, 1) == ALLOCATION_QUOTA
    assert quota.admit(1, 1) == ALLOCATION_QUOTA  # 150 of them are owed
    assert quota.admit(2, 51) == ALLOCATION_QUOTA  # 50
    assert quota.admit(2, 50) is None
    assert quota.admit(3, 100) is None


def test_growth_refuses_a_jump_and_lets_a_ramp_pass() -> None:
    assert admitted(Quota(growth(10)), [0.0] * 12) == [True] * 10 + [False] * 2
    quota = Quota(growth(20))
    # From 0 to 90 a second in 10 seconds: 4.5 t^2 requests by the time t.
    assert all(admitted(quota, [(n / 4.5) ** 0.5 for n in range(451)]))
    assert sum(admitted(quota, [10.0] * 200)) < 90
    # After an idle minute only the base passes again.
    assert sum(admitted(quota, [70.0] * 50)) == 20


def test_growth_says_burst_rate() -> None:
    quota = Quota(growth(1))
    assert [quota.admit(0, 1), quota.admit(0, 1)] == [None, BURST_RATE]


def test_a_request_that_one_gate_refuses_takes_nothing_from_the_others() -> None:
    quota = Quota([*fixed_minute(2, 100), *per_second(60)])
    assert quota.admit(0, 101) == ALLOCATION_QUOTA
    assert quota.admit(0, 50) is None
    assert quota.admit(0, 50) == RATE_QUOTA  # the second is used up
    assert quota.admit(1, 50) is None
    assert quota.admit(2, 1) == RATE_QUOTA  # the minute is


def test_settings_name_the_windows() -> None:
    quota = QuotaSettings(
        requests_per_minute=120, windows=("sliding_minute", "per_second"), growth_base=100
    ).quota()
    assert admitted(quota, [0, 0, 0, 1]) == [True, True, False, True]
    assert admitted(QuotaSettings().quota(), [0] * 1000) == [True] * 1000
    with pytest.raises(msgspec.ValidationError, match="windows"):
        msgspec.convert({"windows": ["per_hour"]}, QuotaSettings)


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 40)), max_size=60),
    st.integers(1, 8),
    st.integers(40, 120),
)
def test_no_window_ever_holds_more_than_its_limit(
    steps: list[tuple[float, int]], requests: int, tokens: int
) -> None:
    """Against the definition: every fixed minute, and the minute that ends at every request."""
    fixed, sliding = Quota(fixed_minute(requests, tokens)), Quota(sliding_minute(requests, tokens))
    now = 0.0
    passed: dict[str, list[tuple[float, int]]] = {"fixed": [], "sliding": []}
    for wait, amount in steps:
        now += wait
        if fixed.admit(now, amount) is None:
            passed["fixed"].append((now, amount))
        if sliding.admit(now, amount) is None:
            passed["sliding"].append((now, amount))
    for instant, _ in passed["fixed"]:
        same = [taken for at, taken in passed["fixed"] if at // 60 == instant // 60]
        assert len(same) <= requests and sum(same) <= tokens
    for instant, _ in passed["sliding"]:
        same = [taken for at, taken in passed["sliding"] if instant - 60 < at <= instant]
        assert len(same) <= requests and sum(same) <= tokens
