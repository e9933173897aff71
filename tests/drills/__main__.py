"""`scripts/drill`: the long form of every drill, or of those named: a line each, and a table."""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import SystemRandom
from typing import NamedTuple

import pytest

from drills.frame import Drill, every


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; 1 when a promise breaks."""
    drills = every()
    parser = argparse.ArgumentParser(prog="scripts/drill", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(d.name for d in drills))
    parser.add_argument("--seed", type=int, help="repeat an earlier drill (default: random)")
    parser.add_argument("--trials", type=int, help="instead of the form's own number")
    parser.add_argument("--quick", action="store_true", help="the form that the tests run")
    parser.add_argument("--markdown", action="store_true", help="the table at the end for README")
    asked = parser.parse_args(arguments)
    unknown = set(asked.names) - {drill.name for drill in drills}
    if unknown:
        parser.error(f"no drill is called {', '.join(sorted(unknown))}")
    seed = SystemRandom().randrange(10**6) if asked.seed is None else asked.seed
    results = []
    for drill in drills:
        if not asked.names or drill.name in asked.names:
            trials = asked.trials or (drill.quick if asked.quick else drill.long)
            results.append(held(drill, trials, seed))
            print(results[-1].line(), flush=True)
    print("\n" + table(results, markdown=asked.markdown))
    return 1 if any(result.verdict == "BROKEN" for result in results) else 0


class Result(NamedTuple):
    """What became of a drill."""

    drill: Drill
    trials: int
    seed: int
    seconds: float
    verdict: str
    figures: str

    @property
    def numbers(self) -> str:
        return ", ".join(map(str, self.drill.numbers))

    def line(self) -> str:
        return (
            f"promise {self.numbers}: {self.drill.name}, {self.trials} trials, seed {self.seed}, "
            f"{self.seconds:.0f} s: {self.verdict}: {self.figures}"
        )


def held(drill: Drill, trials: int, seed: int) -> Result:
    """Run a drill; its folder stays when the promise breaks."""
    began, scratch = time.monotonic(), tempfile.mkdtemp(prefix=f"drill-{drill.name}-")
    try:
        verdict, figures = "held", drill.run(trials, seed, Path(scratch))
    except pytest.skip.Exception as reason:
        verdict, figures = "skipped", str(reason)
    except (AssertionError, subprocess.TimeoutExpired) as broken:
        verdict, figures = "BROKEN", f"{broken}; its folder: {scratch}"
    if verdict != "BROKEN":
        shutil.rmtree(scratch, ignore_errors=True)
    return Result(drill, trials, seed, time.monotonic() - began, verdict, figures)


def table(results: Sequence[Result], *, markdown: bool) -> str:
    """All results, a line each: in columns for the eye, or for README."""
    rows = [("promise", "drill", "trials", "seed", "seconds", "result")] + [
        (
            one.numbers,
            one.drill.name,
            f"{one.trials:,}",
            str(one.seed),
            f"{one.seconds:,.0f}",
            one.figures if markdown and one.verdict == "held" else one.verdict,
        )
        for one in results
    ]
    if markdown:
        lines = ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows]
        return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
