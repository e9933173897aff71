"""Lines and bars as SVG that needs no script, and tables beside them.

A chart's drawing stretches with the page while its strokes do not, and its labels are text of the
page: they keep their size on a phone. Colours are the page's own (see `page.STYLE`).
"""

import html
from collections.abc import Iterable, Sequence
from math import floor, log10

from batchrank import errors

_WIDTH, _HEIGHT = 1000.0, 100.0
Line = Sequence[tuple[float, float]]
"""Points of a line: x and y, in the order of x."""


def escape(text: str) -> str:
    """A text as HTML that shows it, whatever it holds."""
    return html.escape(errors.escape(text))


def lines(
    title: str,
    named: Sequence[tuple[str, str, Line]],
    *,
    unit: str,
    right: float,
    ends: tuple[str, str],
    marks: Iterable[float] = (),
) -> str:
    """A chart of lines (label, style, points) from 0 to `right`; `marks` are vertical lines."""
    top = _nice(max((y for _, _, line in named for _, y in line), default=0.0))
    drawn = [
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{_HEIGHT:g}"/>'
        for x in (mark / (right or 1.0) * _WIDTH for mark in marks)
    ]
    for _, style, line in named:
        points = " ".join(
            f"{x / (right or 1.0) * _WIDTH:.1f},{_HEIGHT - y / top * _HEIGHT:.2f}" for x, y in line
        )
        drawn.append(f'<polyline class="{style}" points="{points}"/>')
    legend = [(label, style) for label, style, _ in named]
    return _figure(title, legend, "".join(drawn), top, unit, ends)


def bars(title: str, counts: Sequence[int], labels: Sequence[str], ends: tuple[str, str]) -> str:
    """A chart of bars side by side; a bar's label and count show when it is pointed at."""
    top = _nice(max(counts, default=0))
    width = _WIDTH / max(len(counts), 1)
    drawn = []
    for place, (count, label) in enumerate(zip(counts, labels, strict=True)):
        height = count / top * _HEIGHT
        drawn.append(
            f'<rect class="bar" x="{place * width + width * 0.06:.1f}" y="{_HEIGHT - height:.2f}" '
            f'width="{width * 0.88:.1f}" height="{height:.2f}">'
            f"<title>{escape(label)}: {count:,}</title></rect>"
        )
    return _figure(title, [], "".join(drawn), top, "", ends)


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Rows whose first cell names them; numbers stand to the right."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    return f"<table>{f'<thead><tr>{top}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


def _figure(
    title: str,
    legend: Sequence[tuple[str, str]],
    drawing: str,
    top: float,
    unit: str,
    ends: tuple[str, str],
) -> str:
    keys = "".join(f'<span class="key {style}">{escape(label)}</span>' for label, style in legend)
    scale = "".join(f"<span>{_number(value)}{unit}</span>" for value in (top, top / 2, 0.0))
    return (
        f'<figure><figcaption>{escape(title)}{keys}</figcaption><div class="plot">'
        f'<div class="scale">{scale}</div>'
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}"><line class="grid" x1="0" x2="{_WIDTH:g}" y1="50" y2="50"/>'
        f'<line class="base" x1="0" x2="{_WIDTH:g}" y1="{_HEIGHT:g}" y2="{_HEIGHT:g}"/>'
        f"{drawing}</svg></div>"
        f'<div class="ends"><span>{escape(ends[0])}</span><span>{escape(ends[1])}</span></div>'
        "</figure>"
    )


def _nice(most: float) -> float:
    """A round number that is not below the largest value."""
    if most <= 0:
        return 1.0
    size = 10.0 ** floor(log10(most))
    return next(
        step * size for step in (1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10) if step * size >= most * 0.999
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.3g}"
