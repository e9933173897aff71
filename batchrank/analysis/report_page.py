"""A run as one HTML file: no network, no script, light and dark, wide and narrow.

An older run, one that is at work and one that was killed have their page too.
"""

from pathlib import Path

from batchrank.analysis import report_sections as sections
from batchrank.analysis.charts import escape
from batchrank.analysis.output_reader import check_place
from batchrank.analysis.report_sections import Totals
from batchrank.analysis.score_summary import Findings, findings
from batchrank.analysis.status import Status, status
from batchrank.errors import OutputUnusable, StorageFailed
from batchrank.files.atomic import is_stream, open_target
from batchrank.files.paths import Place
from batchrank.output.parts import write_whole
from batchrank.output.receipt import clock, money, scorer_line
from batchrank.output.receipt_file import PAGE
from batchrank.state.shard_status import read_course


def write_page(out: Place, file: Path | None = None, state_dir: Path | None = None) -> Place | None:
    """Write the report on an output to a file (None: _report.html in its folder). Return which, or
    None where the file is a stream, which then holds the report and nothing else.
    """
    path = file or out / PAGE
    check_place(path, out)
    content = page(out, state_dir).encode()
    if file is None:
        write_whole(path, content, path.parent if isinstance(path, Path) else Path())
        return path
    try:
        with open_target(file) as target:
            target.write(content)
    except BrokenPipeError:
        return None  # whoever reads has seen enough
    except OSError as error:
        raise StorageFailed(f"{file}: cannot be written: {error.strerror}.") from error
    return None if is_stream(file) else file


def page(out: Place, state_dir: Path | None = None) -> str:
    """The report on an output. Raises `OutputUnusable` where there is none."""
    state = status(out, state_dir)
    totals = _totals(state, out)
    kept = read_course(out, state_dir)
    found = _findings(out, state_dir)
    points = kept.points
    seconds = sum(point.seconds for point in points) or (
        state.receipt.seconds if state.receipt else state.progress.seconds if state.progress else 0
    )
    content = [
        _heading(out, state, found),
        _cards(totals, seconds),
        _section("Rate", sections.rate(points)),
        _section("Latency", sections.latency(points)),
        _section("Tokens and cost", sections.spending(totals)),
        _section("Scores", sections.scores(found)),
        _section("Failures", sections.failures(totals, found, kept)),
        _section("Configuration", sections.configuration(state)),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>batchrank: {escape(_name(out))}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(content)}</main></body></html>\n"
    )


def _findings(out: Place, state_dir: Path | None) -> Findings | None:
    """What the rows say; None where there are none yet."""
    try:
        return findings(out, state_dir)
    except OutputUnusable:
        if any(out.glob("part-*.parquet")):
            raise
        return None


def _name(out: Place) -> str:
    return out.resolve().name if isinstance(out, Path) else out.name


def _totals(state: Status, out: Place) -> Totals:
    receipt, progress = state.receipt, state.progress
    if receipt is not None:
        published = receipt.rows - receipt.rows_open
        return Totals(
            rows=receipt.rows,
            rows_done=max(published, progress.rows_done if progress is not None else 0),
            requests=receipt.requests,
            retries=receipt.retries,
            possibly_paid=receipt.possibly_paid,
            tokens_billed=receipt.tokens_billed,
            tokens_estimated=receipt.tokens_estimated,
            estimate_is_exact=receipt.estimate_is_exact,
            cost_usd=receipt.cost_usd,
            cost_is_real=receipt.cost_is_real,
            limited_by=receipt.limited_by,
        )
    if progress is None:
        raise OutputUnusable(f"{out}: its run has only begun; there is nothing to report yet.")
    return Totals(
        rows=progress.rows,
        rows_done=progress.rows_done,
        requests=progress.requests,
        retries=None,
        possibly_paid=None,
        tokens_billed=progress.tokens,
        tokens_estimated=None,
        estimate_is_exact=False,
        cost_usd=progress.cost_usd,
        cost_is_real=progress.cost_is_real,
        limited_by=None,
    )


def _heading(out: Place, state: Status, found: Findings | None) -> str:
    receipt = state.receipt
    told = [words for one in (receipt or state.progress,) if one for _, words in scorer_line(one)]
    scored_by = "".join(f'<p class="under">scored by {escape(words)}</p>' for words in told)
    began = f", last session begun {receipt.started}" if receipt is not None else ""
    answered = (
        f'<p class="under">with {found.rows_answered:,} answered rows of parts that are not '
        "complete</p>"
        if found is not None and found.rows_answered
        else ""
    )
    message = (
        f'<p class="message">{escape(receipt.message)}</p>' if receipt and receipt.message else ""
    )
    return (
        f"<h1>{escape(_name(out))}</h1>"
        f'<p class="under">{escape(f"{state.state}{began}")}</p>{scored_by}{answered}{message}'
    )


def _cards(totals: Totals, seconds: float) -> str:
    cards = [
        ("rows", f"{totals.rows_done:,}", f"of {totals.rows:,}"),
        (
            "requests",
            f"{totals.requests:,}",
            "" if totals.retries is None else f"{totals.retries:,} sent again",
        ),
        ("tokens billed", _short(totals.tokens_billed), f"{totals.tokens_billed:,}"),
        (
            "cost",
            money(totals.cost_usd, True) if totals.cost_is_real else "free",
            "" if totals.cost_is_real else f"{money(totals.cost_usd, True)} at the hosted price",
        ),
        ("time at work", clock(seconds), ""),
    ]
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card"><span class="name">{escape(name)}</span>'
            f'<span class="figure">{escape(figure)}</span>'
            f'<span class="under">{escape(more)}</span></div>'
            for name, figure, more in cards
        )
        + "</div>"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _short(count: float) -> str:
    """A count in a few letters: 950, 3.6 M."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.0f}"


STYLE = """
:root{--page:#f9f9f7;--card:#fff;--ink:#0b0b0b;--soft:#52514e;--grid:#e1e0d9;--base:#c3c2b7;
--one:#2a78d6;--two:#eb6834}
@media(prefers-color-scheme:dark){:root{--page:#0d0d0d;--card:#1a1a19;--ink:#fff;--soft:#c3c2b7;
--grid:#2c2c2a;--base:#55544f;--one:#3987e5;--two:#d95926}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.45 system-ui,sans-serif}
main{max-width:960px;margin:0 auto;padding:20px 16px 60px}
h1{font-size:24px;margin:0;overflow-wrap:anywhere}h2{font-size:17px;margin:0 0 10px}
.under{color:var(--soft);font-size:13px;margin:2px 0 8px}
.message{border-left:4px solid var(--two);padding:6px 12px;margin:8px 0;background:var(--card)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:14px 0}
.card,section{background:var(--card);border:1px solid var(--grid);border-radius:8px;padding:14px}
.card{display:flex;flex-direction:column}.card .name{color:var(--soft);font-size:13px}
.card .figure{font-size:24px;font-weight:600}
section{margin:12px 0}figure{margin:0 0 14px}
figcaption{font-size:13px;color:var(--soft);margin-bottom:6px}
.key{margin-left:14px;white-space:nowrap;color:var(--ink)}
.key::before{content:"";display:inline-block;width:14px;border-top:2px solid var(--one);
margin-right:6px;vertical-align:middle}
.key.two::before{border-color:var(--two)}.key.limit::before{border-top:2px dashed var(--soft)}
.plot{display:flex;height:170px}
.scale{display:flex;flex-direction:column;justify-content:space-between;text-align:right;
min-width:44px;padding-right:8px;font-size:12px;line-height:1;color:var(--soft);
font-variant-numeric:tabular-nums}
svg{flex:1;min-width:0;height:100%;overflow:visible}
svg *{vector-effect:non-scaling-stroke}
polyline{fill:none;stroke-width:2;stroke-linejoin:round}
polyline.one{stroke:var(--one)}polyline.two{stroke:var(--two)}
polyline.limit{stroke:var(--soft);stroke-dasharray:6 4}
.bar{fill:var(--one)}.grid{stroke:var(--grid)}.base{stroke:var(--base)}
.mark{stroke:var(--base);stroke-dasharray:2 3}
.ends{display:flex;justify-content:space-between;margin-left:44px;padding-top:4px;font-size:12px;
color:var(--soft)}
table{border-collapse:collapse;min-width:min(100%,440px);margin:6px 0 14px}
th,td{padding:5px 8px 5px 0;border-bottom:1px solid var(--grid);text-align:left;font-weight:400;
vertical-align:top;overflow-wrap:break-word}
td{text-align:right;font-variant-numeric:tabular-nums}
thead th{color:var(--soft);font-size:13px}thead th:not(:first-child){text-align:right}
summary{cursor:pointer;color:var(--soft)}
"""
