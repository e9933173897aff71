"""The local server as a process of its own, for as long as a run wants it.

The child ends when its standard input does, so it cannot outlive a parent that was killed; a
session of its own keeps a terminal's Ctrl-C from ending it before the run has drained.
"""

import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from batchrank.errors import TryLater
from batchrank.files.python_child import python_command

START_SECONDS = 20.0
"""The scorer loads in one second where nothing else is at work."""

_ADDRESS_BYTES = 1000


class LocalServer(NamedTuple):
    """A server that has started."""

    base_url: str
    process: "subprocess.Popen[bytes]"

    def check(self) -> None:
        """Raise `TryLater` if the server has ended."""
        code = self.process.poll()
        if code is not None:
            raise TryLater(
                f"the local server ended {_describe_end(code)} while the run was at work; the same "
                "command goes on from here."
            )


@contextmanager
def local_server(scorer: str = "embedded") -> Iterator[LocalServer]:
    """Start `batchrank serve` with this scorer on a free port. Raises `TryLater` where it ends, or
    says nothing for `START_SECONDS`.
    """
    command = python_command(
        "batchrank", "serve", "--port", "0", "--scorer", scorer, "--until-stdin-closes"
    )
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as child:
        try:
            yield LocalServer(_read_address(child), child)
        finally:
            child.kill()  # it keeps nothing that a kill could harm


def _read_address(child: "subprocess.Popen[bytes]") -> str:
    """Return the first line that the server prints, which is its base URL."""
    assert child.stdout is not None
    ready, line = select.poll(), b""
    ready.register(child.stdout, select.POLLIN)
    until = time.monotonic() + START_SECONDS
    while not line.endswith(b"\n"):
        if not ready.poll(max(0.0, until - time.monotonic()) * 1000):
            raise TryLater(
                f"the local server said nothing for {START_SECONDS:g} s; see `batchrank serve`."
            )
        more = os.read(child.stdout.fileno(), _ADDRESS_BYTES)
        if not more or len(line) > _ADDRESS_BYTES:
            break
        line += more
    address = line.decode("latin1").strip()
    if not address.startswith("http://"):
        raise TryLater("the local server did not start; see `batchrank serve`.")
    return address


def _describe_end(code: int) -> str:
    return f"by signal {-code}" if code < 0 else f"with code {code}"
