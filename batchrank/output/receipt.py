"""The receipt of a run (`_run.json`), and the words that a person reads at its end.

Figures come from counts that were kept anyway; nothing here measures.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from batchrank.files.atomic import write_unsynced
from batchrank.input.parquet_rows import FileIdentity
from batchrank.output.parts import PartRecord
from batchrank.output.standstill import Standstill

LIMITED_BY = {
    "requests": "requests per minute",
    "tokens": "tokens per minute",
    "pause": "the endpoint's throttling",
    "outage": "the endpoint's failures",
    "input": "reading and planning the input",
    "disk": "the disk, where answers wait to be safe",
    "endpoint": "the endpoint's answers (max_in_flight)",
}


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A run's figures at an instant, sessions before this one included, but for the times.

    `scorer` is the model, or the embedded one.
    `retries` counts requests that were sent again, `throttled` answers that asked for less.
    `seconds` is this session's; `requests_per_second` its mean over the last moments.
    """

    rows: int
    rows_done: int
    requests: int
    tokens: int
    cost_usd: float
    cost_is_real: bool
    seconds: float
    requests_per_second: float
    seconds_left: float | None
    finish_by: str | None = None
    provider: str = ""
    scorer: str = ""
    rows_failed: int = 0
    rows_partial: int = 0
    retries: int = 0
    throttled: int = 0
    standstill: Standstill | None = None


class Left(msgspec.Struct, frozen=True):
    """What a run that was stopped has yet to do: rows that have no answer yet, and what they come
    to if they are as those before them, at this session's pace. None: there is nothing to go by.
    """

    rows: int
    requests: int | None
    tokens: int | None
    cost_usd: float | None
    seconds: float | None


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What one of a run's shards did, in the receipt of the whole."""

    shard: str
    rows: int
    requests: int
    retries: int
    possibly_paid: int
    tokens_billed: int
    cost_usd: float
    started: str
    seconds: float


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did, and what it cost. Tokens are those of answered requests; `possibly_paid`
    counts requests whose outcome is unknown. Times are of the last session, of the whole of
    several `shards` those of the longest. `estimate_is_exact`: every token was counted with the
    model's own vocabulary; what is billed beyond `tokens_estimated` is then the server's constant
    and what was sent again. Else it is a guess from bytes. `rows_kept` are answered, and wait for
    the others of their parts. `rows_reused` are the rows for which nothing was sent, an earlier run
    having scored them. `implausible_usage` counts answers that said to have used more than 10 times
    what their request can; the most that it can was counted.
    """

    status: str
    exit_code: int
    message: str | None
    batchrank: str
    libraries: dict[str, str]
    config: dict[str, Any]
    input: list[FileIdentity]
    rows: int
    rows_scored: int
    rows_partial: int
    rows_failed: int
    rows_skipped: int
    rows_open: int
    documents_truncated: int
    requests: int
    retries: int
    possibly_paid: int
    requests_this_session: int
    tokens_estimated: int
    tokens_billed: int
    cost_usd: float
    cost_is_real: bool
    started: str
    seconds: float
    limited_by: str | None
    parts: list[PartRecord]
    finish_by: str | None = None
    priority_column: str | None = None
    rows_kept: int = 0
    left: Left | None = None
    shard: str | UnsetType = UNSET
    shards: list[Share] | UnsetType = UNSET
    pairs_reused: int = 0
    rows_reused: int = 0
    estimate_is_exact: bool = False
    provider: str = ""
    scorer: str = ""
    implausible_usage: int = 0


LIVE = "live.json"


def write_live(state: Path, progress: Progress) -> None:
    """Let `batchrank status` of another terminal see a run's figures."""
    with suppress(OSError):  # a full disk ends the run where it matters
        write_unsynced(state / LIVE, msgspec.json.encode(progress))


def read_live(state: Path) -> Progress | None:
    """The figures of the latest session at their latest; None before the first."""
    try:
        return msgspec.json.decode((state / LIVE).read_bytes(), type=Progress)
    except (OSError, msgspec.DecodeError):
        return None


def total(parts: Iterable[PartRecord], count: str) -> int:
    """A count of `PartCounts` over all published parts."""
    return sum(getattr(part.counts, count) for part in parts)


def summary(receipt: Receipt, out: str) -> str:
    """The end of a run in words."""
    kept = min(receipt.rows_kept, receipt.rows_open)
    rows = [
        f"{count:,} {what}"
        for what, count in (
            ("scored", receipt.rows_scored),
            ("partial", receipt.rows_partial),
            ("failed", receipt.rows_failed),
            ("skipped", receipt.rows_skipped),
            ("answered and kept", kept),
            ("not done", receipt.rows_open - kept),
        )
        if count or what == "scored"
    ]
    rate = receipt.requests_this_session / receipt.seconds if receipt.seconds else 0.0
    resent = f", {receipt.retries:,} sent again" if receipt.retries else ""
    estimate = estimate_words(receipt.tokens_estimated, receipt.estimate_is_exact)
    unknown = f", {receipt.possibly_paid:,} of unknown outcome" if receipt.possibly_paid else ""
    lines = [
        ("rows", f"{receipt.rows:,}: {', '.join(rows)}"),
        *scorer_line(receipt),
        ("requests", f"{receipt.requests:,}{resent}{unknown}"),
        *reused_line(receipt.pairs_reused, receipt.rows_reused),
        ("tokens", f"{receipt.tokens_billed:,} billed, {estimate}"),
        ("cost", money(receipt.cost_usd, receipt.cost_is_real)),
        ("time", f"{clock(receipt.seconds)}, {rate:,.1f} requests/s"),
        ("limited by", receipt.limited_by or "nothing: no request was sent"),
        ("output", out),
    ]
    if receipt.left is not None:
        lines.insert(-1, ("left", left_words(receipt.left)))
    return "\n".join(f"{name:<11}{text}" for name, text in lines)


def estimate_words(tokens: int, exact: bool) -> str:
    """The tokens that were expected, in words. A guess is rounded: it must not look like a count
    that the bill contradicts.
    """
    if exact:
        return f"{tokens:,} estimated"
    digits = max(0, len(str(tokens)) - 2)
    return f"about {round(tokens, -digits):,} estimated from bytes"


def left_words(left: Left) -> str:
    """What is left, in words."""
    about = []
    if left.requests is not None and left.tokens is not None:
        about += [f"{left.requests:,} requests", f"{left.tokens:,} tokens"]
    if left.cost_usd is not None:
        about.append(money(left.cost_usd, True))
    if left.seconds is not None:
        about.append(f"{clock(left.seconds)} at this pace")
    return f"{left.rows:,} rows" + (f", about {', '.join(about)}" if about else "")


def scorer_line(of: Progress | Receipt) -> list[tuple[str, str]]:
    """What gave the scores, in words; no line where an earlier version did not keep it."""
    return [("scored by", f"{of.scorer} (provider {of.provider})")] if of.scorer else []


def reused_line(pairs: int, rows: int) -> list[tuple[str, str]]:
    """What an earlier run had scored, in words; no line where there was none."""
    return [("reused", f"{pairs:,} pairs; {rows:,} rows sent nothing")] if pairs else []


def money(cost_usd: float, real: bool) -> str:
    """A cost in words; the local server only rehearses one."""
    digits = 2 if cost_usd >= 1 else 4
    return f"${cost_usd:,.{digits}f}" + ("" if real else " at the hosted price; local, so free")


def clock(seconds: float) -> str:
    """A duration as a person says it: 4.2 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
