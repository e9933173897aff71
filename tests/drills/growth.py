"""A trial that goes on as the whole, killed at every call that makes its growth durable.

`_SUCCESS` goes first; the trial's last part is its own or the whole's at any moment; what the trial
paid for is never paid again, and the end is a run's without a trial, side files included.
"""

import shutil
import signal
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random

from helpers import ended, part_bytes

from drills.frame import (
    Drill,
    Job,
    Patch,
    begun,
    breaks,
    identical,
    job,
    last_line,
    needs,
    patched,
    settled,
)

ROWS, TRIAL, PART = 120, 70, 50
MANY = 100
CALLS = ("unlink", "rename", "fsync", "pwrite64", "fdatasync")


def killed_while_growing(trials: int, seed: int, folder: Path, calls: Sequence[str] = CALLS) -> str:
    """kill -9 at calls of each kind: some at random, or with many trials one after the other, up to
    the first run that ends unharmed.
    """
    needs("strace")
    with job(folder, rows=ROWS, rows_per_part=PART, seconds=0.01) as one:
        with (folder / "batchrank.toml").open("a") as config:
            config.write("top_n = 2\n")
        template, out = folder / "trial", folder / "out"
        fresh = folder / "fresh"
        assert ended(begun(one.command(fresh)), 120)[0] == 0
        one = one._replace(oracle=part_bytes(fresh))
        assert ended(begun([*one.command(out), "--limit", TRIAL]), 120)[0] == 0
        out.rename(template)
        trial = part_bytes(template)
        harmed, most = Counter[str](), Counter[str]()
        turns, random = list(calls), Random(seed)
        while harmed.total() < trials and turns:
            call = turns[harmed.total() % len(turns)]
            number = random.randint(1, 12) if trials < MANY else most[call] + 1
            most[call] = number
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(template, out)
            before = settled(one.server)["requests"]
            code, stderr = _killed(one, out, call, number)
            if code == 0:
                if trials >= MANY or number < 3:
                    turns.remove(call)
                identical(one, out)
                continue
            assert code == -signal.SIGKILL, f"{call} {number}: {code}: {last_line(stderr)}"
            harmed[call] += 1
            _is_between(out, trial, one.oracle)
            code, _, stderr = ended(begun(one.command(out)), 120)
            where = f"{call}, call {number}"
            assert code == 0, f"{where}: the next run ended with {code}: {last_line(stderr)}"
            identical(one, out)
            assert _pairs(out) == _pairs(fresh), f"{where}: the side files are not the whole's"
            twice = settled(one.server)["requests"] - before - (ROWS - TRIAL)
            assert 0 <= twice <= one.most_uncommitted, f"{where}: {twice} requests paid twice"
    each = ", ".join(f"{count} at {call}" for call, count in harmed.most_common())
    return f"{harmed.total()} kills ({each}), all identical, nothing of the trial paid again"


def _killed(one: Job, out: Path, call: str, number: int) -> tuple[int, str]:
    """Run the whole, killed at a thread's n-th such call on the output's files."""
    log = out.parent / "log"
    under = ["strace", "-f", "-qq", "-o", log, "-e", f"trace={call}"]
    state, names = out / "_batchrank", [f"part-{part:05}" for part in range(-(-ROWS // PART))]
    files = [out / "_SUCCESS", *out.rglob("*"), *(out / f"{name}.parquet" for name in names)]
    drafts = [state / f"{name}.{kind}.part" for name in names for kind in ("parquet", "arrow")]
    for path in (out, *files, *drafts):
        under += ["-P", path]
    inject = ("-e", f"inject={call}:signal=KILL:when={number}")
    code, _, stderr = ended(begun(one.command(out), under=[*under, *inject]), 120)
    return code, stderr


def _is_between(out: Path, trial: dict[str, bytes], whole: dict[str, bytes]) -> None:
    """Each part is the trial's or the whole's, and nothing says that all is done too early."""
    found = part_bytes(out)
    assert trial.keys() <= found.keys(), "a part of the trial is gone"
    for name, content in found.items():
        assert content in (trial.get(name), whole[name]), f"{name} is neither's"
    done = (out / "_SUCCESS").exists()
    assert not done or found in (trial, whole), "_SUCCESS while parts are half of each"


def _pairs(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("_pairs/part-*"))}


SIDE_FILE = Patch("session/output_state.py", "[: len(rows)]\n", "\n")
SMALL_PART = Patch(
    "session/output_state.py",
    "            if known.counts.rows < self._size(part)\n            or (",
    "            if (",
)


def without_the_scores_beside(trials: int, seed: int, folder: Path) -> str:
    """A side file that is there before its part is taken for another's, and what `top_n` cut off
    is lost. It is there first for an instant: each rename is tried in turn.
    """
    with patched(folder, SIDE_FILE):
        drill = partial(killed_while_growing, trials, seed, folder, ["rename"])
        said = breaks(drill, "side files")
    return f"grow-at-call breaks without the side file's first rows: {said}"


def without_small_parts(trials: int, seed: int, folder: Path) -> str:
    """A part of a trial counts as whole."""
    with patched(folder, SMALL_PART):
        reasons = ("ended with", "not what an undisturbed run writes", "is neither's")
        said = breaks(lambda: killed_while_growing(trials, seed, folder), *reasons)
    return f"grow-at-call breaks where a part of a trial counts as whole: {said}"


DRILLS = [
    Drill((2, 7), "grow-at-call", killed_while_growing, 3, 400),
    Drill((7,), "control-small-part", without_small_parts, 3, 10),
    Drill((2,), "control-side-file", without_the_scores_beside, MANY, MANY),
]
