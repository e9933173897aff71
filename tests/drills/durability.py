"""Kills: at random instants, at every durable call, while recovering; and the order of answers.

What was safe on disk is never paid again, what is paid again was in flight, and the output is the
undisturbed run's.
"""

import os
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path
from random import Random

from helpers import ended, until

from drills.frame import (
    Cut,
    Drill,
    Reader,
    begun,
    cut,
    go_on,
    identical,
    instants,
    job,
    killed_within,
    last_line,
    needs,
    whole_so_far,
)
from drills.tracing import Sweep, begun_output, counts_of, output_for, picked, traced

# 1 and 7


KILLS_PER_RUN = 10
START_SECONDS = 0.5
"""A killed run's time to begin again, before it gets any further."""


def killed_at_random_instants(trials: int, seed: int, folder: Path) -> str:
    """kill -9, once a trial and up to ten times in a run's life, while a reader opens every part
    every 5 ms; and on to the end.
    """
    big = trials > 5  # the long form
    size = {"rows": 20_000, "documents": 10, "rows_per_part": 1000, "max_in_flight": 64}
    small = {"rows": 900, "rows_per_part": 300}
    random, twice, most, kills, runs, looks, opened = Random(seed), 0, 0, 0, 0, 0, 0
    with job(folder, **(size if big else small)) as one:
        out = folder / "out"
        while kills < trials:
            planned = min(KILLS_PER_RUN if big else 1, trials - kills)
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            before, cuts = one.server.ledger()["requests"], list[Cut]()
            with Reader(out, one.oracle) as reader:
                for _ in range(planned):
                    paid = one.server.ledger()["requests"]
                    longest = START_SECONDS + 1.6 * one.seconds / planned
                    if not killed_within(begun(one.command(out)), random.uniform(0, longest)):
                        break
                    safe = len(cuts[-1].safe) if cuts else 0
                    cuts.append(cut(one, out, folder / "copy"))
                    whole_so_far(one, out)
                    most += cuts[-1].requests - paid - (len(cuts[-1].safe) - safe)
                twice += go_on(one, out, *cuts, before=before)
            kills, runs = kills + len(cuts), runs + 1
            looks, opened = looks + reader.looks, opened + reader.opened
            # That a single run ended before its instant says nothing yet.
            early = runs >= 5 and kills < runs * 0.4
            assert not early, f"only {kills} kills in {runs} runs: they end too early"
    return (
        f"{kills} kills of {runs} runs, {runs} identical of {runs}, {twice:,} requests paid twice "
        f"of {most:,} in flight at the kills; the reader looked {looks:,} times and opened "
        f"{opened:,} parts, all whole"
    )


# 2


def _sweeps() -> list[Sweep]:
    checkpoint = ("pwrite64", "fdatasync", "unlink", "ftruncate")
    return [
        *(Sweep(fresh, call, "checkpoint") for fresh in (True, False) for call in checkpoint),
        Sweep(True, "fsync", "parts"),
        *(Sweep(False, call, "parts") for call in ("write", "fsync", "rename")),
    ]


def killed_at_every_durable_call(trials: int, seed: int, folder: Path) -> str:
    """Every call that makes something durable, in turn, or with fewer trials some of each kind."""
    needs("strace")
    with job(folder, rows=300, rows_per_part=50, seconds=0.01) as one:
        template = begun_output(one, folder / "begun")
        counts = counts_of(_sweeps(), one, folder, template)
        whole_sweep = trials >= sum(counts.values())
        harmed, unharmed, twice = Counter[str](), 0, 0
        for sweep, first in picked(_sweeps(), counts, trials, Random(seed)):
            for number in range(first, 10_000 if whole_sweep else first + 1):
                out = output_for(folder / "out", sweep, template)
                inject = ("-e", f"inject={sweep.call}:signal=KILL:when={number}")
                under = traced(out, sweep.files, sweep.call, folder / "log", *inject)
                before = one.server.ledger()["requests"]
                code, _, stderr = ended(begun(one.command(out), under=under), 120)
                if code == 0:
                    unharmed += 1
                    identical(one, out)
                    break
                where = f"{sweep}, call {number}"
                assert code == -signal.SIGKILL, f"{where}: ended with {code}: {last_line(stderr)}"
                harmed[sweep.call] += 1
                try:
                    whole_so_far(one, out)
                    left = cut(one, out, folder / "copy")
                    twice += go_on(one, out, left, before=before)
                except AssertionError as error:
                    raise AssertionError(f"{where}: {error}") from error
        total = harmed.total()
        assert total >= min(trials, sum(counts.values())) * 0.6, f"only {total} kills happened"
        each = ", ".join(f"{count} at {call}" for call, count in harmed.most_common())
        return (
            f"{total} kills ({each}), all identical, {twice:,} requests paid twice; "
            f"{unharmed} runs beyond the last call ended unharmed"
        )


# 3

MOST_STATE_BYTES = 5_000_000
"""SQLite's log of 1,000 pages, the answers of the open parts, a draft."""


def killed_while_recovering(trials: int, seed: int, folder: Path) -> str:
    """A kill, then one while the next run recovers, and every sixth time five of them in a row."""
    random, recovering, kills, twice, largest = Random(seed), 0, 0, 0, 0
    with job(folder, rows=1000, rows_per_part=250) as one:
        out = folder / "out"
        for trial, instant in enumerate(instants(random, trials, 0.4, 0.7 * one.seconds)):
            shutil.rmtree(out, ignore_errors=True)
            before = one.server.ledger()["requests"]
            killed_within(begun(one.command(out)), instant)
            cuts: list[Cut] = [cut(one, out, folder / "copy")]
            for _ in range(5 if trial % 6 == 0 else 1):
                received = one.server.received
                process = begun(one.command(out))
                _wait_for_the_lock(process, out)
                if killed_within(process, random.uniform(0, 0.15)):
                    kills += 1
                    recovering += one.server.received == received
                    whole_so_far(one, out)
                cuts.append(cut(one, out, folder / "copy"))
                assert cuts[-2].safe <= cuts[-1].safe, "rows that were safe are not any more"
                largest = max(largest, _state_bytes(out))
            assert largest <= MOST_STATE_BYTES, f"the state has grown to {largest:,} bytes"
            twice += go_on(one, out, *cuts, before=before)
        assert recovering, "no kill came before the first request of a resumed run"
        return (
            f"{kills} kills of resumed runs, {recovering} before their first request; {trials} "
            f"identical of {trials}, {twice:,} requests paid twice, state at most {largest:,} bytes"
        )


def _wait_for_the_lock(process: "subprocess.Popen[str]", out: Path) -> None:
    """Until a run holds the output, and is about to read what an earlier one left."""
    lock, files = str(out / "_batchrank" / "lock"), Path(f"/proc/{process.pid}/fd")

    def opened() -> bool:
        try:
            held = lock in {os.readlink(file) for file in files.iterdir()}
        except OSError:  # a file that was closed meanwhile, or a run that has ended
            held = False
        return held or process.poll() is not None

    until(opened, "the run holds the output")


def _state_bytes(out: Path) -> int:
    total = 0
    for path in (out / "_batchrank").glob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


# 10


def any_concurrency(trials: int, seed: int, folder: Path) -> str:
    """The same bytes at 1, 8 and 64 in flight, with answers that overtake each other."""
    random, broken = Random(seed), Counter[str]()
    for trial in range(trials):
        place = folder / str(trial)
        place.mkdir()
        script = SHUFFLED.format(seed=random.randrange(10**6))
        with job(place, rows=100, rows_per_part=30, faults=script) as one:
            for in_flight in (1, 8, 64):
                out = place / f"out-{in_flight}"
                command = [*one.command(out), "--max-in-flight", in_flight]
                code, _, stderr = ended(begun(command), 120)
                assert code == 0, last_line(stderr)
                identical(one, out)
            broken.update(one.server.ledger()["faults"])
    assert broken["slow"] and broken["shuffled"], f"the latencies were not shuffled: {broken}"
    figures = f"{broken['slow']:,} answers slow, {broken['shuffled']:,} with results shuffled"
    return f"{trials} identical of {trials} at 1, 8 and 64 in flight; {figures}"


SHUFFLED = """
seed = {seed}
[[fault]]
kind = "shuffled"
where = {{ probability = 0.3 }}
[[fault]]
kind = "slow"
where = {{ probability = 0.1 }}
seconds = 0.1
[[fault]]
kind = "slow"
where = {{ probability = 0.3 }}
seconds = 0.01
"""

DRILLS = [
    Drill((1, 7), "kill", killed_at_random_instants, 2, 200),
    Drill((2,), "kill-at-call", killed_at_every_durable_call, 4, 10_000),
    Drill((3,), "kill-recovery", killed_while_recovering, 1, 60),
    Drill((10,), "concurrency", any_concurrency, 1, 20),
]
