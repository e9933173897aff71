"""The line that moves while a run is at work, on a terminal or in a notebook and nowhere else.

It goes to standard error, so that standard output holds results alone. In a notebook it is a bar of
the browser's own, which needs no widgets installed. No number is ever cut: where there is no room
for a figure, it is left out.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape

from batchrank.config.providers import EMBEDDED_SCORER
from batchrank.output.receipt import Progress, clock, money
from batchrank.output.standstill import describe

_LEAST_BAR, _MOST_BAR = 10, 60


@contextmanager
def bar(*, wanted: bool = True, at_once: bool = True) -> Iterator[Callable[[Progress], None]]:
    """Give a function to call with figures: it draws them, or does nothing where nobody looks.

    Not `at_once`: draw nothing before the first figures, while somebody may be asked something.
    """
    if wanted and _is_notebook():
        with _in_notebook() as shown:
            yield shown
        return
    if not wanted or sys.stderr is None or not sys.stderr.isatty():
        yield lambda progress: None
        return
    from rich.console import Console  # 0.1 s that a cron job does not need
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    latest: Progress | None = None

    def drawn() -> Text:
        if latest is None:
            return Text("reading the input")
        plain = console.options.ascii_only
        width = console.width - len("^C")  # a terminal shows what is typed behind the last line
        return Text("\n".join(lines(latest, width, plain=plain)), overflow="fold")

    live = Live(get_renderable=drawn, console=console, transient=True, refresh_per_second=4)

    def draw(progress: Progress) -> None:
        nonlocal latest
        latest = progress
        live.start()

    try:
        if at_once:
            live.start()
        yield draw
    finally:
        live.stop()


def lines(progress: Progress, width: int, *, plain: bool = False) -> list[str]:
    """Lay out the figures for so many columns; below them, why nothing moves when nothing does.

    `plain`: the terminal knows ASCII alone.
    """
    count = f"{progress.rows_done:,}/{progress.rows:,}"
    if len(count) > width:
        count = f"{_share_done(progress):.0%}"
    start = f"rows {count}" if len(count) + 5 <= width else count
    room = width - len(start)
    # A short bar goes before the last of the figures, and after all the others.
    figures = choose_figures(progress, room - _LEAST_BAR - 3) or choose_figures(progress, room - 2)
    bar_width = min(_MOST_BAR, room - len(figures) - 2 * bool(figures) - 1)
    drawn = start
    if bar_width >= _LEAST_BAR:
        done = int(_share_done(progress) * bar_width)
        glyphs = "=-" if plain else "━╌"
        drawn = f"rows {glyphs[0] * done}{glyphs[1] * (bar_width - done)} {count}"
    shown = [f"{drawn}  {figures}" if figures else drawn]
    if progress.standstill is not None:
        shown += _wrap(describe(progress.standstill), width)
    return shown


def choose_figures(progress: Progress, width: int) -> str:
    """Choose as many figures as there is room for; the time left is the last to go."""
    left = progress.seconds_left
    figures = {
        "rate": f"{progress.requests_per_second:,.1f} requests/s",
        "tokens": f"{progress.tokens:,} tokens",
        # A rehearsal costs nothing, and dollars on a bar are taken for dollars.
        "cost": ""
        if progress.scorer.startswith(EMBEDDED_SCORER)
        else money(progress.cost_usd, True),
        "failed": _counted(progress.rows_failed, "failed"),
        "partial": _counted(progress.rows_partial, "partial"),
        "retries": _counted(progress.retries, "sent again"),
        "throttled": _counted(progress.throttled, "throttled"),
        "until": "" if progress.finish_by is None else f"until {progress.finish_by}",
        "left": "" if left is None else f"{clock(left)} left",
    }
    for least in (*_LEAST_FIRST, None):
        text = "  ".join(figure for figure in figures.values() if figure)
        if least is None or len(text) <= width:
            return text if len(text) <= width else ""
        del figures[least]
    raise AssertionError("the loop ends with None")


_LEAST_FIRST = (*("tokens", "partial", "throttled", "retries", "cost", "rate", "failed", "until"),)
"""Figures in the order in which they are left out."""


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count else ""


def _share_done(progress: Progress) -> float:
    return min(1.0, progress.rows_done / progress.rows) if progress.rows else 1.0


def _wrap(text: str, width: int) -> list[str]:
    """Break a text between words, so that no number is cut; a longer word is left to itself."""
    shown, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            shown.append(line)
            line = word
        else:
            line = f"{line} {word}".lstrip()
    return [*shown, line]


def _is_notebook() -> bool:
    """Whether this is a notebook's kernel; whoever runs in one has imported IPython."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


@contextmanager
def _in_notebook() -> Iterator[Callable[[Progress], None]]:
    shown = sys.modules["IPython.display"]
    handle = shown.display(shown.HTML("starting"), display_id=True)

    def draw(progress: Progress) -> None:
        why = progress.standstill
        stalled = "" if why is None else f"<br>{escape(describe(why))}"
        handle.update(
            shown.HTML(
                f'<progress max="{progress.rows}" value="{progress.rows_done}"></progress> '
                f"{progress.rows_done:,} of {progress.rows:,} rows  "
                f"{choose_figures(progress, 140)}{stalled}"
            )
        )

    try:
        yield draw
    finally:
        handle.update(shown.HTML(""))
