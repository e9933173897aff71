"""scripts/simulate, small: what its table says was counted, and its verdicts can fail."""

import pytest

from bench.simulate import PAIRS, planned, report, told, verdicts


@pytest.mark.parametrize("half", [False, True])
def test_workers_and_coordinator_are_lost_and_nothing_is_refused(half: bool) -> None:
    found = told(1200, 10, half)
    assert found["refused"] == 0
    assert found["rate"] == pytest.approx(0.97 * 1200, rel=0.02)
    assert sum(found["sent"]) == pytest.approx(found["simulated_requests"], abs=2)
    assert 0 < found["workers_lost"] < 8
    assert (found["coordinator_lost"] > 1) is half  # idle ones' shares are not lent meanwhile
    assert all(verdict.holds for verdict in verdicts([found]))
    assert not all(verdict.holds for verdict in verdicts([{**found, "refused": 1}]))


def test_the_arithmetic_is_of_what_the_planner_makes_of_real_rows() -> None:
    requests = planned(100)
    assert requests.per_row == 1
    assert 90 < requests.pairs <= 100
    run = {**told(600, 1, False), "requests_per_minute": 5400, "rate": 5000.0}
    others = [{**run, "requests_per_minute": rpm} for rpm in (60_000, 600_000)]
    shown = report([run, *others], [requests])
    assert f"{PAIRS / requests.pairs / 5000 / 60:,.1f}" in shown
