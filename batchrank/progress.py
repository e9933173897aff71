"""The line that moves while a run is at work, on a terminal and nowhere else.

It goes to standard error, so that standard output holds results alone.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from batchrank.report import Progress, clock, money


@contextmanager
def bar() -> Iterator[Callable[[Progress], None]]:
    """A function to call with figures: it draws them, or does nothing without a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda progress: None
        return
    from rich.console import Console  # 0.1 s that a cron job does not need
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Drawing

    with Drawing(
        TextColumn("rows"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        console=Console(stderr=True),
        transient=True,
        expand=True,
    ) as drawing:
        task = drawing.add_task("", total=None, figures="starting")

        def draw(progress: Progress) -> None:
            drawing.update(
                task, total=progress.rows, completed=progress.rows_done, figures=_figures(progress)
            )

        yield draw


def _figures(progress: Progress) -> str:
    left = "" if progress.seconds_left is None else f"  {clock(progress.seconds_left)} left"
    cost = money(progress.cost_usd, True)
    return (
        f"{progress.requests_per_second:,.1f} requests/s  {progress.tokens:,} tokens  {cost}{left}"
    )
