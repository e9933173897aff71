"""Promise 40: nobody but a worker that knows the secret has a seat, and no ask makes others wait.

Asks come over loopback HTTP: what web pages send (under any name, from any origin, of any type),
what other users send (without the secret), and asks of a megabyte. Work is counted in the
coordinator's own CPU time, which the noise of a machine does not move by much.
"""

import http.client
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from urllib.parse import urlsplit
from urllib.request import urlopen

from helpers import killed

from batchrank.account.cells import MOST_SEATS
from drills.frame import Drill, Patch, begun, breaks, patched
from drills.pace import told

RPM = 1500
MOST_CPU_SECONDS = 0.3
"""Far above what an ask takes (0.03 s), far below what it took (8 s)."""

PAGES: list[tuple[str, dict[str, str | None]]] = [
    ("another name", {"Host": "evil.example"}),
    ("another name, its port", {"Host": "evil.example:PORT"}),
    ("another port", {"Host": "127.0.0.1:1"}),
    ("another origin", {"Origin": "http://evil.example"}),
    ("no origin to speak of", {"Origin": "null"}),
    ("its own origin", {"Origin": "http://127.0.0.1:PORT"}),
    ("a text", {"Content-Type": "text/plain"}),
    ("a form", {"Content-Type": "application/x-www-form-urlencoded"}),
    ("no type", {"Content-Type": None}),
]
STRANGERS: list[tuple[str, dict[str, str | None]]] = [
    ("no secret", {"Authorization": None}),
    ("another secret", {"Authorization": "Bearer 0123456789012345678901234567890123456789"}),
]


@contextmanager
def _coordinating(folder: Path, workers: int) -> Iterator[tuple["subprocess.Popen[str]", str, str]]:
    """A coordinator, its port, and the secret that its user's workers find."""
    words = ["coordinate", "--workers", workers, "--requests-per-minute", RPM, "--port", 0]
    process = begun(words, HOME=str(folder))
    try:
        assert process.stdout is not None
        port = str(urlsplit(process.stdout.readline().strip()).port)
        file = folder / ".local" / "state" / "batchrank" / f"coordinator-{port}.key"
        assert not file.exists() or file.stat().st_mode & 0o777 == 0o600, "the secret is open"
        yield process, port, file.read_text().strip() if file.exists() else ""
    finally:
        killed(process)


def _asked(port: str, headers: dict[str, str | None], body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    connection.putrequest("POST", "/lease", skip_host=True, skip_accept_encoding=True)
    for name, text in {**headers, "Content-Length": str(len(body))}.items():
        if text is not None:
            connection.putheader(name, text.replace("PORT", port))
    connection.endheaders(body)
    status = connection.getresponse().status
    connection.close()
    return status


def _ask(**more: object) -> bytes:
    ask = {"worker": "w", "serial": 1, "requests_per_minute": RPM, "tokens_per_minute": 0, **more}
    return json.dumps(ask, separators=(",", ":")).encode()


def _own(secret: str) -> dict[str, str | None]:
    return {
        "Host": "127.0.0.1:PORT",
        "Content-Type": "application/json",
        "Authorization": f"Bearer {secret}",
    }


def taken_seat(trials: int, seed: int, folder: Path) -> str:
    """Pages and strangers ask for a seat, as fixed workers and as any; none is taken."""
    kinds = [(name, more, 403) for name, more in PAGES]
    kinds += [(name, more, 401) for name, more in STRANGERS]
    random = Random(seed)
    with _coordinating(folder, 3) as (_, port, secret):
        for trial in range(trials):
            name, more, status = kinds[trial % len(kinds)]
            fixed = {"seat": random.randrange(3), "workers": 3, "fixed": True}
            body = _ask(worker=f"w{trial}", **random.choice([{}, fixed]))
            with told(trial, name):
                came = _asked(port, {**_own(secret), **more}, body)
                assert came == status, f"answered {came}, and {status} is right"
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=60) as answer:
            shares = json.loads(answer.read())["shares"]
        assert shares == {}, f"seats are taken: {shares}"
        assert _asked(port, _own(secret), _ask()) == 200, "a worker has no seat either"
    return f"{trials} asks of {len(kinds)} kinds: no seat taken, and the worker has its own"


def huge_ask(trials: int, seed: int, folder: Path) -> str:
    """A megabyte of pieces, with the secret, to few seats and to many."""
    most, random = 0.0, Random(seed)
    for trial in range(trials):
        seats, gap = [MOST_SEATS, 3, 1000][trial % 3], 12 if trial == 0 else random.choice([2, 8])
        pieces = [[gap * at, gap * at + gap // 2] for at in range(55_000)]
        body = _ask(holding=pieces)
        assert 600_000 < len(body) < 1 << 20, f"{len(body)} bytes"
        own = folder / str(trial)
        with told(trial, f"{seats} seats"), _coordinating(own, seats) as (process, port, secret):
            _asked(port, _own(secret), _ask(worker="before"))  # what is loaded late is there now
            before = _cpu_seconds(process)
            status = _asked(port, _own(secret), body)
            took = _cpu_seconds(process) - before
            assert status in (200, 400), f"answered {status}"
            assert took < MOST_CPU_SECONDS, f"an ask took {took:.2f} s of work"
            most = max(most, took)
    return f"{trials} asks of up to a megabyte: {most:.2f} s of work at the most"


def _cpu_seconds(process: "subprocess.Popen[str]") -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def any_page_is_let_in(trials: int, seed: int, folder: Path) -> str:
    """Whoever knows the secret is let in, whatever page it is."""
    with patched(folder, NO_GUARD):
        said = breaks(lambda: taken_seat(trials, seed, folder), "answered 200")
    return f"taken-seat breaks where pages are let in: {said}"


def no_secret_is_asked_for(trials: int, seed: int, folder: Path) -> str:
    """Every local user is let in."""
    with patched(folder, NO_SECRET):
        said = breaks(lambda: taken_seat(trials, seed, folder), "answered 200")
    return f"taken-seat breaks where no secret is asked for: {said}"


def pieces_one_by_one(trials: int, seed: int, folder: Path) -> str:
    """The set of cells grows piece by piece, and is copied for each."""
    with patched(folder, QUADRATIC):
        said = breaks(lambda: huge_ask(trials, seed, folder), "of work")
    return f"huge-ask breaks where each piece copies the set: {said}"


NO_GUARD = Patch(
    "account/service.py",
    "            refused = self._refusal(request)\n",
    "            refused = None\n",
)
NO_SECRET = Patch("account/service.py", "if not bears(request, self._secret):", "if False:")
QUADRATIC = Patch(
    "account/cells.py",
    "    bits.reverse()\n",
    "    cells = 0\n    for start, stop in reversed(pieces):\n"
    "        cells |= (1 << stop) - (1 << start)\n"
    "    bits.reverse()\n",
)

DRILLS = [
    Drill((40,), "taken-seat", taken_seat, 22, 1100),
    Drill((40,), "control-page-let-in", any_page_is_let_in, 11, 11),
    Drill((40,), "control-no-secret", no_secret_is_asked_for, 11, 11),
    Drill((40,), "huge-ask", huge_ask, 2, 30),
    Drill((40,), "control-huge-ask", pieces_one_by_one, 1, 3),
]
