"""One row, one second, one answer: none of them ends a run, or holds it up for long.

The server is of raw bytes: it scores every row but one, which it always treats in the same way.
"""

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
from helpers import ended, table, written
from raw_server import Peer, RawServer, http, raw_server_beside

from drills.frame import Drill, Patch, begun, breaks, killed_within, last_line, patched
from drills.money import account
from drills.pace import told

ROWS = 200
DOCUMENTS = 10
MOST_REQUESTS = 100
MOST_SECONDS = 90

Reply = Callable[[dict[str, Any]], bytes | None]
"""The bytes that answer a request; none at all closes the connection, None says nothing."""


def _scores(ask: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"index": index, "relevance_score": len(text) / 1000}
        for index, text in enumerate(ask["documents"])
    ]


def _sound(ask: dict[str, Any]) -> bytes:
    return http({"results": _scores(ask)})


def _status(status: int, code: str = "") -> Reply:
    said = http({"code": code, "message": "no"} if code else b"<html>no</html>", status)
    return lambda _: said


def _one_score(value: str) -> Reply:
    """Every score is sound but that of the document to blame."""

    def reply(ask: dict[str, Any]) -> bytes:
        results = ", ".join(
            f'{{"index": {one["index"]}, "relevance_score": '
            f"{value if BAD in text else one['relevance_score']}}}"
            for one, text in zip(_scores(ask), ask["documents"], strict=True)
        )
        return http(f'{{"results": [{results}]}}'.encode())

    return reply


BAD = "the-bad-one"
KINDS: dict[str, Reply] = {
    **{str(status): _status(status) for status in (403, 401, 402, 404, 405, 301, 418, 204, 206)},
    "400": _status(400, "BadRequestError"),
    "500": _status(500, "InternalError"),
    "502": _status(502),
    "503": _status(503, "ServiceUnavailable"),
    "429": _status(429, "Throttling.RateQuota"),
    "dropped": lambda _: b"",
    "silence": lambda _: None,
    "nan": _one_score("NaN"),
    "null": _one_score("null"),
}


class _Server:
    """Answers what `reply` makes of a request, and counts those of the row to blame."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self.asked = 0

    async def serve(self, peer: Peer) -> None:
        while True:
            _, body = await peer.read_request()
            ask = json.loads(body)
            is_bad = any(BAD in text for text in ask["documents"])
            self.asked += is_bad
            said = self._reply(ask) if is_bad else _sound(ask)
            if said is None:
                await peer.reader.read()
                return
            if not said:
                return
            peer.say(said)
            await peer.writer.drain()


def _written(folder: Path, bad: Mapping[int, Sequence[int]]) -> Path:
    """An input with some documents to blame, by row."""
    rows = table(ROWS, DOCUMENTS, tag="one")
    data = rows.to_pylist()
    for row, documents in bad.items():
        for document in documents:
            data[row]["candidates"][document]["text"] += f" {BAD}"
    return written(folder / "in.parquet", rows.from_pylist(data, schema=rows.schema))


def _command(server: RawServer, folder: Path, source: Path, in_flight: int) -> list[object]:
    config = folder / "batchrank.toml"
    config.write_text(
        "[endpoint]\nmax_outage_seconds = 90\ntimeout_seconds = 3\n[output]\nrows_per_part = 50\n"
    )
    where = ["--provider", "vllm", "--model", "m", "--base-url", server.url]
    return ["run", source, "-o", folder / "out", "-c", config, *where, "--max-in-flight", in_flight]


def _judge(out: Path, bad: Mapping[int, Sequence[int]]) -> None:
    """Every row is whole but for the documents to blame, which their row names."""
    rows = [row for path in sorted(out.glob("part-*.parquet")) for row in _rows(path)]
    assert len(rows) == ROWS, f"{len(rows)} of {ROWS} rows published"
    for number, row in enumerate(rows):
        absent = sorted(one["index"] for one in row["results"] if one["relevance_score"] is None)
        expected = [*bad.get(number, [])]
        assert absent == expected, f"row {number} lacks scores of {absent}, not of {expected}"
    for number, found in bad.items():
        name = f"document {found[0]}:" if len(found) == 1 else f"documents 0 to {found[-1]}:"
        assert name in (rows[number]["error"] or ""), rows[number]["error"]


def _rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def one_row(trials: int, seed: int, folder: Path) -> str:
    """A document, or each of a row, that is always answered in the same odd way; the run is killed
    now and then.
    """
    asked, seconds = [], []
    kinds = list(KINDS)
    for trial in range(trials):
        random, own = Random(f"{seed}:{trial}"), folder / str(trial)
        own.mkdir()
        kind = kinds[(trial + seed) % len(kinds)]
        bad_row = random.choice([5, ROWS // 2, ROWS - 1])
        one, in_flight = random.randrange(DOCUMENTS), random.choice([4, 16])
        bad = range(DOCUMENTS) if trial % 4 == 3 else range(one, one + 1)
        server = _Server(KINDS[kind])
        with (
            told(trial, f"{kind} for row {bad_row}, {bad}"),
            raw_server_beside(server.serve) as raw,
        ):
            command = [
                *_command(raw, own, _written(own, {bad_row: bad}), in_flight),
                *("--max-partial-rows", 0),
            ]
            began = time.monotonic()
            process = begun(command)
            if trial % 3 == 2 and killed_within(process, 2):
                process = begun(command)
            code, _, stderr = ended(process, 200)
            seconds.append(time.monotonic() - began)
            assert code == 3, f"ended with {code}: {last_line(stderr)}"
            _judge(own / "out", {bad_row: bad})
            asked.append(server.asked)
            assert 0 < asked[-1] <= MOST_REQUESTS, f"asked {asked[-1]} times"
            assert seconds[-1] <= MOST_SECONDS, f"took {seconds[-1]:.0f} s"
    return (
        f"{trials} rows with a document to blame: asked {max(asked)} times at the most, runs ended "
        f"with 3 within {max(seconds):.0f} s, all other scores there"
    )


def several_rows(trials: int, seed: int, folder: Path) -> str:
    """Some rows that are always answered in the same odd way, early enough for other rows to be
    sent and scored after their first failures: no outage, and not the account.
    """
    seconds = []
    for trial in range(trials):
        random, own = Random(f"{seed}:{trial}"), folder / str(trial)
        own.mkdir()
        kind = ("503", "dropped", "403", "nan", "500", "204")[trial % 6]
        bad = {row: [random.randrange(DOCUMENTS)] for row in random.sample(range(ROWS // 2), 4)}
        server = _Server(KINDS[kind])
        with told(trial, f"{kind} for {bad}"), raw_server_beside(server.serve) as raw:
            command = [*_command(raw, own, _written(own, bad), 8), "--max-partial-rows", 0]
            config = own / "batchrank.toml"
            config.write_text(config.read_text().replace("= 90", "= 30"))
            began = time.monotonic()
            code, _, stderr = ended(begun(command), 200)
            seconds.append(time.monotonic() - began)
            assert code == 3, f"ended with {code}: {last_line(stderr)}"
            _judge(own / "out", bad)
            assert 0 < server.asked <= len(bad) * MOST_REQUESTS, f"asked {server.asked} times"
    return f"{trials} runs with four rows to blame ended with 3 within {max(seconds):.0f} s"


def _waits_a_day(ask: dict[str, Any]) -> bytes | None:
    return http(b"", 503, "Retry-After: 86400")


def asked_pause(trials: int, seed: int, folder: Path) -> str:
    """A reply to one request asks for a pause of a day: the run's own bound counts."""
    seconds = []
    for trial in range(trials):
        own = folder / str(trial)
        own.mkdir()
        replies = [_waits_a_day]
        server = _Server(lambda ask, left=replies: (left.pop() if left else _sound)(ask))
        with (
            told(trial, "a day's pause"),
            raw_server_beside(server.serve) as raw,
        ):
            command = _command(raw, own, _written(own, {ROWS // 2: [0]}), 8)
            config = own / "batchrank.toml"
            config.write_text(config.read_text().replace("= 90", "= 8"))
            began = time.monotonic()
            try:
                code, _, stderr = ended(begun(command), 40)
            except subprocess.TimeoutExpired:
                raise AssertionError("still asleep after 40 s") from None
            seconds.append(time.monotonic() - began)
            assert code == 0, f"ended with {code}: {last_line(stderr)}"
            assert server.asked == 2, f"asked {server.asked} times"
            assert 8 <= seconds[-1] <= 40, f"took {seconds[-1]:.1f} s where the bound is 8 s"
            assert "asks for a pause of 86,400 s" in stderr, stderr
    return f"{trials} pauses of a day: runs ended within {max(seconds):.1f} s, the bound was 8 s"


NO_HALVES = Patch("sending/dispatch.py", "if documents > 1 and not self._whole and", "if False and")
NO_BOUND = Patch("sending/dispatch.py", "            asked = self._max_outage_seconds\n", "")


IMPATIENT = Patch("sending/blame.py", "REFUSED_SECONDS = 12.0", "REFUSED_SECONDS = 0.0")
NO_ACCOUNT = Patch(
    "sending/blame.py",
    "if self._account_is_in_question and now - self._refused",
    "if 0 > self._refused",
)


def without_patience(trials: int, seed: int, folder: Path) -> str:
    """The account is at fault at the first refusals of several rows, as in a gateway's restart."""
    with patched(folder, IMPATIENT):
        said = breaks(lambda: account(trials, seed, folder), "s to end")
    return f"account-ends breaks without patience: {said}"


def without_account(trials: int, seed: int, folder: Path) -> str:
    """The account is never at fault."""
    with patched(folder, NO_ACCOUNT):
        said = breaks(lambda: account(trials, seed, folder), "goes on for", "s to end")
    return f"account-ends breaks without its end: {said}"


NO_PROOF = Patch("sending/blame.py", "self.scores > record.scores + self._max_in_flight", "False")


def without_proof(trials: int, seed: int, folder: Path) -> str:
    """Four rows that fail at once at the end are an outage."""
    with patched(folder, NO_PROOF):
        said = breaks(lambda: several_rows(trials, seed, folder), "ended with 75")
    return f"several-rows breaks without proof that the endpoint served: {said}"


def without_halves(trials: int, seed: int, folder: Path) -> str:
    """The whole row fails for one of its documents."""
    with patched(folder, NO_HALVES):
        said = breaks(lambda: one_row(trials, seed, folder), "lacks scores")
    return f"one-row breaks without halving: {said}"


def without_bound(trials: int, seed: int, folder: Path) -> str:
    """A request sleeps for a day."""
    with patched(folder, NO_BOUND):
        said = breaks(lambda: asked_pause(trials, seed, folder), "still asleep")
    return f"asked-pause breaks without the bound: {said}"


DRILLS: Sequence[Drill] = [
    Drill((33,), "one-row", one_row, 3, 3 * len(KINDS)),
    Drill((33,), "control-one-row", without_halves, 1, 1),
    Drill((33,), "several-rows", several_rows, 1, 18),
    Drill((33,), "control-several-rows", without_proof, 1, 6),
    Drill((33,), "control-account-ends", without_patience, 1, 1),
    Drill((33,), "control-account-goes-on", without_account, 1, 1),
    Drill((34,), "asked-pause", asked_pause, 1, 5),
    Drill((34,), "control-asked-pause", without_bound, 1, 1),
]
