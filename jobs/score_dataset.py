"""Rerank a dataset and judge the result: one input folder in, scores and nDCG@10 out.

    python jobs/score_dataset.py DATASET OUT -c CONFIG          # or --provider NAME

DATASET holds `rows.parquet` (query_id, query, candidates) and `qrels.parquet` (query_id, doc_id,
relevance). Run again to resume; a finished OUT is judged only.
"""

from pathlib import Path

import click

from batchrank.analysis.evaluation import evaluate
from batchrank.analysis.evaluation import words as evaluation_words
from batchrank.cli.progress_bar import bar
from batchrank.config.settings import load_for_job
from batchrank.errors import BatchrankError
from batchrank.output.receipt import summary
from batchrank.session.job import Request, run


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("-c", "--config", type=click.Path(path_type=Path), help="A TOML file; see configs/.")
@click.option("--provider", help="Whom to ask, where no configuration says so.")
def score_dataset(dataset: Path, out: Path, config: Path | None, provider: str | None) -> None:
    """Rerank DATASET/rows.parquet into OUT and judge it by DATASET/qrels.parquet."""
    try:
        settings = load_for_job(config, provider)
        request = Request(inputs=[str(dataset / "rows.parquet")], out=out)
        with bar() as watch:
            receipt = run(settings, request, watch)
        click.echo(summary(receipt, str(out)))
        if receipt.exit_code == 0:
            click.echo()
            click.echo(evaluation_words(evaluate(out, dataset / "qrels.parquet")))
    except BatchrankError as error:
        click.echo(f"score_dataset: {error}", err=True)
        raise SystemExit(error.code) from error
    raise SystemExit(receipt.exit_code)


if __name__ == "__main__":
    score_dataset()
