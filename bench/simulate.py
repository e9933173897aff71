"""Many workers under one account, in virtual time: the rate reached, 429s, and what deaths cost.

The planner, the throttles, the leases and the coordinator are the real ones, on the stage of
tests/account.py; not there are sockets, Parquet, and a processor that could be too slow. The judges
are the server's own models of a limit (minute fixed and sliding, second), given every request.

Simulated request by request: for each account and number of workers a story, all of them busy, in
which a tenth of the workers are killed and come back, and then the coordinator; the same with half
of them idle for the smallest account; at 600,000 requests a minute only a steady stretch. By
arithmetic: 10^9 pairs at the rate of the steady stretch. Leases do not know how long a job is: with
it only the number of deaths grows.
"""

import argparse
import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from math import ceil
from random import Random
from statistics import median
from typing import NamedTuple

import pyarrow.parquet as pq
from account import Account, Worker
from virtual_time import run

from batchrank.config.limits import RateLimits
from batchrank.config.settings import load
from batchrank.records import Row
from batchrank.server.quotas import WINDOWS, Quota
from batchrank.session.request import planner_of
from bench.measure import ROOT
from bench.picture import draw
from bench.results import Results, Run, Verdict

ACCOUNTS = (5_400, 60_000, 600_000)
WORKERS = (1, 10, 100, 1_000)
PAIRS = 10**9
ANSWER_SECONDS = 0.3
LARGEST_STORY = 60_000
STEADY = (22, 34)
EVENTS = {"workers killed": 35, "back": 50, "coordinator killed": 75, "back again": 80}
STORY_SECONDS, STEADY_SECONDS = 110, 24
SAMPLE = ROOT / "samples" / "scifact" / "rows.parquet"


class Requests(NamedTuple):
    """What the planner makes of rows of real texts: pairs and tokens of a request, in the mean."""

    candidates: int
    per_row: float
    pairs: float
    tokens: float


def planned(candidates: int) -> Requests:
    """Rows of so many candidates: a query of SciFact with its own and its neighbours' abstracts."""
    rows = pq.read_table(SAMPLE, columns=["query", "candidates"]).to_pylist()
    texts = [[one["text"] for one in row["candidates"]] for row in rows]
    planner = planner_of(load(None, {"endpoint": {"provider": "dashscope"}}), exact=True)
    plans = pairs = tokens = 0
    for index, row in enumerate(rows):
        found: dict[str, None] = {}
        for other in range(len(rows)):
            found |= dict.fromkeys(texts[(index + other) % len(rows)])
            if len(found) >= candidates:
                break
        made = planner.plan(Row(index, row["query"], list(found)[:candidates])).plans
        plans += len(made)
        pairs += sum(len(plan.documents) for plan in made)
        tokens += sum(plan.estimate for plan in made)
    return Requests(candidates, plans / len(rows), pairs / plans, tokens / plans)


def told(rpm: int, workers: int, half: bool) -> Run:
    """One run on the stage, judged."""
    began = time.process_time()
    story = rpm <= LARGEST_STORY
    account = run(_told(rpm, workers, half, STORY_SECONDS if story else STEADY_SECONDS))
    seconds = STORY_SECONDS if story else STEADY_SECONDS
    counts = Counter(int(instant) for instant, _ in account.admitted)
    sent = [counts[second] for second in range(seconds)]
    start, stop = STEADY if story else (STEADY_SECONDS - 4, STEADY_SECONDS)
    rate = sum(sent[start:stop]) * 60 / (stop - start)
    quotas = [Quota(window(rpm)) for window in WINDOWS.values()]
    refused = sum(
        quota.admit(at, size) is not None for quota in quotas for at, size in account.admitted
    )
    lost = [1 - count * 60 / rate for count in sent]
    killed, coordinator = EVENTS["workers killed"], EVENTS["coordinator killed"]
    return {
        "requests_per_minute": rpm,
        "workers": workers,
        "busy": workers // 2 if half else workers,
        "story": story,
        "simulated_requests": len(account.admitted),
        "simulated_seconds": seconds,
        "rate": rate,
        "refused": refused,
        "ramp_lost": sum(lost[:start]),
        "workers_lost": sum(lost[killed:coordinator]) if story else None,
        "coordinator_lost": sum(lost[coordinator:]) if story else None,
        "lowest_ten": _lowest_ten(sent, coordinator) if story else None,
        "cpu_seconds": time.process_time() - began,
        "sent": sent,
        "events": EVENTS if story else {},
    }


def _lowest_ten(sent: Sequence[int], start: int) -> int:
    """The fewest requests in any ten seconds from `start` on."""
    return min(sum(sent[at : at + 10]) for at in range(start, len(sent) - 9))


def _worker(account: Account, number: int, half: bool) -> Worker:
    """A worker with room for what its share, and as much again, has on its way."""
    rate = account.rate.requests_per_minute / 60 * (1 + half)
    return account.worker(
        number,
        busy=not (half and number % 2),
        in_flight=min(4096, 4 + ceil(2 * ANSWER_SECONDS * rate / account.workers)),
        answer_seconds=ANSWER_SECONDS,
    )


async def _told(rpm: int, workers: int, half: bool, seconds: int) -> Account:
    """The story, up to so many seconds."""
    account = Account(RateLimits(requests_per_minute=rpm, ramp_seconds=10), workers, Random(7))
    account.begin()
    crew = [_worker(account, number, half) for number in range(workers)]
    few = range(0, workers, 10)
    clock = asyncio.get_running_loop().time

    async def workers_killed() -> None:
        await _over([crew[number] for number in few])

    async def back() -> None:
        for number in few:
            crew[number] = _worker(account, number, half)

    async def coordinator_killed() -> None:
        account.kill()

    async def back_again() -> None:
        account.begin()

    happenings = (workers_killed, back, coordinator_killed, back_again)
    for instant, happen in zip(EVENTS.values(), happenings, strict=True):
        if instant < seconds:
            await asyncio.sleep(instant - clock())
            await happen()
    await asyncio.sleep(seconds - clock())
    await _over(crew)
    return account


async def _over(crew: Sequence[Worker]) -> None:
    for worker in crew:
        await worker.kill()


def report(runs: Sequence[Run], requests: Sequence[Requests]) -> str:
    """The table: what was simulated, and what follows for 10^9 pairs."""
    lines = [
        "Simulated, request by request (lost: seconds of the account's rate):",
        "",
        "| limit, RPM | workers | busy | seconds | requests | rate reached | 429 | lost: ramp | "
        "a tenth killed for 15 s | coordinator killed for 5 s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in runs:
        limit = one["requests_per_minute"]
        deaths = [
            "not simulated" if one[name] is None else f"{one[name]:.1f}"
            for name in ("workers_lost", "coordinator_lost")
        ]
        lines.append(
            f"| {limit:,} | {one['workers']:,} | {one['busy']:,} | {one['simulated_seconds']} | "
            f"{one['simulated_requests']:,} | {one['rate'] / limit:.2%} | {one['refused']} | "
            f"{one['ramp_lost']:.1f} | {deaths[0]} | {deaths[1]} |"
        )
    lines += [
        "",
        "By arithmetic, 10^9 pairs at the median of these rates (requests as the planner makes "
        "them of SciFact's texts under qwen3-rerank's limits):",
        "",
        "| candidates a row | requests a row | pairs a request | tokens a request | requests | "
        + " | ".join(f"hours at {limit:,} RPM" for limit in ACCOUNTS)
        + " | million tokens |",
        "|" + "---|" * (6 + len(ACCOUNTS)),
    ]
    for kind in requests:
        total = PAIRS / kind.pairs
        hours = [
            total / median(r["rate"] for r in runs if r["requests_per_minute"] == limit) / 60
            for limit in ACCOUNTS
        ]
        lines.append(
            f"| {kind.candidates} | {kind.per_row:.2f} | {kind.pairs:.1f} | {kind.tokens:,.0f} | "
            f"{total:,.0f} | {' | '.join(f'{h:,.1f}' for h in hours)} | "
            f"{total * kind.tokens / 1e6:,.0f} |"
        )
    return "\n".join(lines)


def verdicts(runs: Sequence[Run]) -> list[Verdict]:
    """What the simulation is to show."""
    refused = sum(one["refused"] for one in runs)
    least = min(one["rate"] / one["requests_per_minute"] for one in runs)
    total = sum(one["simulated_requests"] for one in runs)
    return [
        Verdict(refused == 0, f"{refused} of {total:,} requests refused by any model of the limit"),
        Verdict(least >= 0.95, f"{least:.2%} of the limit at the least in the steady stretch"),
        Verdict(
            all(one["lowest_ten"] for one in runs if one["story"]),
            "no ten seconds without a request, whoever is lost",
        ),
    ]


def _cell(one: Run) -> tuple[int, int, bool]:
    return one["requests_per_minute"], one["workers"], one["busy"] < one["workers"]


def _quiet() -> None:
    """Who is lost is known."""
    logging.getLogger("batchrank.account.worker").setLevel(logging.ERROR)


def main() -> None:
    options = argparse.ArgumentParser(
        description="Many workers under one account, in virtual time. What is run again replaces "
        "its own line of the table."
    )
    options.add_argument("--accounts", type=int, nargs="*", default=ACCOUNTS, metavar="RPM")
    options.add_argument("--workers", type=int, nargs="*", default=WORKERS, metavar="N")
    asked = options.parse_args()
    results = Results(ROOT / "bench" / "results")
    cells = [(rpm, workers, False) for rpm in asked.accounts for workers in asked.workers]
    cells += [(min(asked.accounts), workers, True) for workers in asked.workers if workers > 1]
    with ProcessPoolExecutor(2, initializer=_quiet) as pool:
        runs = list(pool.map(told, *zip(*cells, strict=True)))
    kept = [one for one in results.runs("simulate") if _cell(one) not in cells]
    runs = sorted([*kept, *runs], key=lambda one: (one["busy"] < one["workers"], _cell(one)))
    results.begin("simulate")
    for one in runs:
        results.keep("simulate", one)
    requests = [planned(candidates) for candidates in (100, 500)]
    results.write("simulate", report(runs, requests), verdicts(runs))
    draw(results, "simulate")


if __name__ == "__main__":
    main()
