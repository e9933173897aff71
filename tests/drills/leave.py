"""Promise 36: a stop is heard in time, whatever hangs; nothing half is published by leaving.

The library of `slow_disk.c` makes a call hang for longer than the drill lasts. Each run is stopped
while it hangs, by SIGTERM or by Ctrl-C twice, and goes on afterwards where nothing hangs.
"""

import shutil
import signal
import subprocess
import time
from pathlib import Path
from random import Random
from typing import NamedTuple

import pyarrow.parquet as pq
from helpers import ended, fast, part_bytes, serving, started, table, until, written

from drills.frame import Drill, Patch, breaks, environment, last_line, patched
from drills.pace import told
from drills.slow_disk import slow_calls

ROWS = 400
MOST_SECONDS = 4.0
MOST_SECONDS_AGAIN = 1.0
NOISE_SECONDS = 1.0
"""A machine that is busy with other things; what hangs does so for a minute."""


class Hang(NamedTuple):
    """What hangs; `when_stopped`: only once a signal has come."""

    name: str
    calls: dict[str, str]
    when_stopped: bool = False
    url: str = ""


HANGS = [
    Hang("a look-up", {"SLOW_LOOKUP": "60 rerank.example"}, url="https://rerank.example/v1"),
    Hang("a sync of the checkpoint", {"SLOW_SYNC": "60 checkpoint"}),
    Hang("the receipt", {"SLOW_SYNC": "60 _run.json"}, when_stopped=True),
    Hang("reading the input", {"SLOW_READ": "60 in.parquet"}),
    Hang("live figures", {"SLOW_RENAME": "60 live.json"}),
    Hang("a sync of a part", {"SLOW_SYNC": "60 .parquet"}),
    Hang("a rename of a part", {"SLOW_RENAME": "60 part-"}),
    Hang("writing a part", {"SLOW_WRITE": "60 part-"}),
]


def leave(trials: int, seed: int, folder: Path) -> str:
    """Each kind of hang in turn, stopped and gone on with."""
    source = written(folder / "in.parquet", table(ROWS, tag="leave"))
    config, script = folder / "c.toml", folder / "faults.toml"
    config.write_text("[output]\nrows_per_part = 50\n")
    script.write_text('[[fault]]\nkind = "slow"\nseconds = 0.2\n')
    most, most_again = 0.0, 0.0
    with serving("--faults", str(script)) as server:
        options = ["-c", config, "--max-in-flight", 16]
        _go_on([*fast(server, folder / "oracle", source), *options])
        for trial in range(trials):
            hang, random, out = HANGS[trial % len(HANGS)], Random(f"{seed}:{trial}"), folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            (folder / "slow.log").unlink(missing_ok=True)
            run = [*fast(server, out, source), *options]
            if hang.url:
                run[run.index("--base-url") + 1] = hang.url
            with told(trial, hang.name):
                twice = trial // len(HANGS) % 2 == 1
                took = _stopped(run, hang, folder, random, twice=twice)
                if twice:
                    most_again = max(most_again, took)
                else:
                    most = max(most, took)
                for part in out.glob("part-*.parquet"):
                    pq.read_metadata(part)
                assert not (out / "_SUCCESS").exists(), "half an output calls itself whole"
                if not hang.url:
                    _go_on(run)
                    assert part_bytes(out) == part_bytes(folder / "oracle"), "another output"
    return (
        f"{trials} runs that hung: gone {most:.1f} s after SIGTERM at the most, "
        f"{most_again:.1f} s after a second Ctrl-C"
    )


def _stopped(run: list[object], hang: Hang, folder: Path, random: Random, *, twice: bool) -> float:
    """Stop a run while something hangs; return how long it took to leave after the last signal."""
    process = started(*run, **slow_calls(folder, **hang.calls), **environment())
    log, out = folder / "slow.log", folder / "out"
    begins = (out / "_batchrank" / "live.json").exists if hang.when_stopped else log.exists
    until(lambda: begins() or process.poll() is not None, "it hangs", 60)
    time.sleep(random.uniform(0, 0.5))
    number, code = (signal.SIGINT, 130) if twice else (signal.SIGTERM, 143)
    allowed = (MOST_SECONDS_AGAIN if twice else MOST_SECONDS) + NOISE_SECONDS
    process.send_signal(number)
    if twice:
        time.sleep(random.uniform(0.2, 0.5))
        process.send_signal(number)
    began = time.monotonic()
    try:
        left_with, _, stderr = ended(process, allowed)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"not gone after {allowed:g} s") from None
    assert log.exists(), "nothing hung"
    assert left_with == code, f"ended with {left_with}: {last_line(stderr)}"
    return time.monotonic() - began


def _go_on(run: list[object]) -> None:
    code, _, stderr = ended(started(*run, **environment()), 120)
    assert code == 0, f"where nothing hangs the run ended with {code}: {last_line(stderr)}"


def without_the_watchdog(trials: int, seed: int, folder: Path) -> str:
    """Nobody ends a process whose threads hang."""
    with patched(folder, NO_WATCHDOG):
        said = breaks(lambda: leave(trials, seed, folder), "not gone after")
    return f"leave breaks without the watchdog: {said}"


NO_WATCHDOG = Patch("session/leaving.py", "        self._leave()\n", "        pass\n")

DRILLS = [
    Drill((36,), "leave", leave, 4, 64),
    Drill((36,), "control-leave", without_the_watchdog, 1, 1),
]
