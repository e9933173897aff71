"""A server for the whole session, servers of a test's own, and a log like that of a new process."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from signal import SIG_DFL, SIG_IGN, SIGHUP, SIGINT, default_int_handler, getsignal, signal

import pytest
from helpers import Server, serving

from batchrank.cli.logs import log

# Whoever starts the tests may ignore these (nohup does), and a child would ignore them too.
for ignored, usual in ((SIGHUP, SIG_DFL), (SIGINT, default_int_handler)):
    if getsignal(ignored) is SIG_IGN:
        signal(ignored, usual)


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


@pytest.fixture(autouse=True)
def log_of_a_new_process() -> Iterator[None]:
    """Take back what a command that ran in this process has arranged for the log."""
    yield
    log.handlers, log.propagate = [], True
    log.setLevel(logging.NOTSET)
