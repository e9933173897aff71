"""Promises 22 to 25: leaves when told, is silent when well, tells no secret, opens no door."""

import json
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from helpers import (
    KEY,
    PROGRAM,
    Server,
    clean,
    ended,
    fast,
    output,
    part_bytes,
    serving,
    table,
    until,
    written,
)
from test_resume_after_kill import answers, settled
from test_terminal_and_silence import FAULTS, TEXT, canary_rows, everything

from drills.frame import Drill, Patch, begun, environment, patched
from drills.pace import told


@contextmanager
def ending(process: "subprocess.Popen[str]") -> Iterator[None]:
    """Leave no process behind, whatever breaks in the block."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


DRAIN_LIMIT_SECONDS = 4.0
GRACE_SECONDS = 0.05


# 22


def sigterm(trials: int, seed: int, folder: Path) -> str:
    """SIGTERM at a random instant, half of the time twice: gone in 4 s with 143, nothing sent from
    50 ms on, and what arrives during the drain is kept.
    """
    longest, kept, drained = 0.0, 0, 0
    rows = table(1500, tag="sigterm")
    source = written(folder / "in.parquet", rows)
    script = folder / "slow.toml"
    # Half of the answers come within the drain of 2.5 s; a few never do.
    script.write_text(
        '[[fault]]\nkind = "slow"\nseconds = 0.8\nwhere = { probability = 0.1 }\n'
        '[[fault]]\nkind = "stall"\nwhere = { probability = 0.005 }\n'
        '[[fault]]\nkind = "slow"\nseconds = 0.1\n'
    )
    with serving("--faults", str(script)) as server:
        for trial in range(trials):
            random, out = Random(f"{seed}:{trial}"), folder / f"out-{trial}"
            with told(trial):
                seconds, more, late = _stopped(server, source, out, random)
            longest, kept, drained = max(longest, seconds), kept + more, drained + late
        assert server.ledger()["faults"]["slow"], "no answer was slow"
    assert drained, "no answer arrived during a drain"
    return (
        f"{trials} signals: gone in {longest:.2f} s at the most, {kept} answers on disk, {drained} "
        "of them from the drain; nothing was sent from 50 ms on"
    )


def _stopped(server: Server, source: Path, out: Path, random: Random) -> tuple[float, int, int]:
    """One run and its end: how long that took, answers kept, and those of the drain."""
    before = settled(server)
    in_flight = random.choice([4, 16, 64])
    process = begun([*fast(server, out, source), "--max-in-flight", in_flight])
    with ending(process):
        if random.random() < 0.2:
            time.sleep(random.uniform(0, 0.5))  # the run may hardly have begun
        else:
            # A place whose answer never comes is lost, and four are soon all lost.
            goal = before["received"] + random.randint(1, min(400, 25 * in_flight))
            until(lambda: server.received >= goal, "it sends")
            time.sleep(random.uniform(0, 0.2))
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        time.sleep(GRACE_SECONDS)
        then = server.ledger()
        if random.random() < 0.5:
            time.sleep(random.uniform(0, 1))
            process.send_signal(signal.SIGTERM)
        code, stdout, stderr = ended(process, timeout=60)
    seconds = time.monotonic() - began
    now = settled(server)
    assert seconds <= DRAIN_LIMIT_SECONDS, f"took {seconds:.2f} s"
    assert now["received"] == then["received"], (
        f"{now['received'] - then['received']} requests from 50 ms after the signal on"
    )
    if code == -signal.SIGTERM:
        assert not out.exists(), "killed by the signal although it had begun"
        return seconds, 0, 0
    assert code == 143, f"ended with {code}: {stderr}"
    assert stdout == "" and len(stderr.splitlines()) <= 1, stderr
    if not (out / "_run.json").exists():
        return seconds, 0, 0
    receipt = json.loads((out / "_run.json").read_bytes())
    kept = len(answers(out, out.parent / "scratch")) + sum(
        output(out).num_rows for _ in [0] if part_bytes(out)
    )
    sent = now["received"] - before["received"]
    assert receipt["requests"] == sent, f"{sent} sent, {receipt['requests']} in the receipt"
    # Each request was answered, and then it is on disk, or its outcome is told to be unknown.
    assert kept + receipt["possibly_paid"] == sent, (
        f"{sent} sent, {kept} on disk, {receipt['possibly_paid']} of unknown outcome"
    )
    statuses = [one["statuses"].get("200", 0) for one in (then, now)]
    return seconds, kept, statuses[1] - statuses[0]


# 23


def silence(trials: int, seed: int, folder: Path) -> str:
    """As cron runs it: without environment, terminal and input. Nothing is said when all is well,
    and one to three lines on standard error when it is not.
    """
    rows = written(folder / "in.parquet", table(30, tag="cron"))
    broken = folder / "broken.parquet"
    broken.write_bytes(b"PAR1 and no more")
    config, poison = folder / "bad.toml", folder / "poison.toml"
    config.write_text("[rate]\nrequest_per_minute = 1\n")
    poison.write_text('[[fault]]\nkind = "content_refusal"\nwhere = { marker = " row 7 " }\n')
    nobody = socket.socket()
    nobody.bind(("127.0.0.1", 0))  # bound, and not listening
    outage = folder / "outage.toml"
    outage.write_text(
        f'[endpoint]\nbase_url = "http://127.0.0.1:{nobody.getsockname()[1]}/v1"\n'
        "max_outage_seconds = 0.5\n"
    )
    taken = folder / "a-file"
    taken.touch()
    out = folder / "out"
    with serving() as good, serving("--faults", str(poison)) as poisoned:
        cases: list[tuple[int, list[object]]] = [
            (0, fast(good, out, rows)),
            (0, fast(good, out, rows)),
            (0, ["run", rows, "-o", folder / "local", "--provider", "local"]),
            (3, fast(poisoned, folder / "three", rows)),
            (4, [*fast(good, folder / "four", rows), "--max-cost", "0.00001"]),
            (65, fast(good, folder / "bad", broken)),
            (66, fast(good, folder / "none", folder / "none.parquet")),
            (73, fast(good, taken, rows)),
            (75, ["run", rows, "-o", folder / "outage", "-c", outage]),
            (78, ["run", rows, "-o", folder / "key", "--provider", "dashscope"]),
            (78, ["run", rows, "-o", folder / "config", "-c", config]),
            (78, [*fast(good, out, rows), "--model", "gte-rerank-v2"]),
            (2, ["run", rows]),
        ]
        for _ in range(trials):
            _quiet(*cases[0])  # the others find this output finished
            with ThreadPoolExecutor(4) as threads:
                list(threads.map(lambda case: _quiet(*case), cases[1:]))
    nobody.close()
    return f"{trials * len(cases)} commands under env -i: 0 bytes on success, 1 to 3 lines else"


def _quiet(code: int, arguments: Sequence[object]) -> None:
    given = [f"{name}={value}" for name, value in environment().items()]
    done = subprocess.run(
        ["env", "-i", *given, *PROGRAM, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
        check=False,
    )
    said = f"{' '.join(map(str, arguments[:6]))}: "
    assert done.returncode == code, f"{said}{done.returncode}, not {code}: {done.stderr}"
    assert done.stdout == "", f"{said}on standard output: {done.stdout}"
    lines = [line for line in done.stderr.splitlines() if line]
    assert (not lines) if code == 0 else (1 <= len(lines) <= 3), f"{said}{lines}"
    assert "\x1b" not in done.stderr and "Traceback" not in done.stderr, said + done.stderr


# 24

LOUD = {"PYTHONASYNCIODEBUG": "1", "PYTHONDEVMODE": "1", "PYTHONFAULTHANDLER": "1"}
CRASHES = {
    "between answer and checkpoint": Patch(
        "session/session.py",
        "    def _record(self, plan: RequestPlan, outcome: Outcome) -> None:\n",
        "    def _record(self, plan: RequestPlan, outcome: Outcome) -> None:\n"
        "        if self._figures.spent.requests > 5:\n            raise ZeroDivisionError\n",
    ),
    "in the transport": Patch(
        "sending/http_client.py",
        "            headers = response.headers\n",
        "            headers = response.headers\n"
        "            response.raise_for_status() if self else None\n"
        "            assert not self._session.closed and not content[-2:] == b'}}'\n"
        "            raise RuntimeError\n",
    ),
}
"""Bugs, put in on purpose: what a traceback shows of the values around it."""


def canary(trials: int, seed: int, folder: Path) -> str:
    """A key and a text that must be seen nowhere: with faults, when stopped, when killed and in a
    crash, everything at debug.
    """
    looked_at = 0
    for trial in range(trials):
        for how in ("end", "SIGTERM", "SIGKILL", *CRASHES):
            random = Random(f"{seed}:{trial}:{how}")
            with told(trial, how):
                looked_at += _seen_nowhere(folder / f"{trial} {how}", how, random)
    return f"{trials} x {len(CRASHES) + 3} endings, {looked_at:,} bytes looked through: neither"


def _seen_nowhere(folder: Path, how: str, random: Random) -> int:
    source, script = written(folder / "in.parquet", canary_rows()), folder / "faults.toml"
    slow = '[[fault]]\nkind = "slow"\nseconds = 0.2\n' if how.startswith("SIG") else ""
    script.write_text(f"seed = {random.randrange(10**6)}\n{FAULTS}{slow}")
    config, out = folder / "c.toml", folder / "out"
    config.write_text(
        f'[output]\ncompression = "none"\n[endpoint]\nheaders = {{ X-Extra = "{KEY}-2" }}\n'
    )
    provider = random.choice(["dashscope", "dashscope-native"])
    options = ["--faults", str(script), "--api-key-env", "THE_KEY"]
    with ExitStack() as stack:
        server = stack.enter_context(serving(*options, THE_KEY=KEY))
        if how in CRASHES:
            stack.enter_context(patched(folder, CRASHES[how]))
        url = server.base_url if provider == "dashscope" else server.native_url
        run = ["run", source, "-o", out, "--provider", provider, "--base-url", url, "-c", config]
        more = ["--requests-per-minute", 0, "--max-in-flight", 4, "--summary", "json"]
        process = subprocess.Popen(
            [*PROGRAM, *map(str, run), *map(str, more), "--log-level", "debug"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean(DASHSCOPE_API_KEY=KEY, **(LOUD if how == "end" else {}), **environment()),
        )
        with ending(process):
            until(lambda: server.received > 8 or process.poll() is not None, "some are sent")
            shown = _arguments(process.pid)
            if how.startswith("SIG"):
                process.send_signal(signal.Signals[how])
            code, stdout, stderr = ended(process)
        happened = server.ledger()["faults"]
    expected = {"end": 0, "SIGTERM": 143, "SIGKILL": -signal.SIGKILL}.get(how, 1)
    assert code == expected, f"ended with {code}: {stderr[-300:]}"
    assert ("Traceback" in stderr) == (how in CRASHES), stderr[-300:]
    assert how in CRASHES or happened.keys() & {"status", "string_score", "content_refusal"}
    shown += (stdout + stderr).encode() + everything(out)
    for word in (KEY, TEXT):
        assert word.encode() not in shown, f'"{word}" was shown: {_around(shown, word)!r}'
    for command in ("status", "verify") if how == "end" else ():
        done = subprocess.run(
            [*PROGRAM, command, str(out)], capture_output=True, env=clean(), check=False, timeout=60
        )
        assert not any(word.encode() in done.stdout + done.stderr for word in (KEY, TEXT)), command
    return len(shown)


def _arguments(process: int) -> bytes:
    """The command lines of a process and its children, if it still runs."""
    try:
        own = Path(f"/proc/{process}/cmdline").read_bytes()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        return own + b"".join(Path(f"/proc/{child}/cmdline").read_bytes() for child in children)
    except OSError:
        return b""


def _around(shown: bytes, word: str) -> bytes:
    at = shown.index(word.encode())
    return shown[max(0, at - 200) : at + 50]


# 25


def modes(trials: int, seed: int, folder: Path) -> str:
    """What a run keeps is for its owner alone: looked at all the while, under any umask."""
    seen: set[str] = set()
    script = folder / "slow.toml"
    script.write_text('[[fault]]\nkind = "slow"\nseconds = 0.05\n')
    source = written(folder / "in.parquet", table(300, tag="modes"))
    config = folder / "c.toml"
    config.write_text("[output]\nrows_per_part = 60\n")
    with serving("--faults", str(script)) as server:
        for trial in range(trials):
            random, out = Random(f"{seed}:{trial}"), folder / f"out-{trial}"
            umask = [0, 0o022, 0o077, 0o002][trial % 4]
            run = [*fast(server, out, source), "-c", config, "--max-in-flight", 16]
            process = subprocess.Popen(
                [*PROGRAM, *map(str, run)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=clean(**environment()),
                umask=umask,
            )
            state = out / "_batchrank"
            with ending(process):
                while process.poll() is None:
                    seen |= _open_to_others(state, trial)
                    time.sleep(random.uniform(0, 0.01))
            code, _, stderr = ended(process)
            assert code == 0, f"ended with {code}: {stderr}"
            seen |= _open_to_others(state, trial)
            names = {path.name for path in out.iterdir()}
            odd = [n for n in names if not re.fullmatch(r"part-\d{5,}\.parquet|_\w+(\.json)?", n)]
            assert not odd, f"a name from elsewhere: {odd}"
    assert {"checkpoint.sqlite", "checkpoint.sqlite-wal"} <= seen, f"saw only {sorted(seen)}"
    return f"{trials} runs: the state 0700, its {len(seen)} kinds of file closed to everybody else"


DRAFTS = {"_run.json.part", "_SUCCESS.part", "_batchrank.json.part", "run.json.part"}


def _open_to_others(state: Path, trial: int) -> set[str]:
    """The files of the state that were there to be looked at; none may be open to others but the
    drafts of what is published, which have its mode already, behind the state's own 0700.
    """
    seen = set()
    try:
        mode = state.stat().st_mode & 0o777
    except OSError:
        return seen
    assert mode == 0o700, f"trial {trial}: the state has mode {mode:o}"
    for path in state.iterdir():
        try:
            mode = path.stat().st_mode & 0o777
        except OSError:
            continue
        draft = path.name in DRAFTS or path.name.endswith((".parquet.part", ".arrow.part"))
        assert draft or not mode & 0o077, f"trial {trial}: {path.name} has mode {mode:o}"
        seen.add(path.name)
    return seen


def addresses(trials: int, seed: int, folder: Path) -> str:
    """http:// to loopback alone, whatever the spelling; a certificate of its own making is refused
    before a byte of the request is sent.
    """
    source = written(folder / "in.parquet", table(300, tag="http"))
    others = [
        "http://192.0.2.1/v1",
        "http://example.com/v1",
        "HTTP://10.0.0.1/v1",
        "http://127.0.0.1.example.com/v1",
        "http://localhost.example.com/v1",
        "http://[2001:db8::1]/v1",
        "http://0.0.0.0/v1",
        "http://2130706433/v1",
    ]
    for number, url in enumerate(others):
        run = ["run", source, "-o", folder / f"out{number}", "--base-url", url]
        code, _, stderr = ended(begun(run), timeout=20)
        assert code == 78 and "http://" in stderr, f"{url}: ended with {code}: {stderr}"
    certificate, key = _certificate(folder)
    with _https(certificate, key) as (url, requests):
        run = ["run", source, "-o", folder / "tls", "--base-url", url]
        code, _, stderr = ended(begun(run), timeout=30)
        assert (code, requests) == (78, []), f"ended with {code} after {requests}: {stderr}"
        # The same server, its certificate trusted: it was the certificate and nothing else.
        process = subprocess.Popen(
            [*PROGRAM, *map(str, run)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean(SSL_CERT_FILE=str(certificate), **environment()),
        )
        code, _, stderr = ended(process, timeout=30)
        assert code == 77 and requests, f"trusted, ended with {code}: {stderr}"
    return (
        f"{len(others)} http:// addresses of other machines refused; an untrusted certificate "
        "refused before anything was sent, the same one trusted is served"
    )


def _certificate(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "cert.pem", folder / "key.pem"
    try:
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
                *("-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost"),
                *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            ],
            check=True,
            capture_output=True,
            timeout=60,
        )
    except FileNotFoundError:
        pytest.skip("needs openssl")
    return certificate, key


@contextmanager
def _https(certificate: Path, key: Path) -> Iterator[tuple[str, list[str]]]:
    """An https server that refuses every key; the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            body = b'{"code":"InvalidApiKey","message":"Invalid API-key provided."}'
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    server.handle_error = lambda request, address: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"https://localhost:{server.server_address[1]}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def local_server(trials: int, seed: int, folder: Path) -> str:
    """Our own server: on loopback alone, a cap on bodies, and 200 slow callers hold nobody up."""
    source = written(folder / "in.parquet", table(200, tag="slow"))
    callers = 200 * trials
    with serving() as server:
        port = int(server.host.rsplit(":", 1)[1])
        listening = _listening(port)
        assert listening == {"0100007F"}, f"listens on {listening}"
        for address in _own_addresses():
            with socket.socket() as other:
                other.settimeout(2)
                assert other.connect_ex((address, port)), f"answers on {address}"
        assert _status(server, b"x" * (40 << 20)) == 413
        assert _status(server, b'{"query": "' + b"y" * (33 << 20)) == 413
        with ExitStack() as stack:
            for number in range(callers):
                caller = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
                caller.sendall(_begun_request(number))
            began = time.monotonic()
            code, _, stderr = ended(begun(fast(server, folder / "out", source)), timeout=30)
            seconds = time.monotonic() - began
            assert code == 0, f"ended with {code}: {stderr}"
            assert output(folder / "out").num_rows == 200
            with urlopen(server.host + "/health", timeout=2) as answer:
                assert answer.status == 200
        assert server.ledger()["requests"] == 200
    return (
        f"on 127.0.0.1 alone, 413 over 32 MB, a run of 200 rows took {seconds:.1f} s beside "
        f"{callers} callers who never finish a request"
    )


def _listening(port: int) -> set[str]:
    """The addresses, as the kernel spells them, on which somebody listens at this port."""
    found = set()
    for table_ in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table_}").read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == "0A" and int(address.split(":")[1], 16) == port:
                found.add(address.split(":")[0])
    return found


def _own_addresses() -> list[str]:
    addresses = {one[4][0] for one in socket.getaddrinfo(socket.gethostname(), 0, socket.AF_INET)}
    return [address for address in map(str, addresses) if not address.startswith("127.")]


def _status(server: Server, body: bytes) -> int:
    request = Request(server.base_url + "/reranks", body, {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code
    except OSError:
        return 413  # the answer came before the body was through, and then the connection closed


def _begun_request(number: int) -> bytes:
    head = b"POST /compatible-api/v1/reranks HTTP/1.1\r\nHost: x\r\n"
    body = b'Content-Length: 1000\r\n\r\n{"model": "qwen3-re'
    return [head, head + body, b"POST ", b"", head + b"X: " + b"y" * 500][number % 5]


DRILLS: Sequence[Drill] = [
    Drill((22,), "sigterm", sigterm, 3, 100),
    Drill((23,), "silence", silence, 1, 5),
    Drill((24,), "canary", canary, 1, 12),
    Drill((25,), "modes", modes, 2, 20),
    Drill((25,), "addresses", addresses, 1, 1),
    Drill((25,), "local-server", local_server, 1, 4),
]
