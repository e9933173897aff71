"""`scripts/drill`: the long form of every drill, or of those named, one line each."""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import SystemRandom

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
    asked = parser.parse_args(arguments)
    unknown = set(asked.names) - {drill.name for drill in drills}
    if unknown:
        parser.error(f"no drill is called {', '.join(sorted(unknown))}")
    seed = SystemRandom().randrange(10**6) if asked.seed is None else asked.seed
    broken = 0
    for drill in drills:
        if not asked.names or drill.name in asked.names:
            trials = asked.trials or (drill.quick if asked.quick else drill.long)
            broken += not held(drill, trials, seed)
    return 1 if broken else 0


def held(drill: Drill, trials: int, seed: int) -> bool:
    """Run a drill and print its line; its folder stays when the promise breaks."""
    began, scratch = time.monotonic(), tempfile.mkdtemp(prefix=f"drill-{drill.name}-")
    try:
        verdict, figures = "held", drill.run(trials, seed, Path(scratch))
    except pytest.skip.Exception as reason:
        verdict, figures = "skipped", str(reason)
    except (AssertionError, subprocess.TimeoutExpired) as broken:
        verdict, figures = "BROKEN", f"{broken}; its folder: {scratch}"
    if verdict != "BROKEN":
        shutil.rmtree(scratch, ignore_errors=True)
    numbers = ", ".join(map(str, drill.numbers))
    seconds = time.monotonic() - began
    print(
        f"promise {numbers}: {drill.name}, {trials} trials, seed {seed}, {seconds:.0f} s: "
        f"{verdict}: {figures}",
        flush=True,
    )
    return verdict != "BROKEN"


if __name__ == "__main__":
    sys.exit(main())
