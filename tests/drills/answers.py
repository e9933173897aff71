"""Promises 18 and 19: a broken answer never becomes a score, and a poisonous text harms itself.

Every kind of fault that the server knows is met twice: by the transport alone, where the time it
takes and the verdict it gets are looked at, and by the whole program, whose scores must be those of
an undisturbed run. Faults are chosen by a marker in the query, so that one run meets them all.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from math import log2
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
from helpers import (
    CANDIDATES,
    Server,
    ended,
    expected_of,
    fast,
    output,
    serving,
    table,
    written,
)

from batchrank.sending.http_client import connected
from batchrank.sending.verdicts import Again, GiveUp, Halve, Stop, Verdict, Without, judge
from batchrank.server.faults.script import KINDS
from batchrank.wire.replies import Scores
from drills.frame import Drill, Patch, begun, breaks, patched
from drills.pace import told

TIMEOUT_SECONDS = 1.0

_SET: dict[str, dict[str, Any]] = {
    "status": {"status": 200, "code": "InternalError", "nested": True},
    "html": {"status": 200},
    "redirect": {"location": "http://127.0.0.1:1/elsewhere"},
    "slow": {"seconds": 2.5},
    "drip": {"bytes_per_second": 1},
    "gzip_bomb": {"megabytes": 300},
}
_MORE: dict[str, dict[str, Any]] = {
    "status flat": {"kind": "status", "status": 200, "code": "Throttling.RateQuota"},
    "status 500": {"kind": "status", "status": 500, "code": "InternalError"},
    "status 429": {"kind": "status", "status": 429, "code": "limit_requests", "nested": True},
    "status 503": {"kind": "status", "status": 503, "code": "ModelUnavailable"},
    "html 502": {"kind": "html", "status": 502},
    "small bomb": {"kind": "gzip_bomb", "megabytes": 20},
    "closed before headers": {"kind": "reset_before_headers", "abrupt": False},
    "closed inside headers": {"kind": "reset_inside_headers", "abrupt": False},
    "closed inside body": {"kind": "reset_inside_body", "abrupt": False},
    "slow enough": {"kind": "slow", "seconds": 0.2},
}
FAULTS: dict[str, dict[str, Any]] = {
    **{name: {"kind": name, **_SET.get(name, {})} for name in KINDS if name != "reset_unread"},
    **_MORE,
}
"""What a query's marker asks for. `reset_unread` reads no query: it is met by ordinal."""

GOOD, SOON, HALF, ENDS = (Scores,), (Again,), (Halve, Without, GiveUp), (Stop,)
VERDICTS: dict[str, tuple[type[Verdict], ...]] = {
    "shuffled": GOOD,
    "slow enough": GOOD,
    "content_refusal": HALF,
    "size_refusal": HALF,
    "redirect": ENDS,
}
"""The verdict on a fault; for those not named here, to ask again."""


def script(seed: int, *, once: bool, without: frozenset[str] = frozenset()) -> str:
    """A table for each fault. `once`: only when a content comes for the first time."""
    tables = [f"seed = {seed}\n"]
    for name, keys in FAULTS.items():
        if name in without:
            continue
        where = f'marker = "<{name}>"' + (", first = 1" if once else "")
        if name == "size_refusal":
            where += ", documents_over = 1"
        lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
        tables.append("\n[[fault]]\n" + "\n".join([*lines, f"where = {{ {where} }}"]) + "\n")
    tables.append('\n[[fault]]\nkind = "reset_unread"\nwhere = { every = 40 }\n')
    return "".join(tables)


# 18


def verdicts(trials: int, seed: int, folder: Path) -> str:
    """Each fault met by the transport: the right verdict, within the time-out and a second."""
    longest, met = 0.0, 0
    path = folder / "faults.toml"
    path.write_text(script(seed, once=False))
    with serving("--faults", str(path)) as server:
        for trial in range(trials):
            random = Random(f"{seed}:{trial}")
            seconds = asyncio.run(_verdicts(server, random, trial))
            longest, met = max(longest, seconds), met + 2 * len(FAULTS)
        happened = server.ledger()["faults"]
    missing = KINDS.keys() - happened.keys()
    assert not missing, f"these faults never happened: {missing}"
    return (
        f"{met} exchanges, {len(happened)} kinds of fault: a verdict each, "
        f"after {longest:.2f} s at the most under a time-out of {TIMEOUT_SECONDS:g} s"
    )


async def _verdicts(server: Server, random: Random, trial: int) -> float:
    async with connected(
        server.base_url + "/reranks", {}, timeout_seconds=TIMEOUT_SECONDS, max_in_flight=8
    ) as transport:

        async def one(name: str) -> float:
            documents = [f"{place} {random.random()}" for place in range(random.randint(2, 9))]
            ask = {
                "model": "qwen3-rerank",
                "query": f"<{name}> {random.random()}",
                "documents": documents,
            }
            began = time.monotonic()
            exchange = await transport.exchange(json.dumps(ask).encode(), len(documents))
            seconds = time.monotonic() - began
            verdict = judge(exchange, len(documents))
            with told(trial, name):
                assert seconds <= TIMEOUT_SECONDS + 1, f"hung for {seconds:.2f} s"
                # A door that closes by ordinal may meet any of them.
                fits = isinstance(verdict, (*VERDICTS.get(name, SOON), *SOON))
                assert fits, f"{type(verdict).__name__} of {exchange!r:.200}"
                if isinstance(verdict, Again):
                    assert verdict.reason, "no reason"
            return seconds

        # Twice each, as the door that closes by ordinal may come first.
        names = random.sample(2 * list(FAULTS), 2 * len(FAULTS))
        return max(await asyncio.gather(*map(one, names)))


def marked(random: Random, names: Sequence[str], each: int = 2) -> pa.Table:
    """Rows whose queries carry a fault's marker each, among as many that carry none."""
    plain = table(2 * each * len(names), 1, tag=f"marked{random.random()}")
    queries, lists = [], []
    for row in range(plain.num_rows):
        name = f" <{names[row // 2 % len(names)]}>" if row % 2 else ""
        queries.append(f"query {row} {random.random()}{name}")
        lists.append(
            [
                {"doc_id": f"d{row}-{place}", "text": f"text {random.random()}"}
                for place in range(random.randint(2, 8))
            ]
        )
    return pa.table(
        {
            "query_id": pa.array(range(plain.num_rows), pa.int64()),
            "query": queries,
            "candidates": pa.array(lists, CANDIDATES),
        }
    )


def broken_answers(trials: int, seed: int, folder: Path) -> str:
    """Each fault met by the program, once for each content: every score is right in the end."""
    rows = faults = 0
    for trial in range(trials):
        random = Random(f"{seed}:{trial}")
        with told(trial):
            more, happened = _program(folder / str(trial), random)
        rows, faults = rows + more, faults + happened
    return (
        f"{rows} rows, {faults} faults of every kind but redirect: each score that of a good answer"
    )


def _program(folder: Path, random: Random) -> tuple[int, int]:
    names = [name for name in FAULTS if name not in ("redirect", "content_refusal")]
    rows = marked(random, names)
    source, path, config = (
        written(folder / "in.parquet", rows),
        folder / "f.toml",
        folder / "c.toml",
    )
    path.write_text(script(random.randrange(10**6), once=True, without=frozenset({"redirect"})))
    config.write_text(f"[endpoint]\ntimeout_seconds = {TIMEOUT_SECONDS}\n")
    with serving("--faults", str(path)) as server:
        process = begun([*fast(server, folder / "out", source), "-c", config])
        code, stdout, stderr = ended(process, timeout=60)
        happened = server.ledger()["faults"]
    missing = KINDS.keys() - happened.keys() - {"redirect", "content_refusal"}
    assert "Traceback" not in stderr, f"a traceback: {stderr[-500:]}"
    _right(rows, folder / "out")
    assert (code, stdout, stderr) == (0, "", ""), f"ended with {code}: {stderr}"
    assert not missing, f"these faults never happened: {missing}"
    return rows.num_rows, sum(happened.values())


def _right(rows: pa.Table, out: Path, failed: frozenset[int] = frozenset()) -> None:
    """Every row but the failed has the scores of the hash scorer, to the last bit."""
    found = output(out).to_pylist() if list(out.glob("part-*")) else []
    assert len(found) == rows.num_rows, f"{len(found)} rows of {rows.num_rows} came out"
    for row, came in zip(rows.to_pylist(), found, strict=True):
        if row["query_id"] not in failed:
            assert came["results"] == expected_of(row), f"wrong scores for {row['query']}: {came}"


def unchecked(trials: int, seed: int, folder: Path) -> str:
    """The control: a build that takes an answer's scores in the order they come, unchecked."""
    lenient = Patch(
        "wire/replies.py",
        "\ndef _in_order(",
        "\ndef _in_order(results: Sequence[_Result], documents: int) -> list[float]:\n"
        "    found = [result.relevance_score for result in results] + [0.0] * documents\n"
        "    return found[:documents]\n\n\ndef _checked(",
    )
    with patched(folder, lenient):
        said = breaks(lambda: broken_answers(1, seed, folder / "drill"), "wrong scores")
    return f"a build without the check is found out: {said[:120]}"


def never_right(trials: int, seed: int, folder: Path) -> str:
    """Faults that never end, for some rows or for all: a typed end, and no wrong score."""
    codes = {}
    for trial in range(trials):
        random = Random(f"{seed}:{trial}")
        names = [
            name for name, keys in FAULTS.items() if name not in VERDICTS and "429" not in name
        ]
        name = names[(trial + seed) % len(names)]
        rows = marked(random, [name], each=20)
        own = folder / str(trial)
        source, path, config = written(own / "in.parquet", rows), own / "f.toml", own / "c.toml"
        path.write_text(script(seed, once=False).replace(f'"<{name}>"', '"query"'))
        config.write_text(
            f"[endpoint]\ntimeout_seconds = {TIMEOUT_SECONDS}\nmax_outage_seconds = 2\n"
        )
        with told(trial, name), serving("--faults", str(path)) as server:
            began = time.monotonic()
            run = [*fast(server, own / "out", source), "--max-in-flight", 8, "-c", config]
            code, _, stderr = ended(begun(run), timeout=60)
            seconds = time.monotonic() - began
            # Breaker, probe and the outage allowed; and where no answer is any good, 20 of them.
            assert seconds < 40, f"took {seconds:.0f} s"
            # 3 where the row is to blame, 75 where nobody answers, 76 where it is no rerank API.
            assert code in {3, 75, 76}, f"ended with {code}: {stderr}"
            assert len(stderr.splitlines()) == 1 and "Traceback" not in stderr, stderr
            if list((own / "out").glob("part-*")):
                scores = [r for row in output(own / "out")["results"].to_pylist() for r in row]
                assert all(one["relevance_score"] is None for one in scores), "a score from nowhere"
            assert server.ledger()["faults"].get(FAULTS[name]["kind"]), "the fault never happened"
        codes[code] = codes.get(code, 0) + 1
    return f"{trials} endpoints that answer nothing right: " + ", ".join(
        f"{times} x {code}" for code, times in sorted(codes.items())
    )


# 19

POISONS = ("content_refusal", "named", "size", "unprocessable")


def poison(trials: int, seed: int, folder: Path) -> str:
    """Poison in a row's query or in one document, named or not: nobody else loses a score."""
    rows_lost = documents_lost = 0
    dearest = 0.0
    for trial in range(trials):
        random, own = Random(f"{seed}:{trial}"), folder / str(trial)
        rows = table(120, 16, tag=f"poison{trial}").to_pylist()
        bad_row, bad_documents = random.randrange(120), {}
        rows[bad_row]["query"] += " arsenic"
        for row in random.sample([row for row in range(120) if row != bad_row], 6):
            place = random.randrange(16)
            rows[row]["candidates"][place]["text"] += " arsenic"
            bad_documents[row] = place
        data = pa.Table.from_pylist(rows, schema=table(1).schema)
        source, path = written(own / "in.parquet", data), own / "f.toml"
        kind = POISONS[(trial + seed) % len(POISONS)]
        path.write_text(_poison(kind))
        with told(trial, kind), serving("--faults", str(path)) as server:
            run = [*fast(server, own / "out", source), "--max-in-flight", random.choice([1, 8, 64])]
            code, _, stderr = ended(begun(run), timeout=60)
            assert code == 3 and "Traceback" not in stderr, f"ended with {code}: {stderr}"
            found = output(own / "out").to_pylist()
            ledger = server.ledger()
        with told(trial, kind):
            assert sum(ledger["faults"].values()) >= 7, "the poison never met the server"
            for row, came in zip(rows, found, strict=True):
                number = row["query_id"]
                if number == bad_row:
                    assert came["status"] == "failed" and came["error"]
                    continue
                blamed = bad_documents.get(number)
                _row_mates(row, came, blamed)
            if kind in ("content_refusal", "named"):
                # The poisonous query costs its row up to 2n - 1 requests, named or not.
                extra = (ledger["received"] - 120 - 2 * 16) / 6
                assert extra <= 2 * log2(16) + 1, f"{extra:.1f} requests more for each document"
                dearest = max(dearest, extra)
        rows_lost, documents_lost = rows_lost + 1, documents_lost + len(bad_documents)
    return (
        f"{rows_lost} poisonous rows and {documents_lost} poisonous documents among {trials * 120} "
        f"rows: nobody else harmed, {dearest:.1f} requests more for a document at the most"
    )


def _poison(kind: str) -> str:
    keys = {
        "content_refusal": 'kind = "content_refusal"\n',
        "named": 'kind = "content_refusal"\nnames_document = true\n',
        "size": 'kind = "size_refusal"\nstatus = 400\n',
        "unprocessable": 'kind = "status"\nstatus = 422\ncode = "Unprocessable"\n',
    }[kind]
    over = ", documents_over = 0" if kind == "size" else ""
    return f'[[fault]]\n{keys}where = {{ marker = "arsenic"{over} }}\n'


def _row_mates(row: dict[str, Any], came: dict[str, Any], blamed: int | None) -> None:
    good = {one["index"]: one["relevance_score"] for one in expected_of(row)}
    for one in came["results"]:
        index = one["index"]
        if index == blamed:
            assert one["relevance_score"] is None, "a score for the poison"
            assert f"document {index}" in came["error"], came["error"]
        else:
            assert one["relevance_score"] == good[index], f"document {index} of {row['query']}"
    assert came["status"] == ("scored" if blamed is None else "partial")


DRILLS: Sequence[Drill] = [
    Drill((18,), "verdicts", verdicts, 1, 15),
    Drill((18,), "broken-answers", broken_answers, 1, 12),
    Drill((18,), "control-unchecked-answers", unchecked, 1, 1),
    Drill((18,), "never-right", never_right, 1, 24),
    Drill((19,), "poison", poison, 4, 40),
]
