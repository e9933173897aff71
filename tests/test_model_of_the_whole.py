"""Whatever happens to a run, and in whatever order: it ends as if nothing had ever happened.

Hypothesis makes up rows, limits, an endpoint and a life of sessions with faults, kills, stops and
changed settings; `life` judges each of them, and the end.
"""

import os
import shutil
import tempfile
from itertools import count
from math import inf
from pathlib import Path
from typing import Any

from endpoint import FAULTS, Weather
from hypothesis import HealthCheck, Phase, seed
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from life import Life, Nature, Session

EXAMPLES = int(os.environ.get("BATCHRANK_TRIALS", "25"))
SEED = int(os.environ.get("BATCHRANK_SEED", "7"))
MEMORY = Path("/dev/shm")

QUERIES = st.sampled_from(
    [*(f"query {n}" for n in range(9)), "a curse", "curse 2", "curse 3", None, " "]
)
TEXTS = st.sampled_from(
    [*(f"text {n}" for n in range(9)), "long words " * 25, "poison", "poison 2", None, "", " \n"]
)
NATURES = st.builds(
    Nature,
    rows=st.lists(
        st.tuples(QUERIES, st.lists(TEXTS, min_size=1, max_size=6) | st.sampled_from([None, []])),
        min_size=4,
        max_size=12,
    ),
    rows_per_part=st.integers(1, 5),
    max_documents=st.sampled_from([2, 3, 500]),
    max_tokens=st.sampled_from([80, 120_000]),
    top_n=st.sampled_from([0, 0, 2]),
    most_documents=st.sampled_from([1, 2, 500, 500]),
    names=st.booleans(),
)
WEATHERS = st.builds(
    Weather,
    faults=st.lists(st.sampled_from(FAULTS), min_size=2, max_size=5),
    share=st.sampled_from([0.0, 0.2, 0.5, 0.8]),
    seed=st.integers(0, 99),
    account_ends=st.sampled_from([0, 0, 0, 3, 9]),
    outage=st.sampled_from([0, 0, 0, 2, 8]),
)
RATES = st.fixed_dictionaries(
    {
        "max_in_flight": st.sampled_from([1, 2, 16]),
        "requests_per_minute": st.sampled_from([0, 0, 300]),
        "tokens_per_minute": st.sampled_from([0, 0, 20_000]),
    }
)
STEPS = st.just(0) | st.integers(1, 40)
DECIDING: list[dict[str, dict[str, Any]]] = [
    {"limits": {"max_documents": 499}},
    {"output": {"rows_per_part": 7}},
    {"output": {"top_n": 9}},
    {"endpoint": {"model": "gte-rerank-v2"}},
    {"endpoint": {"instruct": "another"}},
]


class Model(RuleBasedStateMachine):
    """A life, made up."""

    def __init__(self) -> None:
        super().__init__()
        place = MEMORY if MEMORY.is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="batchrank-model-", dir=place))

    @initialize(nature=NATURES, cap=st.sampled_from([inf, inf, 0.4, 1.1]), curse=st.booleans())
    def begin(self, nature: Nature, cap: float, curse: bool) -> None:
        self.life = Life(nature, self.folder)
        self.life.cap = self.life.highest_cap = cap * max(1, self.life.undisturbed_bill)
        self.life.endpoint.curse = curse

    @rule(
        session=st.builds(
            Session,
            weather=WEATHERS,
            rate=RATES,
            kill_at=STEPS,
            stop_at=STEPS,
            retry_failed=st.booleans(),
            restart=st.booleans(),
            by_priority=st.booleans(),
        )
    )
    def run(self, session: Session) -> None:
        self.life.session(session)

    @rule(
        session=st.builds(
            Session,
            weather=WEATHERS,
            rate=RATES,
            kill_at=st.integers(1, 30),
            restart=st.booleans(),
            by_priority=st.booleans(),
        )
    )
    def go_on_and_be_killed(self, session: Session) -> None:
        self.life.session(session)

    @rule(kill_at=st.integers(1, 40))
    def retry_what_can_be_healed_and_be_killed(self, kill_at: int) -> None:
        self.life.endpoint.curse = True
        self.life.session(Session())
        self.life.endpoint.curse = False
        self.life.session(Session(retry_failed=True, kill_at=kill_at))
        self.life.session(Session())

    @rule(curse=st.booleans(), share=st.sampled_from([0.7, 1.5, 3]))
    def change_the_endpoint_and_the_cap(self, curse: bool, share: float) -> None:
        self.life.endpoint.curse = curse
        self.life.cap *= share
        self.life.highest_cap = max(self.life.cap, self.life.highest_cap)

    @rule(change=st.sampled_from(DECIDING))
    def change_what_decides(self, change: dict[str, dict[str, Any]]) -> None:
        self.life.refused(change)
        self.life.other_texts()

    def teardown(self) -> None:
        try:
            if hasattr(self, "life"):
                self.life.to_the_end()
        finally:
            shutil.rmtree(self.folder)


def lived(examples: int, number: int, *, shrink: bool = True) -> None:
    """So many lives, made up from this seed."""
    chosen = hypothesis_settings(
        max_examples=examples,
        stateful_step_count=8,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(number)(Model), settings=chosen)


def test_a_life_of_faults_kills_and_restarts_ends_as_if_there_had_been_none() -> None:
    lived(EXAMPLES, SEED)


SMALL = Nature([("query", ["a", "b", "c"]), ("a curse", ["d", "e", "f"])], rows_per_part=1, top_n=2)


def killed_at_each_step(folder: Path, share_of_the_bill: float, *sessions: Session) -> int:
    """A life for each step of these sessions, ended there; how many lives that were."""
    lives = 0
    for place in range(len(sessions)):
        for step in count(1):
            life = Life(SMALL, folder / f"{place}-{step}")
            life.cap = life.highest_cap = share_of_the_bill * life.undisturbed_bill
            life.endpoint.curse = True
            for number, session in enumerate(sessions):
                code = life.session(session._replace(kill_at=step if number == place else 0))
                life.endpoint.curse = False
                if number == place and code is not None:
                    break
            life.to_the_end()
            if not life.kills:
                break
            lives += 1
    return lives


def test_killed_at_any_step_of_a_run_or_of_a_retry(tmp_path: Path) -> None:
    """Also between a part that is written again and the note of that, and with a `top_n`."""
    sessions = (Session(), Session(retry_failed=True), Session())
    assert killed_at_each_step(tmp_path, inf, *sessions) > 20


def test_killed_at_any_step_of_a_run_by_priority(tmp_path: Path) -> None:
    """And gone on with by priority, and without."""
    first = Session(by_priority=True)
    assert killed_at_each_step(tmp_path, inf, first, Session(by_priority=True), Session()) > 10


def test_what_killed_sessions_may_have_spent_is_never_forgotten(tmp_path: Path) -> None:
    """Nor by a session that itself ends well, at the cap."""
    assert killed_at_each_step(tmp_path, 1.1, Session(), Session()) > 10
