"""All promises at once, by the model of the whole: lives that hypothesis makes up.

They are lived in a process of their own, so that it can be one of another build: the controls.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from endpoint import FAULTS
from helpers import clean

from drills.frame import Drill, Patch, breaks, environment, patched
from drills.pace import told

MUTANTS: dict[str, tuple[Patch, str]] = {
    "an answer is taken for any texts": (
        Patch(
            "session/earlier_answers.py", "not is_given_to(answer, plan):\n", "not answer.digest:\n"
        ),
        "with other texts under an answer of theirs",
    ),
    "answers are dropped before their part is published": (
        Patch(
            "state/checkpoint.py",
            "            elif isinstance(item, _Lease):\n",
            "            elif isinstance(item, _Flush):\n"
            '                database.execute("DELETE FROM answers")\n'
            "            elif isinstance(item, _Lease):\n",
        ),
        " and not | though settled| more often than needed",  # lost answers are asked for again
    ),
    "some outcomes are not kept": (
        Patch(
            "state/checkpoint.py",
            "in insertions(settled):\n",
            "in insertions([item for item in settled if item.part != 1]):\n",
        ),
        "answered ",  # and not kept; or, by priority, more often than needed
    ),
    "what killed sessions may have spent is forgotten": (
        Patch("state/checkpoint.py", '"leased", _most(spent) + self._untold)', '"leased", 0)'),
        "tokens billed of",
    ),
    "scores go to other documents": (
        Patch("output/assembly.py", "[position] = scores[document]", "[position] = min(scores)"),
        "row ",
    ),
    "a part that is written again keeps its old record": (
        Patch(
            "session/output_state.py",
            "if record is None or self._may_be_written_again(part, record):",
            "if record is None:",
        ),
        "is not the receipt's",
    ),
    "an unknown outcome counts as free": (
        Patch("sending/paced_endpoint.py", "read = billed = None\n", "read, billed = None, 0\n"),
        "tokens billed of",
    ),
}


def model(trials: int, seed: int, folder: Path, *, shrink: bool = True) -> str:
    """So many lives; each ends as if nothing had happened, and no session breaks a promise."""
    paths = [environment().get("PYTHONPATH", ""), str(Path(__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-m", "drills.model", str(trials), str(seed), str(int(shrink))],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600 + 2 * trials,
        env=clean(**{**environment(), "PYTHONPATH": ":".join(filter(None, paths))}),
        check=False,
    )
    (folder / "said").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, f"{done.stderr[-2000:]}"
    tally = json.loads(done.stdout)
    broken = tally.pop("broken", None)
    assert broken is None, broken
    wanted = {"kills", "stops"} | ({*FAULTS, "an outage"} if trials >= 500 else set())
    missing = {what for what in wanted if not tally.get(what)}
    assert not missing, f"these never happened: {missing}"
    faults = sum(tally.get(kind, 0) for kind in FAULTS)
    return (
        f"{trials} lives of {tally['sessions']:,} sessions, {tally['kills']:,} of them killed and "
        f"{tally['stops']:,} stopped, {faults:,} faults: each ended as if there had been none"
    )


def mutants(trials: int, seed: int, folder: Path) -> str:
    """Builds with a bug each, put in on purpose: the model finds it."""
    found = []
    for name in list(MUTANTS)[:trials]:
        patch, because = MUTANTS[name]
        own = folder / name.replace(" ", "-")
        own.mkdir()
        with patched(own, patch), told(len(found), name):
            breaks(lambda own=own: model(400, seed, own, shrink=False), *because.split("|"))
        found.append(name)
    return f"the model finds out a build in which {'; '.join(found)}"


def live(trials: str, seed: str, shrink: str) -> None:
    """Live in this process; prints what was met, and what broke."""
    from life import TALLY
    from test_model_of_the_whole import lived

    told = {}
    try:
        lived(int(trials), int(seed), shrink=shrink == "1")
    except Exception as error:
        print("\n".join(getattr(error, "__notes__", [])), file=sys.stderr)
        told = {"broken": f"{type(error).__name__}: {error}"}
    print(json.dumps({**TALLY, **told}), flush=True)
    os._exit(0)  # Arrow's threads may abort a process on its way out (seen once in ten)


DRILLS = [
    Drill((1, 9, 11, 12, 14), "model", model, 10, 1_000),
    Drill((1, 9, 11, 12), "control-model", mutants, 3, len(MUTANTS)),
]

if __name__ == "__main__":
    live(*sys.argv[1:])
