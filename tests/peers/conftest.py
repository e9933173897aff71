"""The suite's helpers, and a server of ours that wants a key."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from helpers import Server, serving  # noqa: E402 - the path first
from peer import KEY  # noqa: E402


@pytest.fixture(scope="session")
def gate() -> Iterator[Server]:
    with serving("--api-key-env", "GATE", GATE=KEY) as server:
        yield server
