"""The command line: options into configuration, a foreseen failure into one line and its code.

Nothing slow is imported before a command needs it: `--help` answers at once.
"""

import errno
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchrank.cli.coordinate import coordinate
from batchrank.cli.logs import log, log_to_stderr
from batchrank.cli.number_options import Amount, count
from batchrank.cli.options import (
    SHARD,
    STATE_DIR,
    ask_before_losses,
    check_reuse,
    configured,
    load_options,
    reusing,
)
from batchrank.cli.serve import serve
from batchrank.cli.standard_output import discard, guard_streams
from batchrank.errors import BatchrankError, ExitCode, StorageFailed, escape
from batchrank.files.no_memory import check_address_space, lack_of_memory
from batchrank.session import leaving
from batchrank.session.process import rarely_collected, spare_memory, spare_threads
from batchrank.version import __version__

if TYPE_CHECKING:
    from batchrank.session.deadline import Deadline
    from batchrank.state.shards import Shard


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, package_name="batchrank")
def cli() -> None:
    """Score millions of (query, candidates) rows through a rerank API: within its limits,
    resumable at any moment, with the bill known beforehand.

    \b
    batchrank plan rows.parquet                 what it would send, cost and take
    batchrank run rows.parquet -o scores        score; again to resume
    batchrank evaluate scores --qrels q.parquet
    """
    check_address_space()


@cli.command()
@configured
@click.option(
    "-o",
    "--output",
    "out",
    required=True,
    help="The output folder, on this machine or at s3://, gs:// or abfs://.",
)
@STATE_DIR
@reusing
@click.option(
    "--max-cost",
    type=Amount(),
    metavar="USD",
    help="Stop (4) before the bill could pass this.",
)
@click.option(
    "--finish-by",
    metavar="HH:MM",
    help="Stop (4) so as to be gone by this time, or by a date and time (ISO).",
)
@click.option(
    "--priority-column",
    metavar="COLUMN",
    help="Send the rows first that are highest in this column of numbers or times.",
)
@click.option(
    "--max-failed-rows",
    type=count(),
    default=0,
    metavar="N",
    help="End with 3 when more rows fail.  [default: 0]",
)
@click.option(
    "--max-partial-rows",
    type=count(),
    metavar="N",
    help="End with 3 when more rows lack some of their scores.  [default: no bound]",
)
@click.option(
    "--retry-failed", is_flag=True, help="Ask again for rows that failed, and for no others."
)
@click.option(
    "--restart",
    is_flag=True,
    help="Throw away what OUT holds of an earlier run, or of this shard; asks before.",
)
@click.option("--yes", is_flag=True, help="With --restart: ask nothing.")
@SHARD
@click.option(
    "--coordinator",
    metavar="URL",
    help="Share the account's limit with others: see `batchrank coordinate`.",
)
@click.option(
    "--metrics-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep figures here in Prometheus' text format, whole at any moment.",
)
def run(
    out: str,
    state_dir: Path | None,
    reuse: tuple[str, ...],
    reuse_rows_only: bool,
    min_rows: int,
    allow_empty: bool,
    metrics_file: Path | None,
    max_cost: float | None,
    finish_by: str | None,
    priority_column: str | None,
    max_failed_rows: int,
    max_partial_rows: int | None,
    restart: bool,
    yes: bool,
    retry_failed: bool,
    shard: "Shard | None",
    coordinator: str | None,
    summary: str | None,
    limit: int | None,
    queries: str | None,
    corpus: str | None,
    inputs: tuple[str, ...],
    **options: Any,
) -> None:
    """Score INPUT (Parquet files, folders or globs) into the folder OUT; run it again to resume.

    \b
    Example:
      batchrank run rows/*.parquet -o scores --provider dashscope --max-cost 20
    A finished OUT is left alone: nothing is sent, the exit code is 0. Several workers fill one OUT
    with --shard 0/8 to 7/8: the rates and --max-cost are the account's, and each takes its share.
    """
    from batchrank.analysis.prometheus import measured
    from batchrank.cli.printing import show_receipt
    from batchrank.cli.progress_bar import bar
    from batchrank.files.paths import place
    from batchrank.output.receipt import Progress

    check_reuse(reuse, reuse_rows_only)
    until = None if finish_by is None else _deadline(finish_by)
    with measured(metrics_file, out, shard) as metrics:
        config = load_options(options)
        from batchrank.config.settings import coordinator_url
        from batchrank.session.job import Request
        from batchrank.session.job import run as run_job

        spare_memory()
        request = Request(
            inputs=inputs,
            queries=queries,
            corpus=corpus,
            out=place(out),
            state_dir=state_dir,
            reuse=[place(one) for one in reuse],
            reuse_rows_only=reuse_rows_only,
            restart=restart,
            agree=ask_before_losses(out, yes=yes),
            retry_failed=retry_failed,
            limit_rows=limit or 0,
            min_rows=min_rows,
            allow_empty=allow_empty,
            max_cost_usd=max_cost,
            max_failed_rows=max_failed_rows,
            max_partial_rows=max_partial_rows,
            shard=shard,
            finish_by=until,
            priority_column=priority_column,
            coordinator=coordinator or coordinator_url(),
        )
        with bar(at_once=not restart) as draw:

            def watch(progress: Progress) -> None:
                draw(progress)
                metrics.progress(progress)

            receipt = run_job(config, request, watch)
        metrics.receipt(receipt)
    show_receipt(receipt, out, summary)
    if receipt.exit_code:
        _end(receipt.message or "", receipt.exit_code)


@cli.command()
@configured
@reusing
@click.option(
    "--sample",
    type=count(1),
    metavar="ROWS",
    help="Read only so many rows, and give the error.",
)
def plan(
    reuse: tuple[str, ...],
    reuse_rows_only: bool,
    min_rows: int,
    allow_empty: bool,
    summary: str | None,
    sample: int | None,
    limit: int | None,
    queries: str | None,
    corpus: str | None,
    inputs: tuple[str, ...],
    **options: Any,
) -> None:
    """Say what a run would send, cost and take. Sends nothing and writes nothing.

    \b
    Example:
      batchrank plan rows/*.parquet --provider dashscope --sample 2000
    """
    check_reuse(reuse, reuse_rows_only)
    config = load_options(options)
    from batchrank.files.paths import place
    from batchrank.input import Inputs
    from batchrank.session.forecast import forecast, words

    spare_memory()
    figures = forecast(
        config,
        Inputs(inputs, queries, corpus),
        limit_rows=limit or 0,
        min_rows=min_rows,
        allow_empty=allow_empty,
        sample=sample or 0,
        reuse=[place(one) for one in reuse],
        reuse_rows_only=reuse_rows_only,
    )
    _show(figures, words, as_json=summary == "json")


@cli.command()
@click.argument("out")
@click.option(
    "--max-failed-rows",
    type=count(),
    default=0,
    metavar="N",
    help="End with 3 when more rows failed.  [default: 0]",
)
@click.option(
    "--max-partial-rows",
    type=count(),
    metavar="N",
    help="End with 3 when more rows lack some of their scores.  [default: no bound]",
)
@click.option("--json", "as_json", is_flag=True, help="The receipt as one line of JSON.")
def finish(out: str, max_failed_rows: int, max_partial_rows: int | None, as_json: bool) -> None:
    """Close an OUT that was filled with --shard: check that all of it is there, sum the receipts.

    The last worker does the same by itself. 75 with what is missing while a shard is not finished.

    \b
    Example:
      batchrank finish scores
    """
    from batchrank.cli.printing import show_receipt
    from batchrank.files.paths import place
    from batchrank.session.finish_shards import Allowed, finish

    receipt = finish(place(out), Allowed(max_failed_rows, max_partial_rows))
    show_receipt(receipt, out, "json" if as_json else None)
    if receipt.exit_code:
        _end(receipt.message or "", receipt.exit_code)


@cli.command()
@click.argument("out")
@STATE_DIR
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def status(out: str, state_dir: Path | None, as_json: bool) -> None:
    """Say how far a run is: running, stopped or finished, and its figures.

    \b
    Example:
      batchrank status scores
    """
    from batchrank.analysis.status import status, status_words
    from batchrank.files.paths import place

    _show(status(place(out), state_dir), status_words, as_json=as_json)


@cli.command()
@click.argument("out")
def verify(out: str) -> None:
    """Check that every input row is in OUT once, and every part what was published.

    Exit code 0, or 65 with what is wrong.

    \b
    Example:
      batchrank verify scores
    """
    from batchrank.analysis.status import describe_whole, verify
    from batchrank.files.paths import place

    folder = place(out)
    _say(f"{folder}: {describe_whole(verify(folder))}.")


@cli.command()
@click.argument("out")
@STATE_DIR
@click.option(
    "--qrels",
    type=click.Path(path_type=Path),
    help="Judgments: Parquet with query_id, doc_id, relevance, or lines of TREC or BEIR.",
)
@click.option(
    "--against",
    metavar="OUT2",
    help="Another output to set beside, by a paired test.",
)
@click.option(
    "--k",
    "ks",
    type=count(1),
    multiple=True,
    help="Cut the measures here. Repeatable.  [default: 10; recall 10 and 100]",
)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def evaluate(
    out: str,
    state_dir: Path | None,
    qrels: Path | None,
    against: str | None,
    ks: tuple[int, ...],
    as_json: bool,
) -> None:
    """Judge the scores by qrels: nDCG, MRR and recall, beside the input order.

    Without --qrels, say how far the ranks moved and how many ties there are.

    \b
    Example:
      batchrank evaluate scores --qrels qrels.parquet --against scores-of-another-model
    """
    from batchrank.analysis import evaluation
    from batchrank.analysis import rank_changes as movement
    from batchrank.files.paths import place

    log_to_stderr("text", "warning")
    if qrels is None:
        if against is not None or ks:
            raise click.UsageError("--against and --k need --qrels.")
        _show(evaluation.moved(place(out), state_dir), movement.words, as_json=as_json)
        return
    other = None if against is None else place(against)
    judged = evaluation.evaluate(place(out), qrels, against=other, ks=ks, state_dir=state_dir)
    _show(judged, evaluation.words, as_json=as_json)


@cli.command()
@click.argument("out")
@STATE_DIR
@click.option(
    "-o", "--output", "file", type=click.Path(path_type=Path), help="[default: OUT/_report.html]"
)
def report(out: str, state_dir: Path | None, file: Path | None) -> None:
    """Write a run's rate, latency, scores, failures and cost into one HTML file, and say where.

    \b
    Example:
      batchrank report scores -o report.html
    """
    from batchrank.analysis.report_page import write_page
    from batchrank.files.paths import place

    log_to_stderr("text", "warning")
    written = write_page(place(out), file, state_dir)
    if written is not None:
        _say(str(written))


@cli.command()
@click.argument("out")
@STATE_DIR
@click.option(
    "--format",
    "form",
    required=True,
    type=click.Choice(["trec", "pairs", "jsonl"]),
    help="trec: a run of six columns; pairs: a line per candidate; jsonl: a line per row.",
)
@click.option(
    "-o",
    "--output",
    "file",
    type=click.Path(path_type=Path),
    help="Where to, whole or not at all; pairs as Parquet if it ends so.  [default: stdout]",
)
def export(out: str, state_dir: Path | None, form: str, file: Path | None) -> None:
    """Write the scores in a form that other tools read: TREC, pairs (TSV or Parquet), JSON lines.

    Of a run that is not finished also the rows answered so far, with "published" false.

    \b
    Example:
      batchrank export scores --format trec -o scores.run
    """
    from batchrank.analysis.export import export
    from batchrank.files.paths import place

    log_to_stderr("text", "warning")
    try:
        export(place(out), form, sys.stdout.buffer, file=file, state_dir=state_dir)
    except (BrokenPipeError, StorageFailed) as error:
        if file is None:
            discard(1)
        if isinstance(error, StorageFailed):
            raise  # a closed pipe is no error: whoever reads has seen enough


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def providers(as_json: bool) -> None:
    """List the endpoints that are known: dialect, limits, price, key, and each figure's source.

    \b
    Example:
      batchrank providers --json
    """
    from batchrank.cli.providers import listed, words

    _show(listed(), words, as_json=as_json)


cli.add_command(serve)
cli.add_command(coordinate)


def _deadline(text: str) -> "Deadline":
    from batchrank.session.deadline import deadline

    try:
        return deadline(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--finish-by") from None


def _show(figures: Any, words: Callable[[Any], str], *, as_json: bool) -> None:
    import msgspec

    if as_json:
        click.echo(msgspec.json.encode(figures).decode())
    else:
        _say(words(figures))


def _say(text: str, *, err: bool = False) -> None:
    """Lines for a person: what a path or a name in them holds is shown, and never obeyed."""
    click.echo(escape(text, keep="\n\t"), err=err)


def _end(message: str, code: int) -> None:
    _deaf()
    _say_error(message)
    leaving.decide(code)
    sys.exit(code)


def _say_error(message: str) -> None:
    if not log.handlers:
        log_to_stderr("text", "warning")
    log.error(message)


def _terminated(number: int, frame: object) -> None:
    """A signal before or after the run has its own handlers: there is nothing to drain.

    What is raised in a moment when C calls Python back is lost: hence the decision.
    """
    _deaf()
    leaving.decide(ExitCode.TERMINATED)
    sys.exit(ExitCode.TERMINATED)


def _deaf() -> None:
    """The code is decided, and Python makes signals deadly while it ends, unless ignored."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _fail(error: BatchrankError) -> None:
    _end(str(error), error.code)


def main() -> None:
    """The command `batchrank`."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if not leaving.is_ignored(number):
            signal.signal(number, _terminated)
    guard_streams()
    leaving.start(_say_error)
    spare_threads()
    try:
        with rarely_collected():
            cli.main(prog_name="batchrank", standalone_mode=False)
    except BatchrankError as error:
        _fail(lack_of_memory(error) or error)
    except click.UsageError as error:
        click.UsageError(escape(error.format_message()), error.ctx).show()
        sys.exit(ExitCode.USAGE)
    except (click.Abort, KeyboardInterrupt):
        leaving.decide(ExitCode.INTERRUPTED)
        sys.exit(ExitCode.INTERRUPTED)
    except OSError as error:  # what the system refuses is no bug of ours, if it says of what
        if (lack := lack_of_memory(error)) is not None:
            _fail(lack)
        if error.filename is None:
            raise
        unusable = error.errno in (errno.ENAMETOOLONG, errno.EACCES, errno.ELOOP, errno.ENOTDIR)
        code = ExitCode.OUTPUT_UNUSABLE if unusable else ExitCode.IO_FAILED
        _end(f"{str(error.filename)[:300]}: {error.strerror}.", code)
    except SystemExit:
        raise
    except BaseException as error:  # a panic of polars is no Exception
        lack = lack_of_memory(error)
        if lack is None:
            raise
        _fail(lack)
