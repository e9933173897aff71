"""Promise 35, in virtual time: a true limit below the configured one is learnt, and used.

The judges are pairs of models of a limit (`lower_limit`). They run in a process of their own, so
that it can be one of another build: the controls.
"""

import json
import subprocess
import sys
from pathlib import Path

from helpers import clean
from lower_limit import PAIRS, Result, name_of, worst

from drills.frame import Drill, Patch, breaks, environment, patched

WITHOUT: dict[str, tuple[Patch, str]] = {
    "minutes": (
        Patch(
            "pacing/used_minute.py", "self._limit, self._slides = limit, low < high", "return False"
        ),
        "minute",
    ),
    "requests at once": (
        Patch(
            "pacing/learnt_limits.py", "if many and self._at_once.refuse(now, number):", "if False:"
        ),
        "concurrency",
    ),
}


def lower_limit(trials: int, seed: int, folder: Path) -> str:
    """Every pair of models, so many times, the server's minute begun at another place in each."""
    bare = _measured(trials, seed)
    broken = {name: one for name, one in bare.items() if not one.is_kept}
    assert not broken, f"not kept: {broken}"
    every = bare.values()
    return (
        f"{len(PAIRS)} pairs x {trials}: {min(one.used for one in every):.3f} of the true limit "
        f"at the least, {max(one.refused for one in every):.2%} refused and a stall of "
        f"{max(one.stall for one in every):.1f} s at the most"
    )


def without(trials: int, seed: int, folder: Path) -> str:
    """Builds that learn no minute, or no number at once, use less of such a limit."""
    said = []
    for name, (patch, because) in WITHOUT.items():
        own = folder / name.replace(" ", "-")
        own.mkdir()
        with patched(own, patch):
            said.append(
                f"no {name}: {breaks(lambda own=own: lower_limit(trials, seed, own), because)}"
            )
    return "; ".join(said)


def _measured(trials: int, seed: int) -> dict[str, Result]:
    paths = [environment().get("PYTHONPATH", ""), str(Path(__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-m", "drills.lower_limit", str(trials), str(seed)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600 + 120 * trials,
        env=clean(**{**environment(), "PYTHONPATH": ":".join(filter(None, paths))}),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: Result(*figures) for name, figures in json.loads(done.stdout).items()}


DRILLS = [
    Drill((35,), "lower-limit", lower_limit, 1, 12),
    Drill((35,), "control-lower-limit", without, 1, 1),
]

if __name__ == "__main__":
    trials, seed = int(sys.argv[1]), int(sys.argv[2])
    print(json.dumps({name_of(pair): worst(pair, trials, seed) for pair in PAIRS}))
