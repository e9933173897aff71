"""A server for the whole session, and servers of a test's own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from helpers import Server, serving


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Our server, with the hash scorer and without faults."""
    with serving() as one:
        yield one


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`serve(faults, *options, **environment)`: a server of this test's own."""
    with ExitStack() as stack:

        def begin(faults: str = "", *options: str, **environment: str) -> Server:
            script = tmp_path / f"faults-{len(list(tmp_path.glob('faults-*')))}.toml"
            script.write_text(faults)
            chosen = ["--faults", str(script), *options] if faults else [*options]
            return stack.enter_context(serving(*chosen, **environment))

        yield begin
