"""Promise 41: under any limit of the address space a run ends with 0, or with 74 in one line.

The limits lie between what `batchrank --version` and `import pyarrow` need and what a run needs.
"""

from pathlib import Path
from random import Random

from helpers import ended, table, written

from drills.frame import Drill, Patch, begun, breaks, last_line, patched
from drills.pace import told

LEAST_MB, MOST_MB = 300, 1200
"""Below the first pyarrow does not load; above the second nothing was ever wanting."""


def short_of_memory(trials: int, seed: int, folder: Path) -> str:
    """A run with the local server under limits that are spread over all of the span."""
    source, random = written(folder / "in.parquet", table(20, 2, tag="memory")), Random(seed)
    step, done = (MOST_MB - LEAST_MB) / trials, 0
    for trial in range(trials):
        limit = int(LEAST_MB + step * (trial + random.random()))
        words = ["run", source, "-o", folder / f"out-{trial}", "--provider", "local"]
        with told(trial, f"{limit} MB"):
            code, _, stderr = ended(begun(words, under=["prlimit", f"--as={limit << 20}"]), 120)
            assert code in (0, 74), f"ended with {code}: {last_line(stderr)}"
            assert "Traceback" not in stderr, f"a traceback: {last_line(stderr)}"
            assert code == 0 or f"{limit:,} MB" in stderr, f"says not how much: {stderr}"
        done += code == 0
    return f"{trials} limits of {LEAST_MB} to {MOST_MB} MB: {done} runs done, the others 74"


def limits_unread(trials: int, seed: int, folder: Path) -> str:
    """Whatever room there is, the run begins."""
    with patched(folder, UNREAD):
        said = breaks(lambda: short_of_memory(trials, seed, folder), "ended with", "traceback")
    return f"short-of-memory breaks where no limit is read: {said}"


UNREAD = Patch("cli/main.py", '    """\n    check_address_space()\n', '    """\n')

DRILLS = [
    Drill((41,), "short-of-memory", short_of_memory, 4, 60),
    Drill((41,), "control-short-of-memory", limits_unread, 3, 6),
]
