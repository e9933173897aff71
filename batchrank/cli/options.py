"""The options that `run` and `plan` share: those of the configuration, and what to read."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchrank.cli.logs import log_to_stderr
from batchrank.cli.number_options import Amount, count

if TYPE_CHECKING:
    from batchrank.config.settings import JobConfig
    from batchrank.state.losses import Agree
    from batchrank.state.shards import Shard

Options = dict[str, Any]

_CONFIG_OPTIONS = [
    ("endpoint", "provider", click.STRING, "Whom to ask: see `batchrank providers`."),
    ("endpoint", "model", click.STRING, "The model's name."),
    ("endpoint", "base_url", click.STRING, "Where the endpoint is, instead of the provider's URL."),
    ("endpoint", "instruct", click.STRING, "What the model is told to look for."),
    ("output", "top_n", count(), "Keep only the best so many candidates (0: all)."),
    ("rate", "requests_per_minute", Amount(), "The account's limit (0: none)."),
    ("rate", "tokens_per_minute", Amount(), "The account's limit (0: none)."),
    ("rate", "max_in_flight", count(1), "Requests on their way at once."),
    ("input", "query_column", click.STRING, "The column of query texts."),
    ("input", "candidates_column", click.STRING, "The column of candidate lists."),
    ("input", "id_column", click.STRING, "The column of query ids."),
    ("input", "doc_id_column", click.STRING, "The column of document ids, of pairs and runs."),
    ("input", "text_column", click.STRING, "The column of texts, of pairs and a corpus."),
]


def configured(command: Callable[..., None]) -> Callable[..., None]:
    """The options that `run` and `plan` share: those of the configuration, and what to read."""
    for section, name, kind, text in reversed(_CONFIG_OPTIONS):
        option = "--" + name.replace("_", "-")
        command = click.option(
            option, f"{section}__{name}", type=kind, help=text, metavar=_metavar(kind)
        )(command)
    for decorate in (
        click.option("--queries", metavar="FILE", help="Query texts, beside a run of ids."),
        click.option("--corpus", metavar="FILE", help="Document texts, beside a run of ids."),
        click.option(
            "--unite-rows", is_flag=True, help="Rows of a part that share a query share requests."
        ),
        click.option("--keep", multiple=True, metavar="COLUMN", help="Keep a column. Repeatable."),
        click.option(
            "--limit",
            type=count(1),
            metavar="ROWS",
            help="Only the first; more of them later.",
        ),
        click.option(
            "--min-rows",
            type=count(),
            default=0,
            metavar="N",
            help="Refuse (65) an input with fewer rows.",
        ),
        click.option("--allow-empty", is_flag=True, help="Take an input without rows as it is."),
        click.option(
            "--allow-insecure-http", is_flag=True, help="Send over http:// to another machine."
        ),
        click.option(
            "--summary",
            type=click.Choice(["text", "json"]),
            help="The figures on standard output, as words or as one line of JSON.  "
            "[default: words, where a terminal sees them]",
        ),
        click.option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            default="text",
            show_default=True,
            help="What goes to standard error: plain lines, or an object a line.",
        ),
        click.option(
            "--log-level",
            type=click.Choice(["debug", "info", "warning"]),
            default="warning",
            show_default=True,
            help="What standard error is told: debug names every request that is sent again.",
        ),
        click.option(
            "-c", "--config", type=click.Path(path_type=Path), help="A TOML file; see README."
        ),
        click.argument("inputs", nargs=-1, required=True, metavar="INPUT..."),
    ):
        command = decorate(command)
    return command


STATE_DIR = click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the run's state is, if not in OUT: needed where OUT is a bucket.",
)


def _shard(ctx: click.Context, param: click.Parameter, text: str | None) -> "Shard | None":
    from batchrank.config.settings import scheduled
    from batchrank.errors import ConfigInvalid
    from batchrank.state.shards import VARIABLES, of_environment, parsed

    if text is None or text == "auto":
        return None if text is None else of_environment(scheduled(VARIABLES))
    try:
        return parsed(text)
    except ConfigInvalid as error:
        raise click.BadParameter(str(error)) from None


SHARD = click.option(
    "--shard",
    callback=_shard,
    envvar="BATCHRANK_SHARD",
    metavar="I/N",
    help="Be the I-th, from 0, of N workers on one OUT, or `auto`: as Kubernetes or Slurm says.",
)


_REUSE = (
    click.option(
        "--reuse",
        metavar="PREVIOUS_OUT",
        multiple=True,
        help="Take the scores of pairs that have not changed from an earlier output. Repeatable: "
        "the first that has a pair counts.",
    ),
    click.option(
        "--reuse-rows-only",
        is_flag=True,
        help="With --reuse: only of rows whose query and candidates are all the same.",
    ),
)


def reusing(command: Callable[..., None]) -> Callable[..., None]:
    """The options that name an earlier output."""
    for option in reversed(_REUSE):
        command = option(command)
    return command


def ask_before_losses(out: str, *, yes: bool) -> "Agree":
    """Return what asks on a terminal before a restart throws something away, unless `yes`."""
    from batchrank.errors import OutputUnusable
    from batchrank.state.losses import Losses, agree, refuse_losses

    def ask(losses: Losses) -> None:
        if losses.are_none:
            return
        if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
            refuse_losses(losses, out)
        question = f"{out}: --restart throws away {losses}. Throw them away?"
        if not click.confirm(question, err=True):
            raise OutputUnusable(f"{out}: kept; nothing was thrown away or sent.")

    return agree if yes else ask


def check_reuse(reuse: Sequence[str], rows_only: bool) -> None:
    """Raises `UsageError` where the one is given without the other."""
    if rows_only and not reuse:
        raise click.UsageError("--reuse-rows-only needs --reuse PREVIOUS_OUT.")


def _metavar(kind: object) -> str:
    return "TEXT" if kind is click.STRING else "N"


def load_options(options: Options) -> "JobConfig":
    """The configuration that a command's options ask for, which are taken out of `options`."""
    from batchrank.config.settings import load

    sections: dict[str, Options] = {}
    for section, name, _, _ in _CONFIG_OPTIONS:
        value = options.pop(f"{section}__{name}")
        if value is not None:
            sections.setdefault(section, {})[name] = value
    log_to_stderr(options.pop("log_format"), options.pop("log_level"))
    if options.pop("unite_rows"):
        sections.setdefault("endpoint", {})["unite_rows"] = True
    keep = options.pop("keep")
    if keep:
        sections.setdefault("input", {})["keep_columns"] = list(keep)
    return load(options.pop("config"), sections, insecure_http=options.pop("allow_insecure_http"))
