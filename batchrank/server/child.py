"""The local server as a process of its own, for as long as a run wants it.

The child ends when its standard input does, so it cannot outlive a parent that was killed; a
session of its own keeps a terminal's Ctrl-C from ending it before the run has drained.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from batchrank.errors import TryLater


@contextmanager
def local_server(scorer: str = "embedded") -> Iterator[str]:
    """Start `batchrank serve` with this scorer on a free port; its base URL."""
    command = [sys.executable, "-m", "batchrank", "serve", "--port", "0"]
    command += ["--scorer", scorer, "--until-stdin-closes"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            announced = child.stdout.readline().strip()
            if not announced.startswith("http://"):
                raise TryLater("the local server did not start; see `batchrank serve`.")
            yield announced
        finally:
            child.kill()  # it keeps nothing that a kill could harm
