"""With a limit: what is achieved of what is allowed, against batchrank's own server, in real time.

The judge is the server's ledger, looked at every second: requests and tokens let in, and the 429s.
What is allowed is the limit times the time, from the end of the ramp to the end of the scenario;
texts are short, since here it is the pace that counts.
"""

import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from bench.kept import rows
from bench.measure import BATCHRANK, pinned
from bench.results import Results, Run, Verdict
from bench.servers import Server, own_server

ROWS, DOCUMENTS, CHARACTERS = 1_000_000, 3, 40
RAMP_SECONDS = 12.0
"""The client's ramp (rate.ramp_seconds is 10) and the start of its process."""
SETTLE_WITHIN = 10


class Scenario(NamedTuple):
    """`limit`: what the server enforces a minute of `counts`; the client is told `told` of it."""

    name: str
    title: str
    limit: float
    counts: str
    server: tuple[object, ...]
    told: tuple[object, ...]
    target: float
    most_429: float = 0.0


def _rpm(limit: float) -> tuple[object, ...]:
    return ("--requests-per-minute", limit)


EVERYTHING = ("--window", "fixed_minute", "--window", "per_second", "--growth-base", 20)
"""Growth: at most twice the second before, or 20. The hosted API's own threshold is unpublished."""
BY_MINUTE = Path(__file__).with_name("by_minute.toml")
SCENARIOS = (
    Scenario(
        "all",
        "5,400 RPM, held per minute, per second and in growth",
        5400,
        "requests",
        (*_rpm(5400), *EVERYTHING),
        _rpm(5400),
        0.98,
    ),
    Scenario(
        "minute",
        "5,400 RPM, held per minute alone (rate.held_per_second = false)",
        5400,
        "requests",
        _rpm(5400),
        (*_rpm(5400), "--config", BY_MINUTE),
        0.99,
    ),
    Scenario(
        "fast",
        "60,000 RPM, held per minute",
        60_000,
        "requests",
        _rpm(60_000),
        _rpm(60_000),
        0.97,
    ),
    Scenario(
        "tokens",
        "150,000 TPM, held per minute, RPM not binding",
        150_000,
        "tokens",
        ("--tokens-per-minute", 150_000),
        ("--requests-per-minute", 5400, "--tokens-per-minute", 150_000),
        0.98,
    ),
    Scenario(
        "third",
        "5,400 RPM configured, 1,800 true, held per minute and per second",
        1800,
        "requests",
        (*_rpm(1800), "--window", "fixed_minute", "--window", "per_second"),
        _rpm(5400),
        0.95,
        0.01,
    ),
)


def run(results: Results, *, seconds: float, names: Sequence[str]) -> None:
    """Each scenario for so many seconds; then the report."""
    results.begin("limit")
    path = rows(ROWS, DOCUMENTS, CHARACTERS)
    for scenario in SCENARIOS:
        if scenario.name in names:
            results.keep("limit", _one(scenario, path, seconds))
    report(results)


def report(results: Results) -> None:
    """Table and verdicts of the runs that are kept."""
    lines = [
        "| scenario | seconds | allowed | let in after the ramp | share | settled after s | 429 |",
        "|---|---|---|---|---|---|---|",
        *(_line(run) for run in results.runs("limit")),
    ]
    verdicts = [found for run in results.runs("limit") for found in _verdicts(run)]
    results.write("limit", "\n".join(lines), verdicts)


def _one(scenario: Scenario, path: Path, seconds: float) -> Run:
    with tempfile.TemporaryDirectory() as folder, own_server(*scenario.server) as server:
        url = server.url + "/compatible-api/v1"
        command = [BATCHRANK, "run", path, "-o", Path(folder) / "out", "--base-url", url]
        began = time.monotonic()
        process = subprocess.Popen(pinned([*command, *scenario.told], 0))
        try:
            seen = [(at - began, ledger) for at, ledger in _looks(server, began, seconds, process)]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    return {"scenario": scenario.name, **_figures(scenario, seen)}


def _looks(
    server: Server, began: float, seconds: float, process: "subprocess.Popen[bytes]"
) -> Iterator[tuple[float, dict[str, Any]]]:
    """The ledger, once a second, and when it was read."""
    for second in range(int(seconds) + 1):
        time.sleep(max(0.0, began + second - time.monotonic()))
        if process.poll() is not None:
            raise RuntimeError(f"batchrank ended with {process.returncode} before its time")
        yield time.monotonic(), server.get("/ledger")


def _figures(scenario: Scenario, seen: list[tuple[float, dict[str, Any]]]) -> Run:
    since = next((place for place, (at, _) in enumerate(seen) if at >= RAMP_SECONDS), 0)
    times = [at for at, _ in seen]
    let_in = [ledger[scenario.counts] for _, ledger in seen]
    refused = seen[-1][1]["statuses"].get("429", 0)
    took = times[-1] - times[since]
    allowed = scenario.limit / 60 * took
    return {
        "seconds": times[-1],
        "allowed": allowed,
        "let_in": let_in[-1] - let_in[since],
        "share": (let_in[-1] - let_in[since]) / allowed,
        "settled_after": _settled(times, let_in, scenario.limit / 60),
        "refused": refused,
        "refused_share": refused / max(1, refused + seen[-1][1]["requests"]),
        "per_second": [later - sooner for sooner, later in pairwise(let_in)],
    }


def _settled(times: list[float], let_in: list[float], per_second: float) -> float | None:
    """From when on ten seconds together reach 95 % of what is allowed in them."""
    for place in range(len(times) - 10):
        took = times[place + 10] - times[place]
        if let_in[place + 10] - let_in[place] >= 0.95 * per_second * took:
            return times[place]
    return None


def _line(run: Run) -> str:
    scenario = _scenario(run)
    return (
        f"| {scenario.title} | {run['seconds']:.0f} | {run['allowed']:,.0f} | {run['let_in']:,} "
        f"| {run['share']:.2%} | {_settled_after(run)} "
        f"| {run['refused']:,} ({run['refused_share']:.2%}) |"
    )


def _settled_after(run: Run) -> str:
    return "never" if run["settled_after"] is None else f"{run['settled_after']:.0f}"


def _verdicts(run: Run) -> Iterator[Verdict]:
    scenario, share = _scenario(run), run["share"]
    target = f"(target ≥ {scenario.target:.0%})"
    yield Verdict(
        share >= scenario.target, f"{scenario.title}: {share:.2%} of what is allowed {target}"
    )
    if scenario.most_429:
        refused, settled = run["refused_share"], run["settled_after"]
        within = settled is not None and settled <= SETTLE_WITHIN
        yield Verdict(
            refused < scenario.most_429,
            f"{scenario.name}: {refused:.2%} answered 429 (target < {scenario.most_429:.0%})",
        )
        yield Verdict(
            within, f"{scenario.name}: seconds to settle: {_settled_after(run)} (target ≤ 10)"
        )
    else:
        yield Verdict(
            run["refused"] == 0, f"{scenario.name}: {run['refused']} answered 429 (target 0)"
        )


def _scenario(run: Run) -> Scenario:
    return next(scenario for scenario in SCENARIOS if scenario.name == run["scenario"])
