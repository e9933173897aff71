"""Promises 14 to 17, in virtual time: never above the limits, hardly below them, calm in an outage.

The judges are the server's own models of a limit (`batchrank.server.quotas`), given the instants at
which requests were let through. An outage goes through the real Sender, Throttle, Budget and the
glue of `job` between them; only the socket is replaced, by a function of the time.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from email.utils import formatdate
from itertools import count
from math import ceil, inf
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import NamedTuple

from helpers import serving
from test_dispatch import LOST, REFUSED, error, good, plan
from test_lease_keeps_the_limit import (
    test_any_schedule_of_comings_and_goings_stays_within_every_model,
)
from test_throttle_rate import (
    Admitted,
    limits,
    refused,
    saturate,
    test_any_schedule_stays_within_every_model,
)
from virtual_time import run

from batchrank.config.settings import JobConfig, load
from batchrank.errors import TryLater
from batchrank.pacing.budget import Budget
from batchrank.pacing.circuit_breaker import Health
from batchrank.pacing.throttle import Throttle
from batchrank.records import Failed, Outcome, RequestPlan, Scored
from batchrank.sending.dispatch import Sender, dispatch
from batchrank.sending.halt import Halt
from batchrank.sending.http_client import connected
from batchrank.sending.paced_endpoint import Link
from batchrank.sending.verdicts import Answered, Exchange
from batchrank.server.quotas import Quota, fixed_minute, growth, sliding_minute
from batchrank.state.history import Series
from drills.frame import Drill

MINUTES = {"fixed minute": fixed_minute, "sliding minute": sliding_minute}


@contextmanager
def told(trial: int, what: str = "") -> Iterator[None]:
    """Whatever breaks in the block says in which trial, and what was special about it."""
    try:
        yield
    except AssertionError as error:
        special = f" ({what})" if what else ""
        raise AssertionError(f"trial {trial}{special}: {error}") from error


# 14


def schedules(trials: int, seed: int, folder: Path) -> str:
    """Random schedules against each model of a limit: nothing that we let through is refused."""
    needs = []
    for trial in range(trials):
        with told(trial):
            test_any_schedule_stays_within_every_model(seed * 1_000_000 + trial)
        if trial % 10 == 0:
            with told(trial):
                needs.append(_growth_stays_below(Random(f"{seed}:{trial}")))
    return (
        f"{trials} schedules, {len(needs)} of them on the slope, 0 refused; the slope (twice the "
        f"second before) passes ramps where it starts from {max(needs):.2f} x (2 requests and 1/4 "
        "of a second's allowance), at the start, after a pause and after an idle gap"
    )


def leases(trials: int, seed: int, folder: Path) -> str:
    """Workers that share an account, come, go and are killed, and so does their coordinator."""
    logging.getLogger("batchrank.account.worker").setLevel(logging.ERROR)  # who is lost is known
    for trial in range(trials):
        with told(trial):
            test_any_schedule_of_comings_and_goings_stays_within_every_model(
                seed * 1_000_000 + trial
            )
    return f"{trials} schedules of 1 to 13 workers, 0 refused, the account used at each end"


def _growth_stays_below(random: Random) -> float:
    """Ramps at the start, after pauses, idle gaps and restarts against a growth limit that always
    lets two requests and a quarter of a second's allowance through. The share of it that it must.
    """
    rpm = round(10 ** random.uniform(2.5, 4.5))
    pauses = [random.uniform(2, 40) for _ in range(random.randint(0, 3))]
    sessions = random.randint(1, 2)

    async def schedule() -> Admitted:
        clock = asyncio.get_running_loop().time
        admitted: Admitted = []
        for _ in range(sessions):
            throttle = Throttle(limits(rpm, ramp_seconds=10))
            for pause in [0.0, *pauses]:
                if pause and random.random() < 0.5:
                    throttle.throttled(clock(), pause)
                elif pause:
                    await asyncio.sleep(pause)
                end = clock() + pause + random.uniform(1, 14)
                while clock() < end:
                    waiter = asyncio.create_task(throttle.admit(1))
                    if random.random() < 0.001:
                        await asyncio.sleep(0)
                        waiter.cancel()
                    await asyncio.gather(waiter, return_exceptions=True)
                    if not waiter.cancelled():
                        admitted.append((waiter.result(), 1))
            await asyncio.sleep(2)
        return admitted

    admitted = run(schedule())
    base = ceil(rpm / 60 / 4) + 2
    assert refused(admitted, Quota(growth(base))) == 0, f"growth from base {base} at {rpm} RPM"
    return _least_base(admitted, rpm) / base


def _least_base(admitted: Admitted, rpm: float) -> int:
    """The smallest base of the growth model that refuses none of the admitted."""
    low, high = 0, 2 * ceil(rpm / 60) + 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if refused(admitted, Quota(growth(middle))) else (low, middle)
    return high


# 15


def full_rate(trials: int, seed: int, folder: Path) -> str:
    """Half an hour at the limit: 98 % of it used, and nobody waits much longer than he must."""
    shares, waits = [], []
    for trial in range(trials):
        random = Random(f"{seed}:{trial}")
        rpm = round(10 ** random.uniform(2.8, 4.3)) if trial else 5400
        tpm = round(10 ** random.uniform(5, 9)) if trial else 1_000_000
        mixed = [random.randint(1, tpm // 100) for _ in range(50)]
        with told(trial):
            shares.append(_share(saturate(limits(rpm, ramp_seconds=10), [1], 1800), rpm, 1))
            for sizes in ([tpm // 200], mixed):
                admitted = saturate(limits(tpm=tpm), sizes, 1800)
                shares.append(_share(admitted, 0, tpm))
            waits.append(_longest_wait(random))
    with told(trials):
        _cancelled(10_000, Random(seed))
    return (
        f"{trials} x 30 minutes at RPM, TPM and mixed TPM: {min(shares):.4f} of the rate at the "
        f"least, waits {max(waits):.3f} of the ideal at the most, 10,000 cancels left nothing"
    )


def _share(admitted: Admitted, rpm: float, tpm: float) -> float:
    """What part of half an hour's allowance was used; the models refuse none of it."""
    used = sum(size for _, size in admitted) / (30 * (rpm or tpm))
    assert 0.98 <= used <= 1, f"{used:.4f} of {rpm} RPM or {tpm} TPM"
    for name, window in MINUTES.items():
        count = refused(admitted, Quota(window(rpm, 0 if rpm else tpm)), 31.7)
        assert count == 0, f"{name}: {count} refused at {rpm} RPM or {tpm} TPM"
    return used


def _longest_wait(random: Random) -> float:
    """Many who ask at once and again: the longest wait as a share of what is ahead in the queue."""
    rpm, tpm, users = 6000, 60_000_000, 64
    sizes = [random.choice([100, 1_000, 20_000]) for _ in range(1000)]

    async def crowd() -> float:
        throttle = Throttle(limits(rpm, tpm))
        clock = asyncio.get_running_loop().time
        worst = work = done = 0.0

        async def user() -> None:
            nonlocal worst, work, done
            while clock() < 60:
                size = random.choice(sizes)
                share = max(60 / rpm, size * 60 / tpm)
                asked, work = clock(), work + share
                ideal = work - done
                await throttle.admit(size)
                done += share
                # 0.05 s: what a bunch, a bucket and a timer may add to any wait, however short
                worst = max(worst, (clock() - asked - 0.05) / ideal)

        async with asyncio.TaskGroup() as group:
            for _ in range(users):
                group.create_task(user())
        return worst

    worst = run(crowd())
    assert worst <= 1.1, f"a request waited {worst:.2f} of its ideal"
    return worst


def _cancelled(cancels: int, random: Random) -> None:
    """Everybody gives up while waiting; then the rate is what it was, from the first request on."""

    async def cancelled() -> None:
        throttle = Throttle(limits(6000, 6_000_000))
        clock = asyncio.get_running_loop().time
        for _ in range(cancels // 100):
            waiters = [asyncio.create_task(throttle.admit(1_000)) for _ in range(100)]
            await asyncio.sleep(random.uniform(0, 0.02))
            for waiter in waiters:
                waiter.cancel()
            await asyncio.gather(*waiters, return_exceptions=True)
        assert len(asyncio.all_tasks()) == 1, "a task was left behind"
        began = clock()
        for _ in range(100):
            await throttle.admit(1_000)
        assert 0.98 <= clock() - began <= 1.1, f"100 at 100 a second took {clock() - began:.3f} s"

    run(cancelled())


def connections(trials: int, seed: int, folder: Path) -> str:
    """Requests cancelled on their way, over real sockets: no connection and no place is lost."""
    random = Random(seed)
    script = folder / "stall.toml"
    script.write_text('[[fault]]\nkind = "stall"\nwhere = { marker = "stall" }\n')
    cancels = 200 * trials
    with serving("--faults", str(script)) as server:
        asyncio.run(_cancel_on_the_way(server.base_url, cancels, random))
        stalled = server.ledger()["faults"].get("stall", 0)
    assert stalled > cancels / 10, f"only {stalled} requests were on their way"
    return f"{cancels} requests cancelled, {stalled} of them on their way: 8 places of 8 are free"


async def _cancel_on_the_way(base_url: str, cancels: int, random: Random) -> None:
    def body(text: str) -> bytes:
        return json.dumps({"model": "qwen3-rerank", "query": text, "documents": ["d"]}).encode()

    async with connected(
        base_url + "/reranks", {}, timeout_seconds=30, max_in_flight=8
    ) as transport:
        await transport.exchange(body("good"), 1)
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(cancels // 50):
            tasks = [
                asyncio.create_task(transport.exchange(body(f"stall {random.random()}"), 1))
                for _ in range(50)
            ]
            await asyncio.sleep(random.uniform(0, 0.05))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        answers = await asyncio.wait_for(
            asyncio.gather(*(transport.exchange(body(f"good {n}"), 1) for n in range(64))), 20
        )
        assert all(isinstance(one, Answered) and one.status == 200 for one in answers)
        after = len(list(Path("/proc/self/fd").iterdir()))
        assert after - before <= 8, f"{after - before} open files more than before"
        assert len(asyncio.all_tasks()) == 1, "a task was left behind"


# 16 and 17


class Told(NamedTuple):
    """What a session came to."""

    sent: list[float]
    answered: list[float]
    outcomes: list[Outcome]
    halt: Halt


class _Wire:
    """Stands for the socket: what `answer` says of the time and the documents, after a while."""

    def __init__(self, answer: Callable[[float, list[str]], Exchange], seconds: float) -> None:
        self._answer = answer
        self._seconds = seconds
        self.sent: list[float] = []
        self.answered: list[float] = []

    async def exchange(self, body: bytes, documents: int) -> Exchange:
        clock = asyncio.get_running_loop().time
        self.sent.append(clock())
        await asyncio.sleep(self._seconds)
        answer = self._answer(clock(), json.loads(body)["documents"])
        if isinstance(answer, Answered) and answer.status == 200:
            self.answered.append(clock())
        return answer


def _session(
    answer: Callable[[float, list[str]], Exchange],
    *,
    until: float,
    rpm: float,
    plans: int | None = None,
    max_in_flight: int = 64,
    seconds: float = 0.3,
    max_outage_seconds: float = inf,
    seed: str = "",
) -> Told:
    """A whole session over a wire of ours: so many plans, or as many as go until then."""
    config = load(None, {"rate": {"requests_per_minute": rpm, "max_in_flight": max_in_flight}})

    async def session() -> Told:
        halt = Halt()
        wire = _Wire(answer, seconds)
        outcomes: list[Outcome] = []
        throttle = Throttle(config.rate, max_outage_seconds=max_outage_seconds)
        link = _link(config, wire, throttle, halt)
        sender = Sender(link, max_in_flight=max_in_flight, halt=halt, random=Random(seed))
        clock = asyncio.get_running_loop().time

        async def source() -> AsyncIterator[Sequence[RequestPlan]]:
            for row in count() if plans is None else range(plans):
                if plans is None and clock() >= until:
                    return
                yield [plan(row, f"{row % 1000} text")]

        await dispatch(
            source(),
            board=sender.board,
            settle=sender.settle,
            record=lambda plan, outcome: outcomes.append(outcome),
            max_in_flight=max_in_flight,
            halt=halt,
        )
        assert len(asyncio.all_tasks()) == 1, "a task was left behind"
        return Told(wire.sent, wire.answered, outcomes, halt)

    return run(session())


def _link(config: JobConfig, wire: _Wire, throttle: Throttle, halt: Halt) -> Link:
    checkpoint = SimpleNamespace(is_behind=False)  # all that is asked of it without a cap
    series = Series(Path("nowhere"), 0.0, 0.0)
    return Link(config, wire, throttle, Budget(), checkpoint, halt, series)  # type: ignore[arg-type]


TROUBLES: dict[str, Exchange] = {
    "429": error(429, "Throttling.RateQuota"),
    "503": error(503, "ModelUnavailable"),
    "502 page": Answered(502, b"<html>"),
    "lost": LOST,
    "refused": REFUSED,
}


def outage(trials: int, seed: int, folder: Path) -> str:
    """Ten minutes of nothing but trouble: few requests, no failed row, and soon the full rate."""
    most, least, began, minutes = 0.0, 1.0, 70.0, 10
    for trial in range(trials):
        random = Random(f"{seed}:{trial}")
        name = list(TROUBLES)[trial % len(TROUBLES)]
        rpm = random.choice([600, 3000, 5400])
        seconds = random.uniform(0.05, 0.5)
        healed = began + 60 * minutes
        with told(trial, name):
            told_by = _session(
                lambda now, texts, trouble=TROUBLES[name], healed=healed: (
                    trouble if began <= now < healed else good(texts)
                ),
                until=healed + 65,
                rpm=rpm,
                seconds=seconds,
                seed=f"{seed}:{trial}",
            )
            during = sum(began <= instant < healed for instant in told_by.sent)
            probes = minutes * 60 / Health.PROBE_SECONDS
            budget = 64 + 64 + probes + 1  # credit, in flight, a probe every five seconds
            assert probes / 2 <= during <= budget, f"{during} sent, {budget:.0f} allowed"
            soon = sum(healed + 50 <= instant < healed + 60 for instant in told_by.answered)
            recovered = soon / (rpm / 60 * 10)
            assert recovered >= 0.9, f"{recovered:.2f} of the rate a minute after healing"
            _none_failed(told_by)
            most, least = max(most, during / budget), min(least, recovered)
    with told(trials, "refused for 30 minutes"):
        told_by = _session(
            lambda now, texts: REFUSED if now < 1800 else good(texts), until=0, plans=2000, rpm=5400
        )
        _none_failed(told_by)
        assert sum(isinstance(one, Scored) for one in told_by.outcomes) == 2000
        stopped = _session(lambda now, texts: REFUSED, until=1e9, rpm=5400, max_outage_seconds=900)
        assert isinstance(stopped.halt.reason, TryLater)
        assert 900 - Health.PROBE_SECONDS <= stopped.sent[-1] <= 910
        _none_failed(stopped)
    return (
        f"{trials} outages of 10 minutes: {most:.2f} of the retry budget sent at the most, "
        f"{least:.3f} of the rate within a minute of healing at the least, 0 failed rows; "
        "30 minutes of refused connections: 0 failed rows, or 75 after max_outage"
    )


def _none_failed(session: Told) -> None:
    failed = [one for one in session.outcomes if isinstance(one, Failed)]
    assert not failed, f"{len(failed)} failed, the first: {failed[0].reason}"


def retry_after(trials: int, seed: int, folder: Path) -> str:
    """Whatever a Retry-After says in whatever form, nothing goes earlier than it asks."""
    asked_for = {"seconds": 0, "date": 0, "garbage": 0, "huge": 0}
    for trial in range(trials):
        random = Random(f"{seed}:{trial}")
        form = list(asked_for)[trial % len(asked_for)]
        header, date, asked = _header(form, random)
        with told(trial, f"Retry-After: {header}"):
            _obeyed(header, date, asked, random)
        asked_for[form] += 1
    return ", ".join(f"{times} x {form}" for form, times in asked_for.items()) + ": none earlier"


GARBAGE = ["soon", "", "-5", "nan", "-inf", "1e400", "7 seconds", "Mon, 99 Foo 2026", "\u0664x"]


def _header(form: str, random: Random) -> tuple[str, str | None, float]:
    """A header, the answer's `Date`, and the seconds that it asks for."""
    # Anything from two years behind to two years ahead of the clock of this machine.
    servers_now = 1_800_000_000 + random.randint(-(10**8), 10**8)
    date = formatdate(servers_now, usegmt=True)
    match form:
        case "seconds":
            seconds = random.choice([random.randint(0, 300), round(random.uniform(0, 90), 3)])
            return str(seconds), random.choice([None, date]), float(seconds)
        case "date":
            wait = random.randint(-1000, 300)
            return formatdate(servers_now + wait, usegmt=True), date, max(0.0, float(wait))
        case "garbage":
            return random.choice(GARBAGE), date, 0.0
        case _:
            years = formatdate(servers_now + 10**9, usegmt=True)
            return random.choice(["86400", "1e12", "99999999999999", years]), date, inf


def _obeyed(header: str, date: str | None, asked: float, random: Random) -> None:
    """The tenth request is answered 429 with this header; those on their way are let be."""
    seconds, trouble_at = random.uniform(0.05, 0.3), []
    body = json.dumps({"code": "Throttling.RateQuota", "message": ""}).encode()
    numbers = count(1)

    def answer(now: float, texts: list[str]) -> Exchange:
        if next(numbers) != 10:
            return good(texts)
        trouble_at.append(now)
        return Answered(429, body, header, date)

    session = _session(
        answer,
        until=0,
        plans=60,
        rpm=random.choice([0, 600, 6000]),
        max_in_flight=random.choice([1, 4, 16]),
        seconds=seconds,
        max_outage_seconds=900,
        seed=header,
    )
    (at,) = trouble_at
    later = [instant for instant in session.sent if instant > at + 1e-4]
    if asked == inf:
        assert isinstance(session.halt.reason, TryLater), "a pause of years must end the run"
        assert not later, f"sent {later[0] - at:.3f} s after it was asked to wait for years"
    else:
        assert session.halt.reason is None
        assert later and min(later) >= at + asked, f"{min(later) - at:.3f} s, not {asked}"
        assert min(later) <= at + asked + 61, "waited much longer than asked"
        assert len(session.outcomes) == 60
    _none_failed(session)


DRILLS: Sequence[Drill] = [
    Drill((14,), "schedules", schedules, 200, 10_000),
    Drill((14,), "leases", leases, 10, 2_000),
    Drill((15,), "full-rate", full_rate, 1, 6),
    Drill((15,), "cancelled-requests", connections, 2, 50),
    Drill((16,), "outage", outage, 3, 40),
    Drill((17,), "retry-after", retry_after, 80, 4_000),
]
