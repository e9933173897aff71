"""The servers that subjects talk to, on the other core: the stub, and batchrank's own."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import urlopen

from bench.measure import BATCHRANK, PYTHON, ROOT, pinned


class Server:
    """A server at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> dict[str, Any]:
        """A JSON answer of the server itself."""
        with urlopen(self.url + path, timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


@contextmanager
def stub(*, delay_ms: float = 0, slow_every: int = 0) -> Iterator[Server]:
    """The stub while the block runs."""
    options = ["--delay-ms", delay_ms, "--slow-every", slow_every]
    with _serving([PYTHON, "-m", "bench.stub", *options]) as url:
        yield Server(url)


@contextmanager
def own_server(*options: object) -> Iterator[Server]:
    """`batchrank serve` with scores that cost nothing, while the block runs."""
    command = [BATCHRANK, "serve", "--port", 0, "--scorer", "hash", *options]
    with _serving(command) as url:
        yield Server(url.removesuffix("/compatible-api/v1"))


@contextmanager
def _serving(command: list[object]) -> Iterator[str]:
    process = subprocess.Popen(pinned(command, -1), stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
