"""The line that moves while a run is at work, on a terminal or in a notebook and nowhere else.

It goes to standard error, so that standard output holds results alone. In a notebook it is a bar of
the browser's own, which needs no widgets installed.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from batchrank.providers import EMBEDDED_SCORER
from batchrank.report import Progress, clock, money


@contextmanager
def bar(*, wanted: bool = True) -> Iterator[Callable[[Progress], None]]:
    """A function to call with figures: it draws them, or does nothing where nobody looks."""
    if wanted and _is_notebook():
        with _in_notebook() as draw:
            yield draw
        return
    if not wanted or sys.stderr is None or not sys.stderr.isatty():
        yield lambda progress: None
        return
    from rich.console import Console  # 0.1 s that a cron job does not need
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Drawing

    console = Console(stderr=True)
    with Drawing(
        TextColumn("rows"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
        transient=True,
        expand=True,
    ) as drawing:
        task = drawing.add_task("", total=None, figures="starting")

        def draw(progress: Progress) -> None:
            drawing.update(
                task,
                total=progress.rows,
                completed=progress.rows_done,
                figures=_figures(
                    progress, console.width - _ROWS_WIDTH - 2 * len(str(progress.rows))
                ),
            )

        yield draw


_ROWS_WIDTH = 18
"""What a narrow terminal keeps for the word "rows", a short bar, and the spaces between."""


def _is_notebook() -> bool:
    """Whether this is a notebook's kernel; whoever runs in one has imported IPython."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


@contextmanager
def _in_notebook() -> Iterator[Callable[[Progress], None]]:
    shown = sys.modules["IPython.display"]
    handle = shown.display(shown.HTML("starting"), display_id=True)

    def draw(progress: Progress) -> None:
        handle.update(
            shown.HTML(
                f'<progress max="{progress.rows}" value="{progress.rows_done}"></progress> '
                f"{progress.rows_done:,} of {progress.rows:,} rows  {_figures(progress, 100)}"
            )
        )

    try:
        yield draw
    finally:
        handle.update(shown.HTML(""))


def _figures(progress: Progress, width: int) -> str:
    """As many figures as there is room for; the time left is the last to go."""
    left = progress.seconds_left
    figures = {
        "rate": f"{progress.requests_per_second:,.1f} requests/s",
        "tokens": f"{progress.tokens:,} tokens",
        # A rehearsal costs nothing, and dollars on a bar are taken for dollars.
        "cost": "" if progress.scorer == EMBEDDED_SCORER else money(progress.cost_usd, True),
        "until": "" if progress.finish_by is None else f"until {progress.finish_by}",
        "left": "" if left is None else f"{clock(left)} left",
    }
    for least in ("tokens", "cost", "rate", "until"):
        if len("  ".join(figures.values())) > width:
            del figures[least]
    return "  ".join(figure for figure in figures.values() if figure)
