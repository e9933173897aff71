"""What a run would send, cost and take, without sending or writing anything.

Rows are planned as `run` plans them, with every token counted; or only a sample of them, in blocks
spread evenly over the input, whose totals are scaled up and given with their error.
"""

from collections.abc import Iterator, Sequence
from math import ceil, isnan, sqrt
from statistics import pvariance
from typing import Any

import msgspec

from batchrank.config.limits import AIM, RateLimits
from batchrank.config.pricing import Price
from batchrank.config.settings import JobConfig
from batchrank.files.paths import Place
from batchrank.input import Inputs, open_inputs
from batchrank.input.parquet_rows import Source
from batchrank.output.receipt import clock, money, reused_line
from batchrank.planning.planner import Planner
from batchrank.planning.shared_requests import Again
from batchrank.planning.text_hashes import Digests
from batchrank.records import PlannedRow, RequestPlan
from batchrank.reuse.index import Reuse, opened
from batchrank.session.read_ahead import Known, gathered
from batchrank.session.request import check_rows, columns_of, planner_of
from batchrank.wire.cohere import searches

BLOCKS = 16
BLOCK_ROWS = 32
_T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14)
"""Student's t for a two-sided 95 %, from one degree of freedom up."""
_COUNTS = (
    "rows",
    "rows_skipped",
    "rows_split",
    "rows_too_large",
    "documents",
    "documents_not_sent",
    "documents_truncated",
    "pairs_reused",
    "rows_reused",
    "requests",
    "requests_lower_bound",
    "tokens_server_constant",
    "requests_apart",
    "requests_united",
    "rows_sharing_queries",
    "tokens",
    "tokens_apart",
    "tokens_united",
    "searches",
)


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of `plan`. `tokens` are the formula's; the server adds a constant, estimated
    apart. `sample_error` is the 95 % half-width of each scaled total as a share of it. Requests and
    tokens come as they are, and as they would be without and with `endpoint.unite_rows`; a sample
    sees only rows united that stand close to one another. The lower bound is that of each row, or
    of the rows that are held together (see `uniting`).
    """

    rows: int
    rows_skipped: int
    rows_split: int
    rows_too_large: int
    documents: int
    documents_not_sent: int
    documents_truncated: int
    pairs_reused: int
    rows_reused: int
    requests: int
    requests_lower_bound: int
    requests_apart: int
    requests_united: int
    rows_sharing_queries: int
    tokens: int
    tokens_apart: int
    tokens_united: int
    tokens_server_constant: int
    searches: int
    cost_usd: float
    cost_is_real: bool
    seconds: float | None
    limited_by: str
    sampled_rows: int | None
    sample_error: dict[str, float] | None
    config: dict[str, Any]


def forecast(
    config: JobConfig,
    inputs: Inputs,
    *,
    limit_rows: int = 0,
    sample: int = 0,
    reuse: Sequence[Place] = (),
    reuse_rows_only: bool = False,
    min_rows: int = 0,
    allow_empty: bool = False,
) -> Forecast:
    """Plan the input (`sample` rows of it, if not 0), without what `reuse` has scored. Raises as
    reading does, and `InputBad` for an input that is smaller than it may be.
    """
    source = open_inputs(inputs, columns_of(config))
    check_rows(inputs.paths, source, min_rows=min_rows, allow_empty=allow_empty)
    rows = min(source.total_rows, limit_rows or source.total_rows)
    planner = planner_of(config, exact=True)
    previous = [opened(one, config, rows_only=reuse_rows_only) for one in reuse]
    known = Reuse(config, previous) if previous else Digests(config.scoring()).named
    if not sample or sample >= rows:
        totals = _sum(_groups(config, source, planner, known, 0, rows))
        return _figures(config, totals, None, None)
    blocks = [
        _sum(_groups(config, source, planner, known, first, stop))
        for first, stop in _spread(rows, sample)
    ]
    seen = _sum(blocks)
    scale = rows / seen["rows"]
    errors = {name: _error(blocks, name) for name in ("requests", "tokens")}
    totals = {name: round(count * scale) for name, count in seen.items()}
    return _figures(config, totals, seen["rows"], errors)


def words(figures: Forecast) -> str:
    """The figures as a person reads them, the resolved configuration last."""
    about = "about " if figures.sampled_rows else ""
    errors = figures.sample_error or {}
    within = {name: f" (± {100 * share:.1f} %)" for name, share in errors.items()}
    too_large = (
        f", {figures.rows_too_large:,} to fail: too large for one request, and not to be split"
        if figures.rows_too_large
        else ""
    )
    took = "unknown: no rate limit is set" if figures.seconds is None else clock(figures.seconds)
    lines = [
        ("rows", f"{figures.rows:,}, {about}{figures.rows_split:,} to be split, "
                 f"{figures.rows_skipped:,} to be skipped{too_large}"),
        ("documents", f"{about}{figures.documents:,}, {figures.documents_truncated:,} to be cut, "
                      f"{figures.documents_not_sent:,} not sent"),
        *reused_line(figures.pairs_reused, figures.rows_reused),
        ("requests", f"{about}{figures.requests:,}{within.get('requests', '')}; "
                     f"no fewer than {figures.requests_lower_bound:,}"),
        ("tokens", f"{about}{figures.tokens:,}{within.get('tokens', '')}, and about "
                   f"{figures.tokens_server_constant:,} that the server adds"),
        ("cost", about + money(figures.cost_usd, figures.cost_is_real)),
        ("time", f"{about}{took}"),
        ("limited by", figures.limited_by),
    ]  # fmt: skip
    if figures.rows_sharing_queries:
        lines.insert(3, ("uniting", about + _saving(figures)))
    if figures.sampled_rows:
        lines.insert(0, ("sample", f"{figures.sampled_rows:,} rows; figures are scaled up"))
    shown = [
        f"  {section}.{key} = {value!r}"
        for section, values in figures.config.items()
        for key, value in values.items()
    ]
    return "\n".join([*(f"{name:<11}{text}" for name, text in lines), "configuration", *shown])


def _saving(figures: Forecast) -> str:
    """What it makes that rows share queries, in words."""
    asked = figures.config["endpoint"]["unite_rows"]
    return (
        f"{figures.rows_sharing_queries:,} rows share their query; --unite-rows "
        f"{'sends' if asked else 'would send'} {figures.requests_united:,} requests instead of "
        f"{figures.requests_apart:,}, {figures.tokens_united:,} tokens instead of "
        f"{figures.tokens_apart:,}"
    )


def _groups(
    config: JobConfig, source: Source, planner: Planner, known: Known, first: int, stop: int
) -> Iterator[dict[str, int]]:
    """The counts of each group of rows that can share requests; most are a row by itself."""
    unite, can_unite = config.endpoint.unite_rows, not config.endpoint.scores_lists
    for _, groups in gathered(source, first, stop, config.output.rows_per_part, known, Again()):
        for rows in groups:
            apart = [planner.plan(row) for row in rows]
            united = planner.plan_together(rows) if len(rows) > 1 and can_unite else apart
            counts = _counts(united if unite else apart, config.price)
            for name, planned in (("apart", apart), ("united", united)):
                plans = _plans(planned)
                counts["requests_" + name] = len(plans)
                counts["tokens_" + name] = sum(plan.tokens for plan in plans)
            counts["rows_sharing_queries"] = len(rows) if united is not apart else 0
            yield counts


def _plans(rows: Sequence[PlannedRow]) -> list[RequestPlan]:
    """The requests of some rows, each once."""
    return list({plan.plan_id: plan for row in rows for plan in row.plans}.values())


def _reused(row: PlannedRow) -> int:
    """How many of a row's candidates have their scores already."""
    return 0 if row.known is None else len(row.known) - sum(map(isnan, row.known))


def _counts(rows: Sequence[PlannedRow], price: Price) -> dict[str, int]:
    plans = _plans(rows)
    documents = sum(row.candidates for row in rows)
    sent = sum(len(slot.positions) for plan in plans for slot in plan.slots)
    reused = list(map(_reused, rows))
    unsent = [known for row, known in zip(rows, reused, strict=True) if not row.plans]
    whole = sum(known > 0 for known in unsent)
    failed = sum(row.failed for row in rows)
    return {
        "rows": len(rows),
        "rows_skipped": len(unsent) - whole - failed,
        "rows_split": sum(len(row.plans) > 1 for row in rows),
        "rows_too_large": failed,
        "documents": documents,
        "documents_not_sent": documents - sent - sum(reused),
        "documents_truncated": sum(row.truncated for row in rows),
        "pairs_reused": sum(reused),
        "rows_reused": whole,
        "requests": len(plans),
        "requests_lower_bound": sum(row.fewest for row in rows),
        "tokens_server_constant": sum(
            price.per_request + price.per_document * len(plan.documents) for plan in plans
        ),
        "tokens": sum(plan.tokens for plan in plans),
        "searches": sum(searches(plan.tokens, len(plan.documents)) for plan in plans),
    }


def _sum(counts: Iterator[dict[str, int]] | Sequence[dict[str, int]]) -> dict[str, int]:
    totals = dict.fromkeys(_COUNTS, 0)
    for one in counts:
        for name, count in one.items():
            totals[name] += count
    return totals


def _spread(rows: int, sample: int) -> list[tuple[int, int]]:
    """Blocks of consecutive rows, evenly spread, that hold about `sample` rows together."""
    blocks = min(max(min(BLOCKS, sample), 2, ceil(sample / BLOCK_ROWS)), rows)
    size = max(1, sample // blocks)
    firsts = [rows * block // blocks for block in range(blocks)]
    return [(first, min(first + size, rows)) for first in firsts]


def _error(blocks: Sequence[dict[str, int]], name: str) -> float:
    """The 95 % half-width of a scaled total, as a share of it, from how blocks differ."""
    means = [block[name] / block["rows"] for block in blocks]
    mean = sum(means) / len(means)
    if not mean:
        return 0.0
    freedom = len(means) - 1
    student = _T95[freedom - 1] if freedom <= len(_T95) else 1.96 + 2.4 / freedom
    return student * sqrt(pvariance(means) / freedom) / mean


def _figures(
    config: JobConfig,
    totals: dict[str, int],
    sampled_rows: int | None,
    sample_error: dict[str, float] | None,
) -> Forecast:
    by_token = config.price.unit == "tokens"
    price = config.price
    tokens = totals["tokens"] + totals["tokens_server_constant"]
    units = tokens if by_token else totals["searches"]
    seconds, limited_by = _time(config.rate, totals["requests"], totals["tokens"])
    return Forecast(
        **totals,
        cost_usd=round(price.cost(units), 6),
        cost_is_real=config.bills,
        seconds=seconds,
        limited_by=limited_by,
        sampled_rows=sampled_rows,
        sample_error=sample_error,
        config=config.shown(),
    )


def _time(rate: RateLimits, requests: int, tokens: int) -> tuple[float | None, str]:
    """Seconds at the limits, and the limit that takes the longer."""
    needs = {
        "requests per minute": (requests, rate.requests_per_minute * rate.aim),
        "tokens per minute": (tokens, rate.tokens_per_minute * AIM),
    }
    times = {name: 60 * n / limit for name, (n, limit) in needs.items() if limit}
    if not times:
        return None, "max_in_flight and the endpoint's answers: no rate limit is set"
    longest = max(times, key=lambda name: times[name])
    ramp = min(0.45 * rate.ramp_seconds, times[longest])
    return round(times[longest] + ramp, 1), longest
