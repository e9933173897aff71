"""Promises 11 to 13: what is paid is known, stays under the cap, and ends when the account does.

The judge is the ledger of the fault server. It knows three numbers: `received`, requests at the
door; `requests`, those it scored and would bill; `unique`, the different contents among these.

**The identity of promise 11.** In a session that ends with every row settled and none failed:

    received - unique - refused = retries
    requests - unique           = possibly_paid - lost + contradicted

where the right-hand sides are the receipt's, and beside it stand three counts of the ledger's
faults: `refused`, requests refused for content or size, whose halves are other contents and no
retries; `lost`, requests that broke off before they were scored, which the program cannot tell
from those that broke off after; `contradicted`, requests that were scored and yet answered with an
error, which the program takes at its word. So where each broken answer had been scored and no error
lies, `ledger - unique` is the retries at the door, and possibly_paid on the bill. Besides, in any
number of sessions, however they ended but for SIGKILL: `received = requests` of the receipt.
"""

import json
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from helpers import (
    KEY,
    PROGRAM,
    Server,
    clean,
    content,
    ended,
    fast,
    killed,
    serving,
    settings,
    table,
    until,
    written,
)
from test_resume_after_kill import answers, settled

from batchrank.output.receipt import Receipt
from batchrank.server.faults.script import KINDS
from batchrank.session import job
from drills.frame import Drill, begun, environment
from drills.pace import told

PRICE = 0.1 / 1e6
TIMEOUT_SECONDS = 2
"""Long enough that no healthy answer on a busy machine takes it; slow faults take longer."""

REFUSALS = {"content_refusal", "size_refusal"}
LOSSES = {
    "reset_unread",
    "reset_before_headers",
    "reset_inside_headers",
    "reset_inside_body",
    "stall",
    "slow",
    "drip",
    "gzip_bomb",
    "truncated_body",
    "bad_json",
    "partial",
    "duplicate_index",
    "index_out_of_range",
    "negative_index",
    "nan_score",
    "infinite_score",
    "null_score",
    "string_score",
    "extra_results",
}
"""Faults after which the program does not know what became of the request."""
ERRORS = {"status", "html"}
HARMLESS = {"shuffled"}
TERMINAL = {"redirect"}
assert set(KINDS) == REFUSALS | LOSSES | ERRORS | HARMLESS | TERMINAL

KEYS: dict[str, dict[str, Any]] = {
    "status": {"status": 503, "code": "ModelUnavailable"},
    "slow": {"seconds": 3 * TIMEOUT_SECONDS},
    "drip": {"bytes_per_second": 20},
    "gzip_bomb": {"megabytes": 20},
}
WAITING = {"slow", "drip", "stall"}
EVERY = (13, 17, 19, 23, 29, 31, 37)
"""Primes: no two faults of a script want the same request all the time."""


# 11


def identity(trials: int, seed: int, folder: Path) -> str:
    """Random fault scripts, each kind in its turn: the two identities hold to the request."""
    kinds = sorted(LOSSES | ERRORS | HARMLESS | REFUSALS)
    seen: dict[str, int] = {}
    retries = paid = 0
    for trial in range(trials):
        random = Random(f"{seed}:{trial}")
        chosen = [kinds[(trial + more * 4) % len(kinds)] for more in range(6)]
        receipt, ledger, scored = _session(folder / str(trial), random, chosen)
        with told(trial, ", ".join(chosen)):
            _check_identity(receipt, ledger, scored)
            assert ledger["faults"].keys() == set(chosen), f"only {list(ledger['faults'])} happened"
        for kind, times in ledger["faults"].items():
            seen[kind] = seen.get(kind, 0) + times
        retries, paid = retries + receipt.retries, paid + receipt.possibly_paid
    return (
        f"{trials} scripts, {len(seen)} kinds of fault {sum(seen.values())} times: {retries} "
        f"retries and {paid} possibly paid, each the ledger's own count"
    )


def _session(
    folder: Path, random: Random, kinds: Sequence[str]
) -> tuple[Receipt, dict[str, Any], dict[str, bool]]:
    """A run to its end under these faults; its receipt, the ledger, and which kinds scored."""
    scored, tables = {}, []
    # Refusals first: a content that is ever refused is then never billed.
    kinds = sorted(kinds, key=lambda kind: kind not in REFUSALS)
    for kind, every in zip(kinds, random.sample(EVERY, len(kinds)), strict=True):
        scored[kind] = random.random() < 0.5 if KINDS[kind].either else KINDS[kind].scored
        if kind in REFUSALS:
            scored[kind] = False
        tables.append(_fault(kind, scored[kind], random, every))
    script = folder / "faults.toml"
    rows = table(160, 5, tag=f"{folder.name}{random.random()}")
    source = written(folder / "in.parquet", rows)
    script.write_text(f"seed = {random.randrange(10**6)}\n" + "".join(tables))
    with serving("--faults", str(script)) as server:
        in_flight = 64 if WAITING & set(kinds) else random.choice([1, 8, 64])
        receipt = _run(server, source, folder / "out", in_flight)
        return receipt, settled(server), scored


def _fault(kind: str, scored: bool, random: Random, every: int) -> str:
    """A table of the script. By ordinal, so that each kind happens for certain; which request it
    meets is left to chance.
    """
    where = f"every = {every}"
    if kind == "content_refusal":
        where = f'marker = " row {random.randrange(9)}"'  # one row in ten, and that all of it
    if kind == "size_refusal":
        where = f"documents_over = {random.randint(2, 4)}"
    lines = [f'kind = "{kind}"', f"where = {{ {where} }}"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in KEYS.get(kind, {}).items()]
    if KINDS[kind].either:
        lines.append(f"scored = {json.dumps(scored)}")
    return "\n[[fault]]\n" + "\n".join(lines) + "\n"


def _run(
    server: Server, source: Path, out: Path, in_flight: int, max_cost: float | None = None
) -> Receipt:
    config = settings(
        server.base_url,
        endpoint={"timeout_seconds": TIMEOUT_SECONDS},
        rate={"max_in_flight": in_flight},
        output={"rows_per_part": 100},
    )
    request = job.Request(
        inputs=[str(source)], out=out, max_cost_usd=max_cost, max_failed_rows=10**6
    )
    return job.run(config, request, lambda progress: None)


def _check_identity(receipt: Receipt, ledger: dict[str, Any], scored: dict[str, bool]) -> None:
    faults = ledger["faults"]

    def count(kinds: set[str], was_scored: bool | None = None) -> int:
        return sum(
            faults.get(kind, 0)
            for kind in kinds
            if kind in scored and was_scored in (None, scored[kind])
        )

    assert receipt.status == "finished" and receipt.rows_open == 0
    assert sum(faults.values()) > 0, "no fault happened"
    assert "content_refusal" in scored or receipt.rows_failed == 0, f"{receipt.rows_failed} failed"
    assert receipt.requests == ledger["received"], (
        f"{receipt.requests} sent by the receipt, {ledger['received']} at the door"
    )
    refused = count(REFUSALS)
    resent = ledger["received"] - ledger["unique"] - refused
    assert resent == receipt.retries, f"{resent} sent again, the receipt says {receipt.retries}"
    twice = ledger["requests"] - ledger["unique"]
    lost, contradicted = count(LOSSES, False), count(ERRORS, True)
    unknown = receipt.possibly_paid - lost + contradicted
    assert twice == unknown, (
        f"{twice} billed twice, where the receipt's {receipt.possibly_paid} possibly paid, "
        f"{lost} lost before and {contradicted} answered with an error make {unknown}"
    )


def _sends(process: "subprocess.Popen[str]", server: Server, goal: int) -> None:
    """Wait until so many requests have come to the door, or the run has ended."""
    until(lambda: server.received >= goal or process.poll() is not None, "it sends")


def committed(trials: int, seed: int, folder: Path) -> str:
    """Stopped by SIGTERM amid faults, over and over: what was committed is never sent again, and
    the receipt knows every request of every session.
    """
    sessions = safe = 0
    faults = _fault("truncated_body", True, Random(seed), 13) + _fault(
        "status", True, Random(seed), 17
    )
    slow = '\n[[fault]]\nkind = "slow"\nseconds = 0.05\n'
    rows = table(600, tag="committed")
    contents = [content(row) for row in rows.to_pylist()]
    earlier: set[int] = set()
    bills: dict[str, Any] = {}
    for trial in range(trials):
        random, own = Random(f"{seed}:{trial}"), folder / str(trial)
        source, out, script = own / "in.parquet", own / "out", own / "faults.toml"
        written(source, rows)
        script.write_text(f"seed = {random.randrange(10**6)}\n{faults}{slow}")
        with told(trial), serving("--faults", str(script)) as server:
            command = [*fast(server, out, source), "--max-in-flight", 16]
            for session in range(3):
                before = server.received
                process = begun(command)
                if session < 2:
                    _sends(process, server, before + random.randint(1, 150))
                    process.send_signal(signal.SIGTERM)
                code, _, stderr = ended(process)
                assert code == (143 if session < 2 else 0), f"ended with {code}: {stderr}"
                kept = answers(out, own / "scratch")
                paid = settled(server)["per_content"]
                if session:
                    again = [row for row in earlier if paid[contents[row]] != bills[contents[row]]]
                    assert not again, f"committed and paid again: {again[:5]}"
                earlier, bills = kept, paid
                receipt = json.loads((out / "_run.json").read_bytes())
                assert receipt["requests"] == server.received, "requests of a session are missing"
                sessions, safe = sessions + 1, safe + len(kept)
            assert server.ledger()["faults"].keys() >= {"truncated_body", "status", "slow"}
    return f"{sessions} sessions, {safe} answers found committed, none of them sent again"


# 12


def capped(trials: int, seed: int, folder: Path) -> str:
    """Seeded faults under a cap, several sessions each: exit 4, and the bill is below it."""
    shares, lost = [], 0
    kinds = sorted(LOSSES - WAITING - {"reset_unread"})
    for trial in range(trials):
        random, own = Random(f"{seed}:{trial}"), folder / str(trial)
        rows = table(400, random.randint(1, 6), tag=f"cap{trial}")
        source, script = written(own / "in.parquet", rows), own / "faults.toml"
        chosen = random.sample(kinds, 2)
        script.write_text(
            f"seed = {random.randrange(10**6)}\n"
            + "".join(
                _fault(kind, KINDS[kind].scored, random, every)
                for kind, every in zip(chosen, (7, 11), strict=True)
            )
        )
        cap = random.uniform(0.0005, 0.002)
        in_flight = random.choice([1, 8, 64])
        with told(trial, ", ".join(chosen)), serving("--faults", str(script)) as server:
            for session in range(3):
                receipt = _run(server, source, own / "out", in_flight, cap)
                bill = settled(server)["tokens"] * PRICE
                assert receipt.exit_code == 4, f"session {session} ended with {receipt.exit_code}"
                assert bill <= cap, f"session {session}: ${bill:.6f} of ${cap:.6f}"
            lost += sum(server.ledger()["faults"].values())
            shares.append(bill / cap)
    assert lost, "no fault happened"
    return (
        f"{trials} x 3 sessions, {lost} answers broken: exit 4 each time, the bill "
        f"{min(shares):.3f} to {max(shares):.3f} of the cap"
    )


def capped_and_killed(trials: int, seed: int, folder: Path) -> str:
    """The same with SIGKILL: what a killed session spent and could not tell counts all the same."""
    shares, kills = [], 0
    for trial in range(trials):
        random, own = Random(f"{seed}:{trial}"), folder / str(trial)
        rows = table(2000, tag=f"kill{trial}")
        source, script = written(own / "in.parquet", rows), own / "faults.toml"
        script.write_text(
            '[[fault]]\nkind = "reset_inside_body"\nwhere = { probability = 0.1 }\n'
            '[[fault]]\nkind = "slow"\nseconds = 0.05\n'
        )
        cap = random.uniform(0.006, 0.009)
        with told(trial), serving("--faults", str(script)) as server:
            command = [*fast(server, own / "out", source), "--max-in-flight", 64, "--max-cost", cap]
            for _ in range(random.randint(1, 3)):
                before = server.received
                process = begun(command)
                _sends(process, server, before + random.randint(1, 120))
                kills += killed(process) == -signal.SIGKILL
            code, _, stderr = ended(begun(command))
            bill = settled(server)["tokens"] * PRICE
            assert code == 4, f"ended with {code}: {stderr}"
            assert bill <= cap, f"${bill:.6f} of ${cap:.6f}"
            assert server.ledger()["faults"]["reset_inside_body"], "no fault happened"
            shares.append(bill / cap)
    assert kills, "nothing was killed"
    return f"{trials} runs, {kills} kills: {min(shares):.3f} to {max(shares):.3f} of the cap billed"


# 13

ACCOUNT: list[tuple[int, str, str, int]] = [
    (401, "InvalidApiKey", "", 77),
    (403, "AccessDenied.Unpurchased", "", 69),
    (400, "Arrearage", "", 69),
    (429, "Throttling.AllocationQuota", "Free allocated quota exceeded.", 69),
    (404, "ModelNotFound", "", 69),
    (403, "AllocationQuota.FreeTierOnly", "", 69),
    (429, "PostpaidBillOverdue", "", 69),
    (200, "Arrearage", "", 69),
]


def account(trials: int, seed: int, folder: Path) -> str:
    """An account that is refused from the first request on, or ends amid a run while some answers
    never come. The first is gone within 5 s. The second may be a gateway that restarts: it goes on
    for 2.5 s at least, and ends within 25 s and 60 requests besides those in flight.
    """
    more: dict[bool, list[float]] = {True: [], False: []}
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for trial in range(trials):
        random, own = Random(f"{seed}:{trial}"), folder / str(trial)
        status, code, message, expected = ACCOUNT[trial % len(ACCOUNT)]
        in_flight, last = random.choice([1, 8, 64]), random.randint(20, 120)
        served = trial % 2 == 0
        if not served:
            last = 1
        source = written(own / "in.parquet", table(2000, tag=f"account{trial}"))
        words = f'message = "{message}"\n' if message else ""
        stalls = trial % 4 == 2 and in_flight > 1
        (own / "faults.toml").write_text(
            f'[[fault]]\nkind = "status"\nstatus = {status}\ncode = "{code}"\n{words}'
            f"where = {{ from = {last} }}\n"
            + (f'[[fault]]\nkind = "stall"\nwhere = {{ from = {last - 3} }}\n' if stalls else "")
            + '[[fault]]\nkind = "slow"\nseconds = 0.02\n'
        )
        with told(trial, f"{status} {code}"), serving("--faults", f"{own}/faults.toml") as server:
            run = [*fast(server, own / "out", source), "--provider", "dashscope"]
            process = subprocess.Popen(
                [*PROGRAM, *map(str, run), "--max-in-flight", str(in_flight)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=clean(DASHSCOPE_API_KEY=KEY, **environment()),
            )
            until(lambda: server.ledger()["faults"].get("status", 0) > 0, "the account ends")
            began = time.monotonic()
            try:
                ending, _, stderr = ended(process, 30)
            except subprocess.TimeoutExpired:
                raise AssertionError("goes on for more than 30 s") from None
            took = time.monotonic() - began
            seconds[served].append(took)
            ledger = server.ledger()
            assert ending == expected, f"ended with {ending}, not {expected}: {stderr}"
            further = ledger["received"] - last
            more[served].append(further)
            said = stderr.splitlines()
            if served:
                assert 2.5 <= took <= 25, f"took {took:.1f} s to end"
                assert further <= 60 + in_flight, f"{further} more, {in_flight} in flight"
            else:
                assert took <= 5, f"took {took:.1f} s to end"
                assert further <= in_flight, f"{further} more, {in_flight} in flight"
                assert len(said) == 1, stderr
            assert str(status) in said[-1], stderr
    ends = [
        f"{'after scores' if served else 'at first'}: at most {max(more[served]):.0f} more "
        f"requests, gone in {max(seconds[served]):.1f} s"
        for served in (True, False)
        if more[served]
    ]
    return f"{trials} accounts ended with the right code; {'; '.join(ends)}"


DRILLS: Sequence[Drill] = [
    Drill((11,), "identity", identity, 4, 40),
    Drill((11,), "committed", committed, 1, 15),
    # Three sessions a trial: two hundred runs under a cap.
    Drill((12,), "cost-cap", capped, 2, 67),
    Drill((12,), "cost-cap-killed", capped_and_killed, 1, 30),
    Drill((13, 33), "account-ends", account, 4, 40),
]
