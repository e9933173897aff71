"""Promises 30 and 32: the cap and the rate hold on a slow disk, without usage, and with absurd one.

The judge is the endpoint's own bill (`till`): each request that it scored is billed at the dearest
that is known, also where its answer was lost or says nothing of it.
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from helpers import PROGRAM, clean, ended, killed, table, until, written

from batchrank.config.limits import weight
from batchrank.config.pricing import ceiling
from batchrank.planning.tokens import count
from drills.frame import Drill, Patch, breaks, environment, last_line, patched
from drills.pace import told
from drills.slow_disk import answer_all, slow_calls
from drills.till import Asked, Till, http, scored, till

PRICE = 0.1 / 1e6
LIMIT_A_SECOND = 90


def _run(
    one: Till, source: Path, out: Path, *more: object, **calls: str
) -> "subprocess.Popen[str]":
    words = ["run", source, "-o", out, "--base-url", one.url, *more]
    return subprocess.Popen(
        [*PROGRAM, *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean(**environment(), **calls),
    )


# 30: the rate


def capped_pace(trials: int, seed: int, folder: Path) -> str:
    """The rate on a disk with syncs of 0.3 s, without a cap and with one."""
    config = folder / "pace.toml"
    config.write_text("[rate]\nramp_seconds = 0\n")
    limits = ["-c", config, "--requests-per-minute", 60 * LIMIT_A_SECOND]
    source = written(folder / "in.parquet", table(1000, tag=f"pace{seed}"))
    seconds, shorts = list[int](), list[int]()
    for trial in range(trials):
        found = []
        for cap in ([], ["--max-cost", "0.02"]):
            out = folder / f"out-{trial}-{len(cap)}"
            slow = slow_calls(folder, SLOW_SYNC="0.3 checkpoint")
            with told(trial, " ".join(cap) or "no cap"), till(answer_all, seconds=0.05) as one:
                code, _, stderr = ended(_run(one, source, out, *limits, *cap, **slow), 120)
                assert code == 0, f"ended with {code}: {last_line(stderr)}"
                found.append((one.most_within(1.0), one.most_within(0.05)))
                second, short = found[-1]
                assert second <= 1.1 * LIMIT_A_SECOND + 3, f"{second} requests in a second"
                assert short <= found[0][1] + 8, f"{short} requests in 50 ms"
        assert (folder / "slow.log").exists(), "no call was slow"
        seconds.append(found[1][0])
        shorts.append(found[1][1] - found[0][1])
    return (
        f"{trials} runs with a cap: {max(seconds)} requests in a second at the most "
        f"({LIMIT_A_SECOND} allowed), {max(shorts):+} in 50 ms beside those without one"
    )


def permission_first(trials: int, seed: int, folder: Path) -> str:
    """Permission is taken, and then the lease is waited for."""
    with patched(folder, PERMISSION_FIRST):
        said = breaks(lambda: capped_pace(trials, seed, folder), "requests in ")
    return f"capped-pace breaks where permission comes first: {said}"


PERMISSION_FIRST = Patch(
    "sending/paced_endpoint.py",
    "            await self._cover(self._budget.total)\n"
    "            return await self._throttle.admit(tokens)\n",
    "            sent_at = await self._throttle.admit(tokens)\n"
    "            await self._cover(self._budget.total)\n"
    "            return sent_at\n",
)


# 30: the bill


class Bill:
    """Answers of which a share says its usage and some are lost; all of them are billed."""

    def __init__(self, random: Random, says_percent: int) -> None:
        self.tokens = self.silent = self.lost = 0
        self._random = random
        self._says_percent = says_percent

    def answer(self, asked: Asked) -> bytes | None:
        documents = asked.documents
        asked_tokens = count(asked.body["query"])
        tokens = weight(asked_tokens, sum(map(count, documents)), len(documents))
        owed = ceiling(tokens, len(documents))
        self.tokens += owed
        if self._random.random() < 0.05:
            self.lost += 1
            return None
        says = self._random.randrange(100) < self._says_percent
        self.silent += not says
        return http(json.dumps(scored(asked, **_usage(owed) if says else {})).encode())


def _usage(tokens: Any) -> dict[str, Any]:
    return {"usage": {"total_tokens": tokens}}


def capped_bill(trials: int, seed: int, folder: Path) -> str:
    """Runs under a cap with kills and lost answers; every fourth is two shards, one by one."""
    shares, kills, silent, lost = [], 0, 0, 0
    config = folder / "bill.toml"
    config.write_text("[output]\nrows_per_part = 100\n")
    for trial in range(trials):
        random, own = Random(f"{seed}:{trial}"), folder / str(trial)
        says, shards = (0, 10, 100)[trial % 3], 2 if trial % 4 == 3 else 1
        bill, documents = Bill(random, says), random.choice([1, 1, 5])
        source = written(own / "in.parquet", table(900, documents, tag=f"bill{trial}"))
        cap = random.uniform(0.003, 0.006) / shards
        options: list[object] = ["-c", config, "--requests-per-minute", 0, "--max-cost", cap]
        options += ["--max-in-flight", random.choice([1, 16, 64])]
        with told(trial, f"usage in {says} %"), till(bill.answer, seconds=0.01) as one:
            for shard in range(shards):
                part = ["--shard", f"{shard}/{shards}"] if shards > 1 else []
                command = (one, source, own / "out", *options, *part)
                for _ in range(random.randint(0, 2)):
                    process, goal = _run(*command), one.requests + random.randint(1, 60)
                    _wait_for(one, goal, process)
                    kills += killed(process) == -9
                code, _, stderr = ended(_run(*command), 120)
                assert code == 4, f"ended with {code}: {last_line(stderr)}"
            cost = bill.tokens * PRICE
            assert cost <= cap, f"${cost:.6f} billed of ${cap:.6f}"
        shares.append(cost / cap)
        silent, lost = silent + bill.silent, lost + bill.lost
    assert silent and lost, "every answer came and said its usage"
    return (
        f"{trials} runs, {kills} kills, {lost} answers lost, {silent} without usage: "
        f"{min(shares):.3f} to {max(shares):.3f} of the cap billed"
    )


def _wait_for(one: Till, requests: int, process: "subprocess.Popen[str]") -> None:
    until(lambda: one.requests >= requests or process.poll() is not None, "it sends", 60)


def settled_as_likely(trials: int, seed: int, folder: Path) -> str:
    """What an answer does not say is taken to be what is likely."""
    with patched(folder, LIKELY):
        said = breaks(lambda: capped_bill(trials, seed, folder), " billed of ")
    return f"capped-bill breaks where silence is cheap: {said}"


LIKELY = Patch(
    "sending/paced_endpoint.py",
    "            billed = self._price.billed(verdict)\n",
    "            billed = self._price.billed(verdict) or self._price.likely(tokens, documents)\n",
)


# 32

ABSURD: dict[str, str] = {
    "400 digits": "9" * 400,
    "5,000 digits": "9" * 5000,
    "1e308": "1e308",
    "10^12": "1000000000000",
    "negative": "-7",
    "a truth": "true",
    "NaN": "NaN",
    "beyond a double": "1e999",
}


def absurd(trials: int, seed: int, folder: Path) -> str:
    """An absurd number in three answers, under a cap and a token limit; then honest answers."""
    source, names = written(folder / "in.parquet", table(150, tag="absurd")), list(ABSURD)
    limits = ["--requests-per-minute", 0, "--tokens-per-minute", 600_000, "--max-in-flight", 8]
    for trial in range(trials):
        name = names[(trial + seed) % len(names)]
        out = folder / f"out-{trial}"
        with told(trial, name), till(_absurdly({20, 21, 40}, ABSURD[name])) as one:
            code, _, stderr = _end(_run(one, source, out, *limits, "--max-cost", 0.0012))
            said = [line for line in stderr.splitlines() if "than nothing" in line]
            assert code == 4, f"ended with {code}: {stderr[-300:]}"
            assert len(said) == 1 and "Traceback" not in stderr, f"{len(said)} warnings: {stderr}"
            assert 60 < one.requests < 150, f"the cap was used up by {one.requests} requests"
            one.answer = answer_all
            code, _, stderr = _end(_run(one, source, out, *limits, "--max-cost", 1))
            assert (code, stderr) == (0, ""), f"then ended with {code}: {stderr[-300:]}"
            receipt = json.loads((out / "_run.json").read_bytes())
            assert receipt["implausible_usage"] == 3, f"{receipt['implausible_usage']} counted"
            assert receipt["tokens_billed"] < 150 * 300, f"{receipt['tokens_billed']} tokens"
            assert one.requests == 150, f"{one.requests} requests for 150 rows"
    return f"{trials} runs met one of {len(names)} absurd numbers: said once, counted, gone on"


def _end(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    try:
        return ended(process, 60)
    except subprocess.TimeoutExpired:
        raise AssertionError(
            "the minute's tokens are used up: it waits for more than 60 s"
        ) from None


def _absurdly(numbers: set[int], text: str) -> Callable[[Asked], bytes | None]:
    def answer(asked: Asked) -> bytes | None:
        mark = 987654321
        said = mark if asked.number in numbers else 100
        body = json.dumps(scored(asked, **_usage(said)))
        return http(body.replace(str(mark), text).encode())

    return answer


def absurd_is_believed(trials: int, seed: int, folder: Path) -> str:
    """Whatever an answer says is taken for its bill."""
    with patched(folder, BELIEVED):
        said = breaks(lambda: absurd(trials, seed, folder), " 0 warnings", "used up")
    return f"absurd-usage breaks where any number is believed: {said}"


BELIEVED = Patch(
    "config/pricing.py",
    "        if (used, searched) == (answer.tokens, answer.searches):\n",
    "        if True:\n",
)

DRILLS = [
    Drill((30,), "capped-pace", capped_pace, 1, 5),
    Drill((30,), "control-capped-pace", permission_first, 1, 3),
    Drill((30,), "capped-bill", capped_bill, 4, 200),
    Drill((30,), "control-capped-bill", settled_as_likely, 4, 8),
    Drill((32,), "absurd-usage", absurd, 2, 24),
    Drill((32,), "control-absurd-usage", absurd_is_believed, 2, 8),
]
