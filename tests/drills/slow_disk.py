"""Promise 29: whatever the disk does, few answers are paid and not safe, and memory is bounded.

A library that is preloaded makes some calls slow (`slow_disk.c`): the checkpoint's syncs, a part's
rename, the writing of a part. The endpoint is as fast as this machine, so that what is not bounded
piles up. Runs are killed at random instants; whatever the endpoint answered before a kill and is
asked again after it was paid and not safe.
"""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
from helpers import PROGRAM, clean, ended, killed, part_bytes, table, until, written

from batchrank.session.session import MAX_OPEN_PARTS
from batchrank.state.checkpoint import COMMIT_GROUP
from drills.frame import Drill, Patch, breaks, environment, last_line, patched
from drills.pace import told
from drills.till import Asked, Till, http, scored, till

MAX_IN_FLIGHT = 32
ROWS_PER_PART = 500
ROWS = 8_000
MOST_PEAK_MB = 400
MOST_LOST = 2 * MAX_IN_FLIGHT + COMMIT_GROUP
"""What a kill may cost: answers that were not safe, and requests in flight."""
_SOURCE = Path(__file__).with_suffix(".c")


class Disk(NamedTuple):
    """How a disk is slow, and whether that keeps parts from being published."""

    name: str
    calls: dict[str, str]
    parts_stall: bool = False


DISKS = [
    Disk("syncs of 2 s", {"SLOW_SYNC": "2 checkpoint"}),
    Disk("a stalled rename", {"SLOW_RENAME": "100 part-"}, parts_stall=True),
    Disk("syncs of 0.3 s", {"SLOW_SYNC": "0.3 checkpoint"}),
    Disk("a stalled part", {"SLOW_WRITE": "100 part-"}, parts_stall=True),
    Disk("a stalled side file", {"SLOW_SYNC": "100 .arrow"}, parts_stall=True),
    Disk("a healthy disk", {}),
]


def slow_calls(folder: Path, **calls: str) -> dict[str, str]:
    """The environment in which these calls are slow. Skips without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs cc")
    library = folder / "slow_disk.so"
    if not library.exists():
        command = [compiler, "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    return {"LD_PRELOAD": str(library), "SLOW_LOG": str(folder / "slow.log"), **calls}


def answer_all(asked: Asked) -> bytes:
    """Every request is answered at once."""
    return http(json.dumps(scored(asked, usage={"total_tokens": 100})).encode())


def slow_disk(trials: int, seed: int, folder: Path) -> str:
    """Each kind of slow disk in turn, a kill or two, then on to the end on a healthy disk."""
    kills, twice, most, peak = 0, 0, 0, 0.0
    source = written(folder / "in.parquet", table(ROWS, tag="slow"), row_group_size=1000)
    with till(answer_all) as one:
        _go_on(one, source, folder / "oracle")
        for trial in range(trials):
            disk, random, out = DISKS[trial % len(DISKS)], Random(f"{seed}:{trial}"), folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            (folder / "slow.log").unlink(missing_ok=True)
            with told(trial, disk.name):
                before, deaths = one.requests, 0
                for _ in range(1 if disk.parts_stall else 2):
                    process = _begun(one, source, out, slow_calls(folder, **disk.calls))
                    _wait_until_it_sends(one, process)
                    if disk.parts_stall:
                        _wait_until_it_stops(one)
                    time.sleep(random.uniform(0.5, 4))
                    peak = max(peak, _peak_mb(process))
                    deaths += killed(process) == -signal.SIGKILL
                if disk.parts_stall:
                    parts = len(list(out.glob("part-*.parquet")))
                    allowed = (parts + MAX_OPEN_PARTS) * ROWS_PER_PART
                    sent = one.requests - before
                    assert sent <= allowed, f"{sent} rows sent, {parts} parts published"
                assert not disk.calls or (folder / "slow.log").exists(), "no call was slow"
                _go_on(one, source, out)
                assert part_bytes(out) == part_bytes(folder / "oracle"), (
                    "not what an undisturbed run writes"
                )
                lost, allowed = one.requests - before - ROWS, deaths * MOST_LOST
                assert lost <= allowed, f"{lost} requests paid twice, {allowed} allowed"
                assert peak <= MOST_PEAK_MB, f"{peak:.0f} MB"
            kills, twice, most = kills + deaths, twice + lost, max(most, lost)
    assert kills >= trials / 2, f"only {kills} kills in {trials} runs"
    return (
        f"{trials} runs, {kills} kills: {twice} requests paid twice, {most} in one run at the "
        f"most, {MOST_LOST} allowed at each kill; {peak:.0f} MB at the most"
    )


def _go_on(one: Till, source: Path, out: Path) -> None:
    code, _, stderr = ended(_begun(one, source, out, {}), 300)
    assert code == 0, f"on a healthy disk the run ended with {code}: {last_line(stderr)}"


def _wait_until_it_sends(one: Till, process: "subprocess.Popen[str]") -> None:
    before = one.requests
    until(lambda: one.requests > before or process.poll() is not None, "it sends", 60)


def _wait_until_it_stops(one: Till) -> None:
    """Wait until no request has come for two seconds."""
    until(lambda: time.monotonic() - one.times[-1] > 2, "it waits for the disk", 120)


def without_the_wait(trials: int, seed: int, folder: Path) -> str:
    """Sending does not wait for the disk."""
    with patched(folder, NO_WAIT):
        said = breaks(lambda: slow_disk(trials, seed, folder), "paid twice")
    return f"slow-disk breaks where sending does not wait: {said}"


def without_a_bound_on_parts(trials: int, seed: int, folder: Path) -> str:
    """Reading does not wait for parts that are being written."""
    with patched(folder, NO_BOUND):
        said = breaks(lambda: slow_disk(trials, seed, folder), "parts published")
    return f"slow-disk breaks where parts pile up: {said}"


NO_WAIT = Patch("sending/paced_endpoint.py", "if self._checkpoint.is_behind:\n", "if False:\n")
NO_BOUND = Patch("session/session.py", "self._assembly.open_parts + self._unwritten", "0")


def _begun(one: Till, source: Path, out: Path, slow: dict[str, str]) -> "subprocess.Popen[str]":
    config = out.parent / "slow.toml"
    config.write_text(f"[output]\nrows_per_part = {ROWS_PER_PART}\n")
    words = ["run", source, "-o", out, "-c", config, "--base-url", one.url]
    limits = ["--requests-per-minute", 0, "--max-in-flight", MAX_IN_FLIGHT]
    return subprocess.Popen(
        [*PROGRAM, *map(str, [*words, *limits])],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean(**environment(), **slow),
    )


def _peak_mb(process: "subprocess.Popen[str]") -> float:
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):  # it has just ended
        return 0.0


DRILLS = [
    Drill((29,), "slow-disk", slow_disk, 2, 60),
    Drill((29,), "control-slow-disk", without_the_wait, 1, 6),
    Drill((29,), "control-stalled-parts", without_a_bound_on_parts, 2, 6),
]
