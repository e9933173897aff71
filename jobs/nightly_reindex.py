"""One night's reindexing: the rows of a date in, the scores of that date out. For cron:

    15 1 * * *  cd /srv/search && .venv/bin/python jobs/nightly_reindex.py rows scores -c prod.toml

Reads ROWS/YYYY-MM-DD/*.parquet and writes SCORES/YYYY-MM-DD/. Silent when all is well, so cron
mails only failures. Safe to start twice: the second ends at once with 75 while the first is at
work, and sends nothing when it is done. A night that was cut short is finished by the next start
with the same date. Readers wait for SCORES/YYYY-MM-DD/_SUCCESS. With --reuse only the pairs are
sent that the latest finished night before has not scored; a night that is empty, or has fewer than
half the rows of the one before it, is passed over. --min-rows refuses an input that is cut short.
"""

from datetime import date
from pathlib import Path

import click

from batchrank.analysis.output_reader import opened
from batchrank.config.settings import load_for_job
from batchrank.errors import BatchrankError, OutputUnusable
from batchrank.session.deadline import deadline
from batchrank.session.job import Request, run

NIGHTS = 14
"""So many finished nights count: after two weeks of small ones, a small night is what is usual."""


@click.command()
@click.argument("rows", type=click.Path(path_type=Path))
@click.argument("scores", type=click.Path(path_type=Path))
@click.option("-c", "--config", type=click.Path(path_type=Path), help="A TOML file; see configs/.")
@click.option("--provider", help="Whom to ask, where no configuration says so.")
@click.option("--date", "day", default=lambda: date.today().isoformat(), help="[default: today]")
@click.option("--max-cost", type=float, help="Stop (4) before the bill could pass so many dollars.")
@click.option("--finish-by", metavar="HH:MM", help="Stop (4) so as to be gone by this time.")
@click.option("--priority-column", help="Send the rows first that are highest in this column.")
@click.option("--reuse", is_flag=True, help="Send only what the night before has not scored.")
@click.option("--min-rows", type=int, default=0, help="Refuse (65) an input with fewer rows.")
@click.option("--allow-empty", is_flag=True, help="Take an input without rows as it is.")
def nightly_reindex(
    rows: Path,
    scores: Path,
    config: Path | None,
    provider: str | None,
    day: str,
    max_cost: float | None,
    finish_by: str | None,
    priority_column: str | None,
    reuse: bool,
    min_rows: int,
    allow_empty: bool,
) -> None:
    """Score ROWS/DATE into SCORES/DATE."""
    try:
        date.fromisoformat(day)
    except ValueError:
        raise click.BadParameter(
            f"{day} is no date; write YYYY-MM-DD.", param_hint="--date"
        ) from None
    try:
        until = None if finish_by is None else deadline(finish_by)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--finish-by") from None
    try:
        settings = load_for_job(config, provider)
        night = earlier_night(scores, day) if reuse else None
        request = Request(
            inputs=[str(rows / day)],
            out=scores / day,
            max_cost_usd=max_cost,
            finish_by=until,
            priority_column=priority_column,
            reuse=[night] if night else (),
            min_rows=min_rows,
            allow_empty=allow_empty,
        )
        receipt = run(settings, request, lambda progress: None)
    except BatchrankError as error:
        click.echo(f"nightly_reindex {day}: {error}", err=True)
        raise SystemExit(error.code) from error
    if receipt.exit_code:
        click.echo(f"nightly_reindex {day}: {receipt.message}", err=True)
    raise SystemExit(receipt.exit_code)


def earlier_night(scores: Path, day: str) -> Path | None:
    """Return the latest whole night before this one; None for the first. A night that is begun goes
    on with the one that was chosen then, whose name is in SCORES/.DATE.reuse.
    """
    chosen = scores / f".{day}.reuse"
    if not (chosen.exists() and (scores / day).exists()):
        scores.mkdir(parents=True, exist_ok=True)
        chosen.write_text(latest_whole_night(scores, day))
    name = chosen.read_text()
    return scores / name if name else None


def latest_whole_night(scores: Path, day: str) -> str:
    """Return the latest finished night before a day that has at least half the rows of the whole
    night before it. An export that failed makes an empty or small night: to reuse that one would
    pay for everything again.
    """
    finished = sorted(night.parent.name for night in scores.glob("????-??-??/_SUCCESS"))
    latest, most = "", 0
    for name in [night for night in finished if night < day][-NIGHTS:]:
        rows = rows_of(scores / name)
        if rows and 2 * rows >= most:
            latest, most = name, rows
    return latest


def rows_of(night: Path) -> int:
    """Return how many rows a night has; none if it cannot be read."""
    try:
        return opened(night).rows
    except OutputUnusable:
        return 0


if __name__ == "__main__":
    nightly_reindex()
