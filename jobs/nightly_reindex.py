"""One night's reindexing: the rows of a date in, the scores of that date out. For cron:

    15 1 * * *  cd /srv/search && .venv/bin/python jobs/nightly_reindex.py rows scores -c prod.toml

Reads ROWS/YYYY-MM-DD/*.parquet and writes SCORES/YYYY-MM-DD/. Silent when all is well, so cron
mails only failures. Safe to start twice: the second ends at once with 75 while the first is at
work, and sends nothing when it is done. A night that was cut short is finished by the next start
with the same date. Readers wait for SCORES/YYYY-MM-DD/_SUCCESS. With --reuse only the pairs are
sent that the latest finished night before has not scored.
"""

from datetime import date
from pathlib import Path

import click

from batchrank.config import load_for_job
from batchrank.deadline import deadline
from batchrank.errors import BatchrankError
from batchrank.job import Request, run


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
        request = Request(
            inputs=[str(rows / day)],
            out=scores / day,
            max_cost_usd=max_cost,
            finish_by=until,
            priority_column=priority_column,
            reuse=earlier_night(scores, day) if reuse else None,
        )
        receipt = run(settings, request, lambda progress: None)
    except BatchrankError as error:
        click.echo(f"nightly_reindex {day}: {error}", err=True)
        raise SystemExit(error.code) from error
    if receipt.exit_code:
        click.echo(f"nightly_reindex {day}: {receipt.message}", err=True)
    raise SystemExit(receipt.exit_code)


def earlier_night(scores: Path, day: str) -> Path | None:
    """The latest finished night before this one; None for the first. A night that is begun goes on
    with the one that was chosen then, whose name is in SCORES/.DATE.reuse.
    """
    chosen = scores / f".{day}.reuse"
    if not (chosen.exists() and (scores / day).exists()):
        finished = (night.parent.name for night in scores.glob("????-??-??/_SUCCESS"))
        scores.mkdir(parents=True, exist_ok=True)
        chosen.write_text(max((night for night in finished if night < day), default=""))
    name = chosen.read_text()
    return scores / name if name else None


if __name__ == "__main__":
    nightly_reindex()
