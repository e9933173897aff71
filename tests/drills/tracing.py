"""strace: a fault at the first, second, … call of a kind, on the files of an output alone."""

import re
import shutil
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from helpers import ended, killed, until

from drills.frame import Job, begun


class Sweep(NamedTuple):
    """Faults at the first, second, … call of a kind that touches these files."""

    fresh: bool
    """From an output that does not exist yet; otherwise from one that has been begun."""
    call: str
    files: str
    """`database`: the checkpoint; `checkpoint`: its folder as well; `parts`: those and the receipt.

    strace counts the calls of each thread apart, so what different threads write is apart, too.
    """


def traced(out: Path, files: str, calls: str, log: Path, *fault: str) -> list[object]:
    """strace on such calls as touch these files of an output."""
    state = out / "_batchrank"
    if files == "parts":
        names = [*(f"part-{part:05}.parquet" for part in range(20)), "_run.json", "_SUCCESS"]
        drafts = [state / f"{name}.part" for name in names]
        paths = [out, state, *drafts, *(out / name for name in names)]
    else:
        database = state / "checkpoint.sqlite"
        paths = [database, *(Path(f"{database}{end}") for end in ("-wal", "-journal"))]
        paths += [state] if files == "checkpoint" else []
    watched = [item for path in paths for item in ("-P", path)]
    # Never --seccomp-bpf: it switches -e inject off without a word.
    return ["strace", "-f", "-qq", "-o", log, *watched, "-e", f"trace={calls}", *fault]


def counted(log: Path) -> dict[str, int]:
    """The most calls of each kind that any one thread made."""
    made = Counter(
        (found[1], found[2])
        for found in re.finditer(r"^(\d+) +(\w+)\(", log.read_text(), re.MULTILINE)
    )
    return {
        call: max(count for (_, other), count in made.items() if other == call)
        for call in {call for _, call in made}
    }


def begun_output(one: Job, out: Path) -> Path:
    """An output whose run was killed at its first request."""
    before = one.server.received
    process = begun(one.command(out))
    until(lambda: one.server.received > before, "the run sends")
    assert killed(process) == -signal.SIGKILL
    return out


def output_for(out: Path, sweep: Sweep, template: Path) -> Path:
    """Where a sweep's next run begins."""
    shutil.rmtree(out, ignore_errors=True)
    if not sweep.fresh:
        shutil.copytree(template, out)
    return out


def counts_of(sweeps: Sequence[Sweep], one: Job, folder: Path, template: Path) -> dict[Sweep, int]:
    """How many calls of each kind an undisturbed run makes."""
    counts: dict[Sweep, int] = {}
    for kind in dict.fromkeys((sweep.fresh, sweep.files) for sweep in sweeps):
        alike = [sweep for sweep in sweeps if (sweep.fresh, sweep.files) == kind]
        out = output_for(folder / "out", alike[0], template)
        under = traced(out, kind[1], ",".join(sweep.call for sweep in alike), folder / "log")
        assert ended(begun(one.command(out), under=under), 120)[0] == 0
        made = counted(folder / "log")
        counts.update((sweep, made.get(sweep.call, 0)) for sweep in alike)
    return counts


def picked(
    sweeps: Sequence[Sweep], counts: dict[Sweep, int], trials: int, random: Random
) -> list[tuple[Sweep, int]]:
    """So many calls at random, of each kind in turn; where all are asked for, every one."""
    if trials >= sum(counts.values()):
        return [(sweep, 1) for sweep in sweeps]
    turns = random.sample(sweeps, len(sweeps)) * trials
    possible = [sweep for sweep in turns if counts[sweep]]
    return [(sweep, random.randint(1, counts[sweep])) for sweep in possible[:trials]]
