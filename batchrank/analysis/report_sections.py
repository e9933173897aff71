"""The sections of a report: each a chart where there is a course to see, and its figures in words.

Every figure that is drawn is also written. What a run did not keep is said to be missing.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import accumulate

import msgspec

from batchrank.analysis.charts import bars, lines, table
from batchrank.analysis.rank_changes import tau_words, top_10_words
from batchrank.analysis.score_summary import FINE, Findings
from batchrank.analysis.status import Status
from batchrank.output.receipt import clock, estimate_words, money, scorer_line
from batchrank.state.history import Kept, Point, joined, percentile

_BARS = 40
_LATENCY_POINTS = 60
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_PERCENTILES = (0.5, 0.9, 0.95, 0.99)
_NO_SERIES = "No series was kept: the run is older than this version, or sent nothing."


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """A run's figures, from its receipt, or while there is none from its latest progress."""

    rows: int
    rows_done: int
    requests: int
    retries: int | None
    possibly_paid: int | None
    tokens_billed: int
    tokens_estimated: int | None
    estimate_is_exact: bool
    cost_usd: float
    cost_is_real: bool
    limited_by: str | None


def rate(points: Sequence[Point]) -> str:
    """Requests sent a second beside the limit, over the time at work."""
    seconds = sum(point.seconds for point in points)
    if not seconds:
        return f"<p>{_NO_SERIES}</p>"
    ends = list(accumulate(point.seconds for point in points))
    sent: list[tuple[float, float]] = []
    limit: list[tuple[float, float]] = []
    for end, point in zip(ends, points, strict=True):
        sent += [(end - point.seconds, _per_second(point)), (end, _per_second(point))]
        limit += [(end - point.seconds, point.limit / 60), (end, point.limit / 60)]
    limits = list(dict.fromkeys(point.limit for point in points))
    named = [("sent", "one", sent)]
    if all(limits):
        named.append(("limit", "limit", limit))
    sessions = [
        end
        for end, point, after in zip(ends, points, points[1:], strict=False)
        if point.session != after.session
    ]
    chart = lines(
        "Requests a second",
        named,
        unit="",
        right=seconds,
        ends=("0", clock(seconds)),
        marks=sessions,
    )
    requests = sum(point.sent for point in points)
    rows = [
        ("mean, requests a second", f"{requests / seconds:,.1f}"),
        ("busiest second", f"{max(map(_per_second, points)):,.1f}"),
        ("limit", ", then ".join(f"{one / 60:,.1f}" if one else "none" for one in limits)),
        ("sessions", f"{len({point.session for point in points}):,}"),
    ]
    if len(limits) == 1 and all(limits):
        rows.insert(
            3, ("mean, share of the limit", f"{requests / seconds / (points[0].limit / 60):.1%}")
        )
    return chart + table(rows)


def _per_second(point: Point) -> float:
    return point.sent / point.seconds if point.seconds else 0.0


def latency(points: Sequence[Point]) -> str:
    """Seconds from permission to answer: percentiles over the time at work, and of all."""
    if not any(point.answered for point in points):
        return f"<p>{_NO_SERIES}</p>"
    coarse = _coarse(points)
    ends = list(accumulate(point.seconds for point in coarse))
    timed = [
        (end - point.seconds / 2, point.latency)
        for end, point in zip(ends, coarse, strict=True)
        if point.answered
    ]
    named = [
        (label, style, [(middle, percentile(found, share) or 0.0) for middle, found in timed])
        for label, style, share in (("median", "one", 0.5), ("95 %", "two", 0.95))
    ]
    right = ends[-1]
    chart = lines("Seconds to an answer", named, unit=" s", right=right, ends=("0", clock(right)))
    whole = reduce(joined, coarse).latency
    rows = [(f"{share:.0%}", _seconds(percentile(whole, share))) for share in _PERCENTILES]
    rows.append(("slowest", _seconds(percentile(whole, 1.0))))
    note = '<p class="under">From permission to send to the answer; known to a tenth.</p>'
    return chart + table(rows, ("of answers", "within")) + note


def _coarse(points: Sequence[Point]) -> list[Point]:
    """At most so many points that each has answers enough for a percentile."""
    size = -(-len(points) // _LATENCY_POINTS)
    return [reduce(joined, points[at : at + size]) for at in range(0, len(points), size)]


def spending(totals: Totals) -> str:
    """Tokens estimated and billed, and what they cost."""
    rows = []
    if totals.tokens_estimated is not None and not totals.estimate_is_exact:
        guess = estimate_words(totals.tokens_estimated, False).replace(" estimated", "")
        rows += [("tokens estimated", guess), ("tokens billed", f"{totals.tokens_billed:,}")]
    elif totals.tokens_estimated is not None:
        difference = totals.tokens_billed - totals.tokens_estimated
        share = f" ({difference / totals.tokens_estimated:+.2%})" if totals.tokens_estimated else ""
        rows += [("tokens estimated", f"{totals.tokens_estimated:,}")]
        rows += [("tokens billed", f"{totals.tokens_billed:,}")]
        rows += [("billed beyond estimate", f"{difference:+,}{share}")]
    else:
        rows += [("tokens billed", f"{totals.tokens_billed:,}")]
    rows.append(("cost", money(totals.cost_usd, totals.cost_is_real)))
    if totals.rows_done:
        per_row = totals.cost_usd / totals.rows_done
        rows.append(("cost of 1,000 rows", money(per_row * 1000, totals.cost_is_real)))
        if totals.rows_done < totals.rows:
            rows.append(
                ("cost of all rows at that", money(per_row * totals.rows, totals.cost_is_real))
            )
    if totals.possibly_paid:
        rows.append(("requests that may be billed too", f"{totals.possibly_paid:,}"))
    return table(rows)


def scores(found: Findings | None) -> str:
    """How scores are distributed, how many are equal, how far ranks moved."""
    if found is None or not found.movement.rows:
        return "<p>No row with scores is published yet.</p>"
    ends = (f"{found.low:.3g}", f"{found.high:.3g}")
    labels = [
        f"{found.low + place / _BARS * (found.high - found.low):.3g}" for place in range(_BARS)
    ]
    charts = "".join(
        bars(title, counts.reshape(_BARS, FINE // _BARS).sum(axis=1).tolist(), labels, ends)
        for title, counts in (
            ("Candidates by score", found.scores),
            ("Rows by their best score", found.best),
        )
    )
    quantiles = [
        (
            f"{share:.0%}",
            *(f"{found.quantile(share, counts):.4g}" for counts in (found.scores, found.best)),
        )
        for share in _QUANTILES
    ]
    moves = found.movement
    ties = moves.tied_candidates / moves.candidates
    rows = [
        ("rows with scores", f"{moves.rows:,}"),
        ("scored candidates", f"{moves.candidates:,}"),
        ("candidates tied with another", f"{moves.tied_candidates:,} ({ties:.2%})"),
        ("rows with ties", f"{moves.rows_with_ties:,} ({moves.rows_with_ties / moves.rows:.1%})"),
        ("places moved, mean", _rounded(moves.mean_displacement)),
        ("Kendall's tau with the input order", tau_words(moves)),
        ("rows with another first", f"{moves.top_1_changed:.1%}"),
        ("rows with others in the first 10", top_10_words(moves)),
    ]
    if moves.top_n:
        rows.append(("candidates of a row in the output, by top_n", f"{moves.top_n:,}"))
    return charts + table(quantiles, ("at most", "candidates", "best of row")) + table(rows)


def _rounded(mean: float | None) -> str:
    return "unknown" if mean is None else f"{mean:.2f}"


def failures(totals: Totals, found: Findings | None, kept: Kept) -> str:
    """Rows by status, and why some lack scores; requests that got none, and why."""
    rows = [
        (name, f"{count:,} rows")
        for name, count in sorted((found.statuses if found else {}).items())
    ]
    if totals.rows_done < totals.rows:
        rows.append(("not done", f"{totals.rows - totals.rows_done:,} rows"))
    parts = [table(rows)] if rows else []
    if found is not None and found.reasons:
        reasons = [(one.text, f"{one.rows:,}", one.first) for one in found.reasons]
        parts.append(table(reasons, ("rows that lack scores, because", "rows", "first")))
    if kept.reasons:
        asked = sorted(kept.reasons.items(), key=lambda one: -one[1])
        parts.append(
            table(
                [(text, f"{count:,}") for text, count in asked],
                ("requests without scores, because", "requests"),
            )
        )
    return "".join(parts) or "<p>Nothing is published yet.</p>"


def configuration(state: Status) -> str:
    """What the run was told, and what it read."""
    if state.receipt is None:
        return "<p>The run has no receipt yet.</p>"
    receipt = state.receipt
    rows = [
        *scorer_line(receipt),
        *(
            (f"{section}.{name}", str(value))
            for section, values in receipt.config.items()
            for name, value in values.items()
        ),
    ]
    rows += [(f"input: {file.name}", f"{file.rows:,} rows") for file in receipt.input]
    libraries = ", ".join(f"{name} {version}" for name, version in receipt.libraries.items())
    rows.append(("batchrank", f"{receipt.batchrank} with {libraries}"))
    if receipt.limited_by:
        rows.insert(0, ("limited by", receipt.limited_by))
    return f"<details><summary>All of it</summary>{table(rows)}</details>"


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.0f} ms"
