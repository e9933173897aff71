"""A server whose limit is lower than the configured one and told nowhere, in virtual time.

The judges are the server's own windows, and two more: a bucket that holds one request, and a number
of requests at once. What a real Throttle makes of their bare 429s is measured here.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from itertools import combinations_with_replacement, pairwise
from random import Random
from typing import NamedTuple

from virtual_time import run

from batchrank.config.limits import RateLimits
from batchrank.pacing.throttle import Throttle
from batchrank.server.quotas import FixedWindow, SlidingWindow, Window

CONFIGURED = RateLimits(requests_per_minute=5400)
MINUTE, SECOND, BUCKET_PER_SECOND = 1800, 33, 31.5
AT_ONCE, ANSWER_SECONDS = 28, 0.72
MINUTES = 5
_WARM_UP_SECONDS = 20.0


class Bucket:
    """Holds one request's worth and fills at so many a second."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._level, self._since = 1.0, 0.0

    def fits(self, now: float, amount: float) -> bool:
        self._level = min(1.0, self._level + (now - self._since) * self._per_second)
        self._since = now
        return self._level >= 1 - 1e-9

    def take(self, now: float, amount: float) -> None:
        self._level -= amount


class AtOnce:
    """At most so many requests between their arrival and their answer."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.under_way = 0

    def fits(self, now: float, amount: float) -> bool:
        return self.under_way < self._most

    def take(self, now: float, amount: float) -> None:
        self.under_way += 1


class Model(NamedTuple):
    """One kind of limit, and how many requests a second it comes to."""

    name: str
    window: Callable[[], Window]
    per_second: float


MODELS = (
    Model("fixed minute", lambda: FixedWindow(MINUTE, 60), MINUTE / 60),
    Model("sliding minute", lambda: SlidingWindow(MINUTE, 60), MINUTE / 60),
    Model("second", lambda: FixedWindow(SECOND, 1), SECOND),
    Model("bucket of one", lambda: Bucket(BUCKET_PER_SECOND), BUCKET_PER_SECOND),
    Model("concurrency", lambda: AtOnce(AT_ONCE), AT_ONCE / ANSWER_SECONDS),
)
PAIRS = tuple(combinations_with_replacement(MODELS, 2))


class Result(NamedTuple):
    """What a run came to: share of the true limit used, share refused, longest stall (seconds)."""

    used: float
    refused: float
    stall: float

    @property
    def is_kept(self) -> bool:
        """Whether promise 35 holds."""
        return self.used >= 0.95 and self.refused < 0.01 and self.stall <= 5


class Server:
    """Asks every model of the pair at the arrival of a request."""

    def __init__(self, pair: tuple[Model, ...], random: Random, start: float) -> None:
        self.windows = [model.window() for model in dict.fromkeys(pair)]
        self._random = random
        self._start = start
        self._clock = asyncio.get_running_loop().time
        self.let_in: list[float] = []
        self.refused: list[float] = []

    async def answer(self) -> bool:
        """Whether the request was let in, after the time that its answer takes."""
        await asyncio.sleep(self._random.uniform(0.0049, 0.0051))
        now = self._clock()
        if not all(window.fits(self._start + now, 1) for window in self.windows):
            self.refused.append(now)
            await asyncio.sleep(self._random.uniform(0.01, 0.06))
            return False
        for window in self.windows:
            window.take(self._start + now, 1)
        self.let_in.append(now)
        await asyncio.sleep(ANSWER_SECONDS * self._random.uniform(0.7, 1.3) - 0.01)
        for window in self.windows:
            if isinstance(window, AtOnce):
                window.under_way -= 1
        await asyncio.sleep(0.005)
        return True


def send_for(
    pair: tuple[Model, ...], seed: int, start: float, after: float | None = None
) -> Server:
    """Keep a throttle busy against a pair of models; return the server with what it saw."""
    seconds = 60 * (MINUTES + 1) + _WARM_UP_SECONDS

    async def session() -> Server:
        server = Server(pair, Random(f"{seed}:{start}"), start)
        throttle = Throttle(CONFIGURED)
        clock = asyncio.get_running_loop().time
        places = asyncio.Semaphore(CONFIGURED.max_in_flight)

        async def send() -> None:
            try:
                sent_at = await throttle.admit(1)
                if await server.answer():
                    throttle.succeeded(sent_at)
                else:
                    throttle.throttled(sent_at, after)
                    throttle.failed("429", broken=False, sent_at=sent_at)
            finally:
                places.release()

        tasks = set()
        async with asyncio.TaskGroup() as group:
            while clock() < seconds:
                await places.acquire()
                task = group.create_task(send())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            for task in tasks:
                task.cancel()
        return server

    return run(session())


def measure(pair: tuple[Model, ...], seed: int, start: float, after: float | None = None) -> Result:
    """What part of the true limit was used over five minutes, and what it cost."""
    server = send_for(pair, seed, start, after)
    since = _counted_from(pair, server, start)
    until = since + 60 * MINUTES
    counted = [instant for instant in server.let_in if since <= instant < until]
    refused = sum(instant < until for instant in server.refused)
    total = refused + sum(instant < until for instant in server.let_in)
    true = min(model.per_second for model in pair)
    ends = [since, *counted, until]
    return Result(
        len(counted) / (true * 60 * MINUTES),
        refused / total,
        max(later - sooner for sooner, later in pairwise(ends)),
    )


def _counted_from(pair: tuple[Model, ...], server: Server, start: float) -> float:
    """Twenty seconds, or the end of the first used-up minute where nothing keeps it from that."""
    names = {model.name for model in pair}
    if not names <= {"fixed minute", "sliding minute", "concurrency"} or names == {"concurrency"}:
        return _WARM_UP_SECONDS
    if "sliding minute" in names:
        return server.let_in[0] + 60
    return _end_of_used_minute(server.let_in, start)


def _end_of_used_minute(let_in: list[float], start: float) -> float:
    """The end of the first fixed minute of which all was used."""
    minutes = Counter(int((start + instant) // 60) for instant in let_in)
    return 60 * (1 + next(one for one in sorted(minutes) if minutes[one] >= MINUTE)) - start


def table(results: dict[str, Result]) -> str:
    """The results as lines of a table."""
    lines = ["| models | used | refused | longest stall |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {one.used:.1%} | {one.refused:.2%} | {one.stall:.1f} s |"
        + ("" if one.is_kept else " **x**")
        for name, one in results.items()
    ]
    return "\n".join(lines)


def worst(pair: tuple[Model, ...], trials: int, seed: int, after: float | None = None) -> Result:
    """The worst of each figure over so many trials, the server's minute moved in each."""
    found = []
    for trial in range(trials):
        start = Random(f"{seed}:{trial}").uniform(0, 60) if trial else 0.0
        found.append(measure(pair, seed + trial, start, after))
    return Result(
        min(one.used for one in found),
        max(one.refused for one in found),
        max(one.stall for one in found),
    )


def name_of(pair: tuple[Model, ...]) -> str:
    """The names of a pair's models."""
    return " + ".join(model.name for model in dict.fromkeys(pair))


if __name__ == "__main__":
    import sys

    trials = int(sys.argv[1])
    after = float(sys.argv[2]) if len(sys.argv) > 2 else None
    print(table({name_of(pair): worst(pair, trials, 7, after) for pair in PAIRS}))
