"""Every promise in its quick form; `scripts/drill` runs the long one."""

from pathlib import Path
from random import SystemRandom

import pytest
from drills.frame import Drill, every


@pytest.mark.parametrize("drill", every(), ids=lambda drill: drill.name)
def test_the_promise_holds(drill: Drill, tmp_path: Path) -> None:
    seed = SystemRandom().randrange(10**6)
    print(f"to repeat: scripts/drill {drill.name} --quick --seed {seed}")
    print(drill.run(drill.quick, seed, tmp_path))
