"""The command `batchrank serve`: options into the local server's settings."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchrank.cli.number_options import Amount

if TYPE_CHECKING:
    from batchrank.server.scorers.embedded import Scorer


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="Where to listen; 0: any free port.",
)
@click.option("--api-key-env", metavar="NAME", help="Ask for the key in this variable.")
@click.option(
    "--scorer",
    type=click.Choice(["embedded", "lexical", "hash"]),
    default="embedded",
    show_default=True,
    help="lexical: by words alone, 20 times faster; hash: scores without meaning, for load tests.",
)
@click.option("--neural", metavar="MODEL", help="A cross-encoder, by name or path, as the scorer.")
@click.option(
    "--requests-per-minute",
    type=Amount(),
    default=0,
    metavar="N",
    help="Answer 429 beyond so many (0: none).",
)
@click.option(
    "--tokens-per-minute",
    type=Amount(),
    default=0,
    metavar="N",
    help="Answer 429 beyond so many (0: none).",
)
@click.option(
    "--window",
    "windows",
    multiple=True,
    type=click.Choice(["fixed_minute", "sliding_minute", "per_second"]),
    help="How these two are held to. Repeatable.  [default: fixed_minute]",
)
@click.option(
    "--growth-base",
    type=Amount(),
    default=0,
    metavar="N",
    help="Answer 429 to a sudden rise beyond so many a second (0: none).",
)
@click.option("--nested-errors", is_flag=True, help="Errors in OpenAI's envelope.")
@click.option("--faults", type=click.Path(path_type=Path), help="A fault script, for tests.")
@click.option("--until-stdin-closes", is_flag=True, hidden=True)
def serve(
    port: int,
    api_key_env: str | None,
    scorer: str,
    neural: str | None,
    faults: Path | None,
    until_stdin_closes: bool,
    nested_errors: bool,
    **quota: Any,
) -> None:
    """Answer the rerank API on loopback, as Model Studio does, until stopped.

    Prints the base URL once it answers. GET /health says ok, GET /ledger what would be billed.

    \b
    Example:
      batchrank serve --port 8765 --requests-per-minute 5400 --window per_second
    """
    from batchrank.config.settings import key_in
    from batchrank.server.app import run
    from batchrank.server.faults.script import read_script
    from batchrank.server.quotas import QuotaSettings
    from batchrank.server.settings import ServerSettings

    limited = quota["requests_per_minute"] or quota["tokens_per_minute"] or quota["growth_base"]
    quota["windows"] = quota["windows"] or ("fixed_minute",)
    settings = ServerSettings(
        api_key=key_in(api_key_env) if api_key_env else None,
        nested_errors=nested_errors,
        quota=QuotaSettings(**quota) if limited else None,
        faults=read_script(faults) if faults else None,
    )
    run(
        settings,
        lambda: _scorer(scorer, neural),
        port,
        lambda base_url: click.echo(base_url),
        until_stdin_closes=until_stdin_closes,
    )


def _scorer(name: str, neural: str | None) -> "Scorer":
    if neural:
        from batchrank.server.scorers.neural import NeuralScorer

        return NeuralScorer(neural)
    if name == "hash":
        from batchrank.server.scorers.hash import HashScorer

        return HashScorer()
    if name == "lexical":
        from batchrank.server.scorers.lexical import LexicalScorer

        return LexicalScorer()
    from batchrank.server.scorers.embedded import EmbeddedScorer

    return EmbeddedScorer()
