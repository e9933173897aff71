"""What the tests with peers share: programs that we did not write, each in an environment of its
own under .peers/ (made by scripts/test-peers), started as a user would and asked over loopback.
"""

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".peers"
SCIFACT = ROOT / "samples" / "scifact" / "rows.parquet"
KEY = "sk-local"
QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
}
"""Peers that would call home, or a hub, are told not to."""


def environment(**more: str) -> dict[str, str]:
    own = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**own, **QUIET, **more}


def call(peer: str, code: str, *arguments: object, **more: str) -> Any:
    """Run Python in a peer's environment; what it prints last, read as JSON."""
    done = subprocess.run(
        [PEERS / peer / "bin" / "python", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(**more),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    command: list[object], url: str, log: Path, *, cwd: Path, seconds: float = 120, **more: str
) -> Iterator[None]:
    """A peer's server, from the moment that `url` answers."""
    with (
        log.open("wb") as output,
        subprocess.Popen(
            list(map(str, command)), stdout=output, stderr=output, env=environment(**more), cwd=cwd
        ) as process,
    ):
        try:
            deadline = time.monotonic() + seconds
            while not _answers(url):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[
                    -3000:
                ]
                time.sleep(0.2)
            yield
        finally:
            process.kill()


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5):
            return True
    except HTTPError:
        return True
    except (URLError, OSError):
        return False


def post(url: str, body: Any, key: str = KEY) -> Any:
    """The JSON that a server answers, asked by nobody's client."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    with urlopen(Request(url, json.dumps(body).encode(), headers), timeout=60) as answer:
        return json.load(answer)
