"""Writes that are refused: the run ends with 74 and goes on once the disk is well again."""

import os
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from helpers import ended

from drills.disk import mounted
from drills.frame import (
    Drill,
    Job,
    begun,
    cut,
    go_on,
    identical,
    instants,
    job,
    last_line,
    needs,
    tool,
    whole_so_far,
)
from drills.tracing import Sweep, begun_output, counts_of, output_for, picked, traced


def refused_write(trials: int, seed: int, folder: Path) -> str:
    """EIO from a write or sync, once or from then on: ended with 74; once healthy, goes on."""
    needs("strace")
    random, harmed, harmless, after, twice = Random(seed), Counter[str](), 0, 0, 0
    sweeps = [
        *(Sweep(fresh, call, "database") for fresh in (True, False) for call in _WRITES[:2]),
        *(Sweep(False, call, "parts") for call in _WRITES[2:]),
    ]
    with job(folder, rows=300, rows_per_part=50, seconds=0.01) as one:
        template = begun_output(one, folder / "begun")
        counts = counts_of(sweeps, one, folder, template)
        for sweep, number in picked(sweeps, counts, trials, random):
            out, log = output_for(folder / "out", sweep, template), folder / "log"
            log.unlink(missing_ok=True)
            when = f"{number}{random.choice(['', '+'])}"
            inject = ("-e", f"inject={sweep.call}:error=EIO:when={when}")
            before = one.server.ledger()["requests"]
            under = traced(out, sweep.files, ",".join(_WRITES), log, "-y", *inject)
            process = begun(one.command(out), under=under)
            with _after_first_error(one, log) as late:
                code, _, stderr = ended(process, 120)
            where = f"{sweep}, when={when}"
            if "INJECTED" not in log.read_text():
                continue
            if code == 0 and not _at_stake(log):
                identical(one, out)
                harmless += 1
                continue
            harmed[sweep.call] += 1
            assert code == 74, f"{where}: ended with {code}: {last_line(stderr)}"
            assert len(stderr.splitlines()) == 1, f"{where}: {stderr}"
            # What the loop had in hand: strace makes it slow to hear of the error.
            assert late() <= one.max_in_flight, f"{where}: {late()} requests after the error"
            after += late()
            try:
                whole_so_far(one, out)
                left = cut(one, out, folder / "copy")
                twice += go_on(one, out, left, before=before)
            except AssertionError as error:
                raise AssertionError(f"{where}: {error}") from error
    happened = harmed.total() + harmless
    assert harmed and happened >= trials * 0.6, f"only {happened} of {trials} errors happened"
    each = ", ".join(f"{count} from {call}" for call, count in harmed.most_common())
    return (
        f"{harmed.total()} times EIO ({each}): 74 each, {after} requests later than 50 ms after "
        f"the error, all identical once healthy, {twice:,} requests paid twice; {harmless} times "
        "while SQLite copied its log, which holds all of it: identical"
    )


def _at_stake(log: Path) -> bool:
    """Whether a refused call was the only one that could make something durable.

    SQLite keeps to itself what goes wrong while it copies its log into the database: the log is
    synced by then and stays. That is a write to the database or its sync, or a sync of the log
    when nothing has been written to it since its last.
    """
    unsynced: set[tuple[str, str]] = set()
    for found in re.finditer(
        r"^(\d+) +(\w+)\(\d+<([^>]+)>.*$", log.read_text(errors="replace"), re.MULTILINE
    ):
        thread, call, path = found.groups()
        if "INJECTED" in found[0]:
            synced = call == "fdatasync" and (thread, path) not in unsynced
            if not synced and not path.endswith(".sqlite"):
                return True
        elif call == "fdatasync":
            unsynced.discard((thread, path))
        else:
            unsynced.add((thread, path))
    return False


_WRITES = ("pwrite64", "fdatasync", "write", "fsync")


@contextmanager
def _after_first_error(one: Job, log: Path) -> Iterator[Callable[[], int]]:
    """Count the requests that come later than 50 ms after the first error that matters."""
    over, counts = threading.Event(), list[int]()

    def look() -> None:
        while not over.wait(0.005):
            if log.exists() and _at_stake(log):
                time.sleep(0.05)
                counts.append(one.server.received)
                return

    thread = threading.Thread(target=look, name="first error")
    thread.start()
    try:
        yield lambda: one.server.received - counts[0] if counts else 0
    finally:
        over.set()
        thread.join()


def full_disk(trials: int, seed: int, folder: Path) -> str:
    """A disk with less room than the run needs, at so many sizes, and a limit on a file's size."""
    needs("mount", "umount", "prlimit")
    random, full, twice = Random(seed), 0, 0
    with job(folder, rows=600, rows_per_part=50, seconds=0.01) as one:
        place = folder / "disk"
        with mounted(place, "-t", "tmpfs", "-o", "size=64m", "none"):
            peak = _peak(one, place)
        for size in instants(random, trials, 0.05, 0.85):
            with mounted(place, "-t", "tmpfs", "-o", f"size={int(peak * size)}", "none"):
                where = f"a disk of {int(peak * size):,} bytes of {peak:,} needed"
                before = one.server.ledger()["requests"]
                code, _, stderr = ended(begun(one.command(place / "out")), 60)
                full += _refused(one, place / "out", code, stderr, where)
                left = cut(one, place / "out", folder / "copy")
                tool("mount", "-o", "remount,size=64m", place)
                twice += go_on(one, place / "out", left, before=before)
        for size in instants(random, max(1, trials // 3), 0.05, 0.85):
            limit = int(peak * size) // 3
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            before = one.server.ledger()["requests"]
            under = ["prlimit", f"--fsize={limit}", "--"]
            code, _, stderr = ended(begun(one.command(out), under=under), 60)
            where = f"files of at most {limit:,} bytes"
            full += _refused(one, out, code, stderr, where)
            twice += go_on(one, out, cut(one, out, folder / "copy"), before=before)
    tried = trials + max(1, trials // 3)
    assert full >= tried * 0.6, f"only {full} of {tried} runs met a full disk"
    return (
        f"{full} of {tried} runs met a full disk or the limit: 74 each, all identical once there "
        f"was room, {twice:,} requests paid twice"
    )


def _refused(one: Job, out: Path, code: int, stderr: str, where: str) -> bool:
    if code != 0:
        assert code == 74 and len(stderr.splitlines()) == 1, (
            f"{where}: ended with {code}: {last_line(stderr)}"
        )
        whole_so_far(one, out)
    return code != 0


def _peak(one: Job, place: Path) -> int:
    """The most room that an undisturbed run takes."""
    process, peak = begun(one.command(place / "out")), 0
    while process.poll() is None:
        facts = os.statvfs(place)
        peak = max(peak, (facts.f_blocks - facts.f_bfree) * facts.f_frsize)
        time.sleep(0.01)
    assert ended(process)[0] == 0
    return peak


DRILLS = [
    Drill((6,), "refused-write", refused_write, 3, 60),
    Drill((6,), "full-disk", full_disk, 1, 9),
]
