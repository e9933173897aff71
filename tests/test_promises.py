"""Every promise in its quick form; `scripts/drill` runs the long one.

The seed is fixed, so that a green run says something of the next; BATCHRANK_SEED gives another.
"""

import os
from pathlib import Path

import pytest
from drills.frame import Drill, every

SEED = int(os.environ.get("BATCHRANK_SEED", "7"))


@pytest.mark.parametrize("drill", every(), ids=lambda drill: drill.name)
def test_the_promise_holds(drill: Drill, tmp_path: Path) -> None:
    print(f"to repeat: scripts/drill {drill.name} --quick --seed {SEED}")
    print(drill.run(drill.quick, SEED, tmp_path))
