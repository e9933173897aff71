"""What failures are about: the payload, the moment or the account. Instants are given."""

from collections.abc import Sequence

import pytest

from batchrank.sending.blame import ENOUGH_FAILURES, REFUSED_SECONDS, Blame, Fault

OUTAGE = 90.0
Event = tuple[float, str, int]
"""An instant, what happens, and to which plan."""


def last_fault(events: Sequence[Event], kept: dict[int, int] | None = None) -> Fault | None:
    """The verdict on the last of these events."""
    blame, fault = Blame(OUTAGE, kept), None
    for now, what, plan in events:
        match what:
            case "scored":
                blame.note_score()
            case "settled":
                blame.forget(plan)
            case "refused":
                fault = blame.note_refusal(plan, now)
            case "answered":
                fault = blame.note_failure(plan, now, answered=True)
            case "throttled":
                fault = blame.note_failure(plan, now, throttled=True)
            case _:
                fault = blame.note_failure(plan, now, sent=what != "unsent")
    return fault


def in_turn(what: str, times: int, seconds: float = 1.0) -> list[Event]:
    """Plan 1 fails so often; plan 2 is scored in between."""
    return [
        event
        for turn in range(times)
        for event in ((turn * seconds, "scored", 2), (turn * seconds, what, 1))
    ]


def alone(what: str, until: float, every: float = 3.0) -> list[Event]:
    """Plan 1 is the last, and fails again and again; others were scored before."""
    times = int(until / every) + 1
    return [(0, "scored", 2), *((turn * every, what, 1) for turn in range(times))]


def many(what: str, plans: int, until: float) -> list[Event]:
    """Different plans fail, after a score, and nothing is scored any more."""
    return [
        (0, "scored", 99),
        *((now, what, plan) for now in (0.0, until) for plan in range(plans)),
    ]


TABLE: list[tuple[str, Sequence[Event], Fault]] = [
    ("fails while others are scored", in_turn("failed", 2), Fault.PAYLOAD),
    ("and often enough", in_turn("failed", ENOUGH_FAILURES), Fault.SETTLED),
    ("refused while others are scored", in_turn("refused", ENOUGH_FAILURES), Fault.SETTLED),
    ("throttled while others are scored", in_turn("throttled", ENOUGH_FAILURES), Fault.SETTLED),
    ("few failures that take long", in_turn("failed", 3, OUTAGE / 3), Fault.SETTLED),
    ("the last one, for a while", alone("failed", 24), Fault.PAYLOAD),
    ("the last one, for long", alone("failed", 30), Fault.SETTLED),
    ("the last one, refused for a while", alone("refused", 9), Fault.PAYLOAD),
    ("the last one, refused for long", alone("refused", REFUSED_SECONDS), Fault.SETTLED),
    ("the last one, throttled for a while", alone("throttled", 60), Fault.PAYLOAD),
    ("the last one, throttled for long", alone("throttled", 66), Fault.SETTLED),
    ("the last one is not even sent", alone("unsent", 80), Fault.MOMENT),
    ("nothing was ever scored", [(0, "failed", 1)], Fault.MOMENT),
    ("many fail", many("failed", 3, 80), Fault.MOMENT),
    ("many are answered with a failure", many("answered", 3, 80), Fault.MOMENT),
    ("many are refused for a second", many("refused", 3, 2.5), Fault.MOMENT),
    ("many are refused for long", many("refused", 3, REFUSED_SECONDS), Fault.ACCOUNT),
    (
        "a score in between: the refusals begin anew",
        [*many("refused", 3, 10), (11, "scored", 9), (12, "refused", 0), (13, "refused", 1)],
        Fault.PAYLOAD,
    ),
    (
        "throttled as others are",
        [*in_turn("throttled", 3), (4, "throttled", 2), (5, "scored", 3), (6, "throttled", 1)],
        Fault.MOMENT,
    ),
]


@pytest.mark.parametrize(("events", "fault"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE])
def test_a_failure_is_about(events: Sequence[Event], fault: Fault) -> None:
    assert last_fault(events) is fault


def test_a_plan_that_failed_alone_for_long_enough_is_known_from_then_on() -> None:
    blame = Blame(OUTAGE)
    blame.note_score()
    faults = [blame.note_failure(1, now, throttled=True) for now in (0.0, 30.0, 66.0)]
    assert faults == [Fault.PAYLOAD, Fault.PAYLOAD, Fault.SETTLED]
    assert blame.is_known(1), "its parts slow everybody down and use up the breaker's credit"


@pytest.mark.parametrize(
    ("scores", "fault"), [(8, Fault.MOMENT), (9, Fault.SETTLED)], ids=["under way", "sent later"]
)
def test_several_that_fail_again_after_others_were_sent_and_scored_are_to_blame(
    scores: int, fault: Fault
) -> None:
    blame = Blame(OUTAGE, max_in_flight=8)
    blame.note_score()
    faults = set()
    for now in (0.0, 1.0, 20.0, 45.0):
        faults = {blame.note_failure(plan, now) for plan in range(5)}
        for _ in range(scores if now == 0 else 0):
            blame.note_score()
    assert faults == {fault}


def test_failures_of_earlier_starts_count() -> None:
    assert last_fault([(0, "refused", 1)], {1: ENOUGH_FAILURES}) is Fault.SETTLED
    assert last_fault([(0, "refused", 1)], {1: 2}) is Fault.PAYLOAD
    assert last_fault([(0, "refused", 2)], {1: ENOUGH_FAILURES}) is Fault.MOMENT


def test_rows_that_are_known_to_be_refused_do_not_speak_against_the_account() -> None:
    kept = dict.fromkeys(range(3), 3)
    assert last_fault(many("refused", 3, REFUSED_SECONDS), kept) is not Fault.ACCOUNT


def test_what_is_kept_is_of_plans_that_are_not_settled() -> None:
    kept: list[dict[int, int]] = []
    blame = Blame(OUTAGE, keep=lambda failures: kept.append(dict(failures)))
    blame.note_score()
    for plan in (1, 2):
        for now in (0.0, 1.0):
            blame.note_failure(plan, now)
    assert kept[-1] == {1: 2, 2: 2}
    blame.forget(1)
    assert kept[-1] == {2: 2}


def test_an_outage_leaves_nothing_against_anybody() -> None:
    kept: list[dict[int, int]] = []
    blame = Blame(OUTAGE, keep=lambda failures: kept.append(dict(failures)))
    blame.note_score()
    for now in range(60):
        for plan in range(8):
            blame.note_failure(plan, float(now))
    assert not kept


def test_while_the_account_is_in_question_requests_go_one_by_one() -> None:
    blame = Blame(OUTAGE)
    blame.note_score()
    for plan in range(2):
        blame.note_refusal(plan, 0.0)
    assert blame.wait(0.0) == 0
    assert blame.wait(0.0) == 0
    blame.note_refusal(2, 0.0)
    assert blame.wait(0.0) == 0
    assert blame.wait(0.0) > 0
    blame.note_score()
    assert blame.wait(0.0) == 0


def test_where_no_search_helps_there_are_no_more_and_one_that_helps_begins_anew() -> None:
    blame = Blame(OUTAGE)
    assert [blame.note_search(helped=False) for _ in range(9)] == [False] * 9
    blame.note_search(helped=True)
    ends = [blame.note_search(helped=False) for _ in range(10)]
    assert ends == [False] * 9 + [True]
    assert not blame.may_search()


def test_the_last_row_of_a_run_that_goes_on_is_judged_though_nothing_else_is_scored() -> None:
    """Its other rows were scored at an earlier start."""
    blame = Blame(OUTAGE, scored_before=True)
    assert [blame.note_failure(1, now) for now in (0.0, 10.0)] == [Fault.PAYLOAD] * 2
    assert blame.note_failure(1, OUTAGE / 3) is Fault.SETTLED
    for plan in (2, 3):
        blame.note_failure(plan, OUTAGE)
    assert blame.note_failure(4, OUTAGE) is Fault.MOMENT
