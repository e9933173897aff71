"""Promises 27, 28, 31 and 38: what a server, a proxy or a pause does to the HTTP client.

The server is a thread of ours whose bytes are ours as well. A score tells by itself which query and
text it belongs to.
"""

import asyncio
import hashlib
import json
import signal
import time
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
from helpers import KEY, ended, output, table, until, written
from raw_server import Peer, http, raw_server_beside

from drills.frame import Drill, Patch, begun, breaks, last_line, patched
from drills.pace import told

SECRET = "hunter2-in-a-header"


def score(query: str, text: str) -> float:
    """The one score of a pair."""
    return int(hashlib.md5(f"{query}\0{text}".encode()).hexdigest()[:12], 16) / 16**12


class Scorer:
    """Answers requests, and counts them by content; `in_flight`: those not answered yet."""

    def __init__(self) -> None:
        self.ledger: Counter[bytes] = Counter()
        self.instants: list[float] = []
        self.in_flight = 0
        self.strays = 0

    @property
    def paid_twice(self) -> int:
        return self.ledger.total() - len(self.ledger)

    def answer(self, body: bytes) -> bytes:
        """Count a request; its right answer."""
        self.ledger[hashlib.md5(body).digest()] += 1
        self.instants.append(time.monotonic())
        ask = json.loads(body)
        results = [
            {"index": place, "relevance_score": score(ask["query"], text)}
            for place, text in enumerate(ask["documents"])
        ]
        return http({"results": results, "usage": {"total_tokens": 9}})


def command(url: str, source: Path, out: Path, *more: object) -> list[object]:
    return ["run", source, "-o", out, "--provider", "dashscope", "--base-url", url, *more]


def wrong_rows(rows: pa.Table, out: Path) -> int:
    """How many rows of a finished output have another pair's score, or none."""
    wrong = 0
    for row, came in zip(rows.to_pylist(), output(out).to_pylist(), strict=True):
        texts = [candidate["text"] for candidate in row["candidates"]]
        found = {one["index"]: one["relevance_score"] for one in came["results"]}
        wrong += found != {place: score(row["query"], text) for place, text in enumerate(texts)}
    return wrong


# 27


def stray_answers(trials: int, seed: int, folder: Path) -> str:
    """Answers that come a second time, 0 to 100 ms after the first, at a slow and at full speed:
    no row has another's score, and connections are used again.
    """
    strays = connections = rows = 0
    for trial in range(trials):
        random, own = Random(f"{seed}:{trial}"), folder / str(trial)
        rpm = [0, 6000, 1500][trial % 3]
        data = table(600, tag=f"stray{seed}-{trial}")
        scorer = Scorer()
        serve = _twice(scorer, random, random.choice([0, 0.002, 0.02]))
        with told(trial, f"{rpm} a minute"), raw_server_beside(serve) as server:
            source = written(own / "in.parquet", data)
            more = ["--requests-per-minute", rpm, "--max-in-flight", random.choice([1, 8])]
            process = begun(command(server.url, source, own / "out", *more), DASHSCOPE_API_KEY=KEY)
            code, _, stderr = ended(process, 120)
            assert code == 0, f"ended with {code}: {last_line(stderr)}"
            wrong = wrong_rows(data, own / "out")
            assert not wrong, f"{wrong} rows have another row's scores"
            assert scorer.strays > 100, f"only {scorer.strays} answers came twice"
            assert server.connections <= scorer.strays + 20, "connections are not used again"
        strays, connections, rows = (
            strays + scorer.strays,
            connections + server.connections,
            rows + data.num_rows,
        )
    return f"{strays} stray answers among {rows} rows: 0 wrong, {connections} connections"


def _twice(scorer: Scorer, random: Random, latency_seconds: float) -> Callable[[Peer], Any]:
    """Serve with every third answer sent twice."""

    async def serve(peer: Peer) -> None:
        loop = asyncio.get_running_loop()
        while True:
            _, body = await peer.read_request()
            await asyncio.sleep(random.uniform(0, latency_seconds))
            said = scorer.answer(body)
            peer.say(said)
            if random.random() < 1 / 3:
                scorer.strays += 1
                loop.call_later(random.uniform(0, 0.1), peer.say, said)

    return serve


NO_GUARD = [
    Patch(
        "sending/connections.py",
        "        if self._came_early or not self.is_connected() or self._has_unread_bytes():\n",
        "        if not self.is_connected():\n",
    ),
    Patch("sending/connections.py", "            if self._was_used:\n", "            if False:\n"),
]


def without_guard(trials: int, seed: int, folder: Path) -> str:
    """The control: bytes on an idle connection are kept, as aiohttp keeps them."""
    with patched(folder, *NO_GUARD):
        said = breaks(lambda: stray_answers(trials, seed, folder), "have another row's scores")
    return f"stray-answers breaks without the guard: {said}"


# 28

ADDRESSES = {
    "socks5://me:{secret}@127.0.0.1:1080": 78,
    "http://": 78,
    "http://me:{secret}@:3128": 78,
    "http://me:{secret}#@127.0.0.1:3128": 78,
    "http://127.0.0.1:0": 78,
    "ftp://127.0.0.1:21": 78,
}
REFUSALS: dict[bytes, Sequence[int]] = {
    http(b"", 403): (78,),
    http(b"", 407): (78,),
    http(b"<html>not found", 404): (78,),
    http(b"", 502): (75,),
    http(b"", 503): (75,),
    http(b"", 504): (75,),
    b"SSH-2.0-OpenSSH_9.2\r\n": (75, 78),
    b"\x00\xff" * 40: (75, 78),
    b"": (75, 78),
}
NAMES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def proxies(trials: int, seed: int, folder: Path) -> str:
    """Every refusal of a proxy, and every address that is none: its code, the variable named, no
    password said, nothing counted as paid; and the proxy was sent CONNECT, Host, its credentials.
    """
    heard: list[str] = []
    with ThreadPoolExecutor(4) as threads:
        for trial in range(trials):
            random, own = Random(f"{seed}:{trial}"), folder / str(trial)
            source = written(own / "in.parquet", table(20, tag="proxy"))
            kinds = [*ADDRESSES, *REFUSALS]
            runs = [
                threads.submit(_behind, kind, own / str(number), source, random, heard)
                for number, kind in enumerate(kinds)
            ]
            for kind, run in zip(kinds, runs, strict=True):
                with told(trial, repr(kind[:40])):
                    run.result()
    allowed = ("CONNECT ", "Host: rerank.example", "Proxy-Authorization: Basic ")
    lines = {line for head in heard for line in head.split("\r\n") if line}
    more = [line for line in lines if not line.startswith(allowed)]
    assert len(heard) >= trials * len(REFUSALS), "the proxies were hardly asked"
    assert not more, f"the proxy was told more than where to connect to: {more}"
    return f"{trials * (len(ADDRESSES) + len(REFUSALS))} proxies, {len(heard)} CONNECTs: no secret"


def _behind(kind: str | bytes, own: Path, source: Path, random: Random, heard: list[str]) -> None:
    """A run through an address that is none, or through a proxy that says such bytes."""
    if isinstance(kind, str):
        where = kind.format(secret=SECRET)
        _refused(own, source, random.choice(NAMES), where, (ADDRESSES[kind],), random)
        return

    async def serve(peer: Peer) -> None:
        head = await peer.reader.readuntil(b"\r\n\r\n")
        heard.append(head.decode("latin1"))
        peer.say(kind)
        await peer.writer.drain()

    with raw_server_beside(serve) as proxy:
        scheme = random.choice(["http://", ""])
        where = f"{scheme}me:{SECRET}@127.0.0.1:{proxy.port}"
        _refused(own, source, random.choice(NAMES), where, REFUSALS[kind], random)


def _refused(
    own: Path, source: Path, variable: str, where: str, codes: Sequence[int], random: Random
) -> None:
    """A run through such a proxy, with a cap on its cost or not."""
    own.mkdir(parents=True)
    config = own / "c.toml"
    config.write_text(f'[endpoint]\nmax_outage_seconds = 1\nheaders = {{ X-Team = "{SECRET}" }}\n')
    cap = ["--max-cost", "0.01"] if random.random() < 0.5 else []
    run = command("https://rerank.example/v1", source, own / "out", "-c", config, *cap)
    process = begun(run, DASHSCOPE_API_KEY=KEY, **{variable: where})
    code, _, stderr = ended(process, 60)
    assert code in codes, f"ended with {code}: {last_line(stderr)}"
    assert variable.upper() in stderr and "Traceback" not in stderr, stderr[-300:]
    assert SECRET not in stderr and KEY not in stderr, "a secret was said"
    receipt = json.loads((own / "out" / "_run.json").read_bytes())
    paid = (receipt["possibly_paid"], receipt["cost_usd"], receipt["tokens_billed"])
    assert paid == (0, 0, 0), f"counted as paid: {paid}"


HEADERS_OF_THE_SESSION = Patch(
    "sending/http_client.py",
    "        headers=sent if proxy is None else None,\n",
    "        headers=sent,\n",
)


def headers_of_the_session(trials: int, seed: int, folder: Path) -> str:
    """The control: headers are the session's, whose proxy gets them as well."""
    with patched(folder, HEADERS_OF_THE_SESSION):
        said = breaks(lambda: proxies(1, seed, folder), "told more than where to connect to")
    return f"proxies breaks where headers are the session's: {said[:80]}"


# 31


def standstills(trials: int, seed: int, folder: Path) -> str:
    """A process stopped at any instant, for less or longer than its time-out, while answers come:
    none is paid twice, and no burst follows.
    """
    stopped = most = 0
    for trial in range(trials):
        random, own = Random(f"{seed}:{trial}"), folder / str(trial)
        scorer, latency = Scorer(), random.uniform(0.2, 0.9)
        config = own / "c.toml"
        source = written(own / "in.parquet", table(240, tag=f"stop{trial}"))
        config.write_text("[endpoint]\ntimeout_seconds = 2\n[rate]\nramp_seconds = 0\n")

        async def serve(peer: Peer, scorer: Scorer = scorer, latency: float = latency) -> None:
            while True:
                _, body = await peer.read_request()
                said = scorer.answer(body)
                scorer.in_flight += 1
                await asyncio.sleep(latency)
                scorer.in_flight -= 1
                peer.say(said)

        with told(trial), raw_server_beside(serve) as server:
            more = ["-c", config, "--requests-per-minute", 2400, "--max-in-flight", 64]
            process = begun(command(server.url, source, own / "out", *more), DASHSCOPE_API_KEY=KEY)
            flying, went = _stop(process, scorer, random)
            code, _, stderr = ended(process, 60)
            assert code == 0, f"ended with {code}: {last_line(stderr)}"
            assert not scorer.paid_twice, f"{scorer.paid_twice} requests were paid twice"
            after = [instant for instant in scorer.instants if instant > went]
            burst = max((bisect_left(after, at + 1) - n for n, at in enumerate(after)), default=0)
            assert burst <= 47, f"a burst: {burst} requests within a second, 40 are allowed"
        stopped, most = stopped + flying, max(most, burst)
    return f"{trials} stops with {stopped} in flight: 0 paid twice, at most {most} a second of 40"


def _stop(process: Any, scorer: Scorer, random: Random) -> tuple[int, float]:
    """Stop a run for a while; how many requests were in flight, and when it went on."""
    goal = random.randint(30, 150)
    until(lambda: scorer.ledger.total() >= goal, "it sends")
    time.sleep(random.uniform(0, 0.1))
    process.send_signal(signal.SIGSTOP)
    flying = scorer.in_flight
    time.sleep(random.choice([1.4, 1.8, 2.1, 2.6, 4, 7]))
    process.send_signal(signal.SIGCONT)
    return flying, time.monotonic()


BY_THE_CLOCK = [
    Patch("sending/http_client.py", "if delay > STANDSTILL_SECONDS:", "if delay > 1e9:"),
    Patch("sending/http_client.py", "elif delay > _DELAY_SECONDS and", "elif delay > 1e9 and"),
]


def by_the_clock(trials: int, seed: int, folder: Path) -> str:
    """The control: who is late by the clock is late."""
    with patched(folder, *BY_THE_CLOCK):
        said = breaks(lambda: standstills(trials, seed, folder), "were paid twice")
    return f"standstills breaks where the clock alone counts: {said}"


# 38

FORGED = "\nbatchrank: all is well"
UNSEEN = [chr(code) for code in (*range(32), *range(127, 160), 0xAD, 0x61C, 0xE000, 0xE0001)]
UNSEEN += [chr(code) for code in (*range(0x200B, 0x2010), *range(0x2028, 0x202F), 0x2066, 0xFEFF)]


def unseen(text: str, but: str) -> list[str]:
    """What a terminal would obey in a text."""
    kinds = {sign: unicodedata.category(sign) for sign in set(text) - set(but)}
    return [
        f"U+{ord(s):04X}" for s, kind in kinds.items() if kind[0] == "C" or kind in ("Zl", "Zp")
    ]


def control_characters(trials: int, seed: int, folder: Path) -> str:
    """Whatever sign a server, a file's name or a configuration says: none reaches standard error,
    the log, `error`, the report or the status.
    """
    looked_at = 0
    for trial in range(trials):
        random, own = Random(f"{seed}:{trial}"), folder / str(trial)
        evil = "".join(random.sample(UNSEEN, 12)) + "\x1b[2J" + FORGED
        for status in random.sample([400, 401, 402, 403, 404, 422, 429, 500, 503], 3):
            with told(trial, f"status {status}"):
                looked_at += _shown(own / str(status), evil, status, random)
        with told(trial, "names"):
            name = evil.replace("/", "").replace("\0", "")
            config = own / "c.toml"
            config.write_text(f"[{random.choice(['rate', 'x'])}]\n{json.dumps(evil)} = 1\n")
            runs = [["run", own / f"{name}.parquet", "-o", own / "o"]]
            runs += [["run", own, "-o", own / "o", "-c", config], ["verify", own / name]]
            for run in runs:
                _, shown, said = ended(begun(run), 60)
                looked_at += _look(said + shown)
    return f"{looked_at:,} signs of messages, logs and pages looked at: each can be seen"


def _shown(own: Path, evil: str, status: int, random: Random) -> int:
    answer = http({"code": evil, "message": evil, "error": {"type": evil}}, status)
    scorer = Scorer()

    async def serve(peer: Peer) -> None:
        while True:
            _, body = await peer.read_request()
            right = scorer.answer(body)
            peer.say(answer if scorer.ledger.total() % 5 == 0 else right)

    config = own / "c.toml"
    source = written(own / "in.parquet", table(30, tag="evil"))
    config.write_text("[endpoint]\nmax_outage_seconds = 2\n")
    log = ["--log-level", "debug", "--log-format", random.choice(["text", "json"])]
    with raw_server_beside(serve) as server:
        run = command(server.url, source, own / "out", "-c", config, *log)
        _, _, stderr = ended(begun(run, DASHSCOPE_API_KEY=KEY), 90)
    looked_at = _look(stderr)
    if list((own / "out").glob("part-*")):
        errors = [error for error in output(own / "out")["error"].to_pylist() if error]
        looked_at += _look("".join(errors), but="")
    for more in ("report", "status"):
        _, shown, said = ended(begun([more, own / "out"]), 60)
        looked_at += _look(shown + said)
    return looked_at + _look((own / "out" / "_report.html").read_text(), but="\n\t")


def _look(text: str, but: str = "\n") -> int:
    found = unseen(text, but)
    assert not found, f"shown as they are: {found}"
    assert FORGED not in text, "a forged line"
    return len(text)


RAW = Patch("errors.py", "    if text.isprintable():\n        return text\n", "    return text\n")


def raw(trials: int, seed: int, folder: Path) -> str:
    """The control: texts are shown as they come."""
    with patched(folder, RAW):
        said = breaks(lambda: control_characters(trials, seed, folder), "as they are", "forged")
    return f"control-characters breaks where texts are shown as they come: {said[:80]}"


DRILLS: Sequence[Drill] = [
    Drill((27,), "stray-answers", stray_answers, 2, 30),
    Drill((27,), "control-no-guard", without_guard, 2, 6),
    Drill((28,), "proxies", proxies, 1, 8),
    Drill((28,), "control-headers-of-the-session", headers_of_the_session, 1, 1),
    Drill((31,), "standstills", standstills, 2, 60),
    Drill((31,), "control-by-the-clock", by_the_clock, 4, 12),
    Drill((38,), "control-characters", control_characters, 1, 40),
    Drill((38,), "control-raw", raw, 1, 1),
]
