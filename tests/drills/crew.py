"""Several workers on one output, killed at random instants: one run's bytes, one account's limit.

The account's limit is the server's own: a sliding minute, which answers 429 beyond it, and it stays
up over all runs of a drill, which go one after another without a pause. That its count never ran
above the limit's pace within a run either is read from the ledger while the run goes.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from helpers import Server, ended, inside, killed, serving, until
from test_resume_after_kill import answers_in

from batchrank.state.shards import Shard
from drills.frame import Drill, Job, begun, identical, job, last_line

ANSWER_SECONDS = 0.3
BURST_SECONDS = 5
"""In so short a time each worker may have one request early and one late."""


class Size(NamedTuple):
    """Of a form of the drill: workers, kills of each, rows, and the account's limit."""

    workers: int
    kills: int
    rows: int
    requests_per_minute: int


QUICK = Size(workers=3, kills=1, rows=150, requests_per_minute=1800)
LONG = Size(workers=8, kills=3, rows=800, requests_per_minute=900)


class Worker:
    """One of them: begun, killed, begun again, and in the end let run. A thread of its own."""

    def __init__(self, crew: "Crew", shard: Shard, random: Random) -> None:
        self._crew = crew
        self._shard = shard
        self._random = random
        self.kills = self.in_flight = 0
        self.safe: set[int] = set()
        self._paid_at: dict[int, int] = {}
        self.problem: str | None = None

    def live(self) -> None:
        """Its whole life."""
        try:
            for _ in range(self._crew.size.kills):
                code = self._killed_somewhere()
                assert code in {0, -9}, f"ended with {code} before it was killed"
                self.kills += code == -9
                self._look()
            code, _, stderr = ended(begun(self._crew.command(self._shard)), 600)
            assert code == 0, f"ended with {code}: {last_line(stderr)}"
        except AssertionError as error:
            self.problem = f"worker {self._shard}: {error}"

    def _killed_somewhere(self) -> int:
        """Begin, and kill: one time in four while it starts, else while it sends."""
        live, began = self._state / "live.json", time.time()
        process = begun(self._crew.command(self._shard))
        if self._random.random() < 0.25:
            time.sleep(self._random.uniform(0, 1))
            return killed(process)

        def sends() -> bool:
            is_there = live.exists() and live.stat().st_mtime > began
            return is_there or process.poll() is not None

        until(sends, "it sends", 120)
        span = 1.5 * self._crew.seconds / (self._crew.size.kills + 1)
        time.sleep(self._random.uniform(0, span))
        return killed(process)

    @property
    def _state(self) -> Path:
        return self._crew.out / "_batchrank" / self._shard.name

    def _look(self) -> None:
        """What it had sent and not made safe, once the server has nothing more of its to do."""
        paid = self._crew.paid(self._rows)
        while True:
            time.sleep(0.2 + ANSWER_SECONDS)
            now = self._crew.paid(self._rows)
            if now == paid:
                break
            paid = now
        scratch = self._crew.out.parent / f"copy-{self._shard.number}"
        safe = answers_in(self._state, scratch) | self._crew.published(self._rows)
        assert self.safe <= safe, "rows that were safe are not any more"
        again = [row for row in self.safe if paid[row] != self._paid_at[row]]
        assert not again, f"{len(again)} rows were paid again although safe on disk"
        self.in_flight += sum(paid.values()) - sum(self._paid_at.values()) - len(safe - self.safe)
        self.safe, self._paid_at = safe, paid

    @property
    def _rows(self) -> Sequence[int]:
        size = self._crew.job.rows_per_part
        parts = self._shard.parts(len(self._crew.job.oracle))
        return [row for part in parts for row in self._crew.rows_of(part, size)]


class Crew:
    """All workers of a run, and the account that they share."""

    def __init__(self, job: Job, server: Server, size: Size, out: Path) -> None:
        self.job, self.size, self.out = job, size, out
        self.seconds = 60 * size.rows / size.requests_per_minute
        self._server = server
        self._before = self._counts()

    def command(self, shard: Shard) -> list[object]:
        return [
            *("run", self.job.source, "-o", self.out, "--base-url", self._server.base_url),
            *(*self.job.options, "--requests-per-minute", self.size.requests_per_minute),
            *("--shard", shard),
        ]

    def paid(self, rows: Sequence[int]) -> dict[int, int]:
        """How often this run has paid for each of these rows."""
        counts = self._counts()
        names = {row: self.job.contents[row] for row in rows}
        return {row: counts.get(n, 0) - self._before.get(n, 0) for row, n in names.items()}

    def _counts(self) -> dict[str, int]:
        ledger: dict[str, Any] = self._server.ledger(full=True)
        return {name: times for name, (times, _) in ledger["per_content"].items()}

    def rows_of(self, part: int, size: int) -> range:
        return range(part * size, min((part + 1) * size, len(self.job.contents)))

    def published(self, rows: Sequence[int]) -> set[int]:
        there = {int(path.stem[5:]) for path in self.out.glob("part-*.parquet")}
        return {row for row in rows if row // self.job.rows_per_part in there}


class Meter:
    """Reads the server's own count all the while."""

    def __init__(self, server: Server) -> None:
        self.seen: list[tuple[float, float, int]] = []
        self._server = server

    @contextmanager
    def reading(self) -> Iterator["Meter"]:
        over = threading.Event()

        def read() -> None:
            while not over.wait(0.1):
                asked = time.monotonic()
                count = self._server.received
                self.seen.append((asked, time.monotonic(), count))

        thread = threading.Thread(target=read, name="meter")
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()

    def most_in(self, seconds: float) -> int:
        """The most that came within so many seconds, which a stretch of readings fits in."""
        most, start = 0, 0
        for asked, _, count in self.seen:
            while asked - self.seen[start][1] > seconds:
                start += 1
            most = max(most, count - self.seen[start][2])
        return most


def shards(trials: int, seed: int, folder: Path) -> str:
    """Workers killed at random instants and begun again, run after run, under one account."""
    size = LONG if trials > 1 else QUICK
    random, kills, in_flight, twice = Random(seed), 0, 0, 0
    quota = ("--requests-per-minute", str(size.requests_per_minute), "--window", "sliding_minute")
    began = time.monotonic()
    with (
        job(folder, rows=size.rows, rows_per_part=10, max_in_flight=8) as one,
        serving("--faults", str(_slow(folder)), *quota) as server,
        Meter(server).reading() as meter,
    ):
        config = folder / "batchrank.toml"
        config.write_text(config.read_text() + "[rate]\nramp_seconds = 0\n")  # at once at the limit
        for trial in range(trials):
            crew = Crew(one, server, size, folder / f"out-{trial}")
            workers = [
                Worker(crew, Shard(number, size.workers), Random(random.random()))
                for number in range(size.workers)
            ]
            _together([worker.live for worker in workers])
            problems = [worker.problem for worker in workers if worker.problem]
            assert not problems, f"run {trial}: {'; '.join(problems)}"
            identical(one, crew.out)
            assert inside("verify", crew.out).returncode == 0
            again = sum(crew.paid(range(size.rows)).values()) - size.rows
            flying = sum(worker.in_flight for worker in workers)
            assert again <= flying, f"run {trial}: {again} paid twice, {flying} were in flight"
            kills += sum(worker.kills for worker in workers)
            in_flight, twice = in_flight + flying, twice + again
        ledger = server.ledger()
        refused = ledger["statuses"].get("429", 0)
        assert not refused, f"the account's limit was passed {refused} times"
        most, burst = meter.most_in(60), meter.most_in(BURST_SECONDS)
        assert most <= size.requests_per_minute, f"{most} requests within a minute"
        allowed = size.requests_per_minute * BURST_SECONDS / 60 + 2 * size.workers
        assert burst <= allowed, f"{burst} requests within {BURST_SECONDS} s"
        assert kills >= trials * size.workers * size.kills / 2, f"only {kills} kills happened"
    return (
        f"{size.workers} workers, {kills} kills in {trials} runs, all identical to one run's; "
        f"{ledger['received']:,} requests in {time.monotonic() - began:,.0f} s, at most {most:,} "
        f"within a minute of {size.requests_per_minute:,}, no 429; {twice:,} paid twice of "
        f"{in_flight:,} in flight"
    )


def _slow(folder: Path) -> Path:
    script = folder / "slow.toml"
    script.write_text(f'[[fault]]\nkind = "slow"\nseconds = {ANSWER_SECONDS}\n')
    return script


def _together(lives: Sequence[Any]) -> None:
    threads = [threading.Thread(target=life) for life in lives]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


DRILLS = [Drill((8,), "shards", shards, 1, 20)]
