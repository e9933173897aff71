"""What a disk can do to an output: a power cut, and a damaged checkpoint.

A power cut is an ext4 file system in a file that is copied while it is mounted: what was never
synced is not in the copy (`commit=300` keeps the kernel from syncing by itself). The run is stopped
for the copy, since one that is written to meanwhile would be of no instant at all.
"""

import os
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from random import Random

import pytest
from helpers import ended, killed, part_bytes, until
from test_output_belongs_to_its_run import (
    cut_short,
    database_of,
    flipped,
    flipped_at_the_start,
    not_a_database,
    truncated,
    without_tables,
)

from drills.frame import (
    Drill,
    begun,
    cut,
    go_on,
    instants,
    job,
    last_line,
    needs,
    tool,
    whole_so_far,
)

# 4


@contextmanager
def mounted(place: Path, *arguments: object) -> Iterator[Path]:
    """A file system at `place` while the block runs."""
    place.mkdir(exist_ok=True)
    try:
        tool("mount", *arguments, place)
    except OSError as error:
        pytest.skip(f"cannot mount here: {error}")
    try:
        yield place
    finally:
        tool("umount", place)


@contextmanager
def disk(image: Path, place: Path) -> Iterator[Path]:
    """The ext4 file system in `image`, which writes nothing to it of its own accord. It is let go
    of at the end: another's mount namespace, made meanwhile, holds it for as long as it lives.
    """
    with mounted(place, "-o", "loop,commit=300", image) as found:
        yield found
    until(lambda: str(image) not in _behind_loops(), f"nobody holds {image.name}", 300)


def _behind_loops() -> set[str]:
    """The files that are loop devices now."""
    found = set()
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # it went away while it was looked at
            found.add(backing.read_text().strip())
    return found


UNSYNCED = b"gone with the power" * 1000
"""A file's content, written just before a cut: the cut must take it away, or it was none."""


def power_cut(trials: int, seed: int, folder: Path) -> str:
    """The power goes at a random instant, or soon after a part got its name; the next run finds
    what had been synced.
    """
    needs("mkfs.ext4", "mount", "umount")
    empty, image, copy = folder / "empty.img", folder / "disk.img", folder / "cut.img"
    empty.touch()
    os.truncate(empty, 48 << 20)
    tool("mkfs.ext4", "-q", "-F", empty)
    random, cuts, twice, unsynced, lost = Random(seed), 0, 0, 0, 0
    # A part is larger than what can be in flight, so that losing one is noticed.
    with job(folder, rows=1500, rows_per_part=500) as one:
        for trial, instant in enumerate(instants(random, trials, 0.5, one.seconds)):
            shutil.copyfile(empty, image)
            before = one.server.ledger()["requests"]
            canary = folder / "disk" / "canary"
            with disk(image, folder / "disk") as place:
                process = begun(one.command(place / "out"))
                try:
                    if trial % 2:
                        time.sleep(instant)
                    else:
                        _wait_for_a_part(place / "out", random)
                    canary.write_bytes(UNSYNCED)
                    if not _stopped(process.pid):
                        continue
                    shutil.copyfile(image, copy)
                    live = one.safe(place / "out", folder / "copy")
                finally:
                    killed(process)
            cuts += 1
            with disk(copy, folder / "disk") as place:
                unsynced += not canary.exists() or canary.read_bytes() != UNSYNCED
                left = cut(one, place / "out", folder / "copy")
                whole_so_far(one, place / "out")
                gone = len(live - left.safe)
                assert gone <= one.most_uncommitted, f"{gone} answers that were safe are lost"
                lost += gone
                twice += go_on(one, place / "out", left, before=before)
    assert cuts >= trials * 0.6, f"only {cuts} of {trials} runs still ran when the power went"
    assert unsynced == cuts, f"{cuts - unsynced} cuts took nothing away: no power cuts"
    return (
        f"{cuts} cuts, each took an unsynced file away; {cuts} identical of {cuts}, {twice:,} "
        f"requests paid twice, {lost:,} answers of commits that were not synced yet"
    )


def _wait_for_a_part(out: Path, random: Random) -> None:
    """Until a part has its name, and a moment longer: its answers may be forgotten by then."""
    part = out / f"part-{random.randrange(2):05}.parquet"
    until(part.exists, f"{part.name} is published")
    time.sleep(random.uniform(0, 0.4))


def _stopped(pid: int) -> bool:
    """Stop a process, its system calls ended; False when it had ended itself."""
    os.kill(pid, signal.SIGSTOP)
    threads = Path(f"/proc/{pid}/task")

    def states() -> set[str]:
        found = (path.read_text() for path in threads.glob("*/stat"))
        return {text.rpartition(")")[2].split()[0] for text in found}

    until(lambda: states() <= {"T", "Z"}, "the run is stopped")
    return states() == {"T"}


# 5


def damaged_checkpoint(trials: int, seed: int, folder: Path) -> str:
    """Refused with what to do, or, where SQLite can see that nothing counts on it, gone on with."""
    random, outcomes = Random(seed), Counter[str]()
    with job(folder, rows=600, rows_per_part=100, max_in_flight=8, seconds=0.01) as one:
        template = folder / "template"
        before = one.server.received
        process = begun(one.command(template))
        until(lambda: one.server.received > before + 350, "half of it is sent")
        assert killed(process) == -signal.SIGKILL
        paid, parts = one.server.ledger()["requests"], part_bytes(template)
        for kind in [kind for _ in range(-(-trials // len(DAMAGES))) for kind in DAMAGES][:trials]:
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(template, out)
            with closing(sqlite3.connect(database_of(out))) as database:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            whole = database_of(out).read_bytes()
            DAMAGES[kind](database_of(out), random)
            assert database_of(out).read_bytes() != whole, f"{kind}: nothing was damaged"
            sent = one.server.received
            code, _, stderr = ended(begun(one.command(out)), 60)
            where = f"{kind} (seed {seed}): ended with {code}: {last_line(stderr)}"
            if code == 0 and kind in MAY_GO_ON:
                assert part_bytes(out) == one.oracle, f"{kind} (seed {seed}): a wrong output"
            else:
                # A flipped bit in what the run was begun with looks like another input or setting.
                refusals = (65, 73, 78) if kind in MAY_GO_ON else (73,)
                assert code in refusals, where
                assert "hoose a new output" in stderr and len(stderr.splitlines()) == 1, where
                assert one.server.received == sent, f"{kind}: refused, but something was sent"
                assert part_bytes(out) == parts, f"{kind}: published parts were touched"
            outcomes["refused" if code else "identical"] += 1
        assert outcomes["refused"], "no damage was refused"
        figures = ", ".join(f"{count} {what}" for what, count in outcomes.most_common())
        return f"{len(DAMAGES)} kinds of damage: {figures}; {paid:,} requests paid before"


def _cut_anywhere(path: Path, random: Random) -> None:
    os.truncate(path, random.randrange(1, path.stat().st_size - 1))


def _flipped_anywhere(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(random.choice([1, 8, 64])):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def _zeroed_page(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    used = [at for at in range(0, len(content), 4096) if any(content[at : at + 4096])]
    page = random.choice(used)
    content[page : page + 4096] = bytes(4096)
    path.write_bytes(content)


def _newer(path: Path, _: Random) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version=99")


def _without_answers(path: Path, _: Random) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE answers")


DAMAGES = {
    "truncated": lambda path, _: truncated(path),
    "flipped": lambda path, _: flipped(path),
    "a newer version": _newer,
    "cut anywhere": _cut_anywhere,
    "bits flipped anywhere": _flipped_anywhere,
    "a page of zeros": _zeroed_page,
    "cut to 50 bytes": lambda path, _: cut_short(path),
    "flipped at the start": lambda path, _: flipped_at_the_start(path),
    "not a database": lambda path, _: not_a_database(path),
    "without its tables": lambda path, _: without_tables(path),
    "without the table of answers": _without_answers,
}
MAY_GO_ON = {"cut anywhere", "bits flipped anywhere", "a page of zeros"}
"""A page that was free, a bit that nothing depends on: then the output must be right."""


DRILLS = [
    Drill((4,), "power-cut", power_cut, 2, 100),
    Drill((5,), "damaged-checkpoint", damaged_checkpoint, 4, 200),
]
