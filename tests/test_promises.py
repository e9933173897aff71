"""Every promise in its quick form; `scripts/drill` runs the long one.

The seed is fixed, so that a green run says something of the next; BATCHRANK_SEED gives another.
"""

import os
from pathlib import Path

import pytest
from drills.frame import Drill, every
from drills.model import MUTANTS

import batchrank

SEED = int(os.environ.get("BATCHRANK_SEED", "7"))


@pytest.mark.parametrize("drill", every(), ids=lambda drill: drill.name)
def test_the_promise_holds(drill: Drill, tmp_path: Path) -> None:
    print(f"to repeat: scripts/drill {drill.name} --quick --seed {SEED}")
    print(drill.run(drill.quick, SEED, tmp_path))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_still_has_something_to_change(mutant: str) -> None:
    """Those of the model: its quick form builds but some of them."""
    patch, _ = MUTANTS[mutant]
    text = (Path(batchrank.__file__).parent / patch.file).read_text("utf-8")
    assert text.count(patch.old) == 1
