"""The command `batchrank coordinate`: options into a coordinator."""

from pathlib import Path

import click

from batchrank.account.cells import MOST_SEATS
from batchrank.cli.number_options import Amount


@click.command()
@click.option(
    "--workers",
    type=click.IntRange(1, MOST_SEATS),
    required=True,
    metavar="N",
    help="How many share the account; each can be sure of 1/N.",
)
@click.option("--requests-per-minute", type=Amount(), metavar="N", help="The account's limit.")
@click.option("--tokens-per-minute", type=Amount(), metavar="N", help="The account's limit.")
@click.option("--provider", metavar="TEXT", help="Whose limits, unless they are given.")
@click.option(
    "-c", "--config", type=click.Path(path_type=Path), help="A run's TOML file, for its limits."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8766,
    show_default=True,
    help="Where to listen; 0: any free port.",
)
@click.option(
    "--lease-seconds",
    type=Amount(0.5, 10),
    default=10,
    show_default=True,
    help="How long a share is a worker's without another word.",
)
def coordinate(
    workers: int,
    requests_per_minute: float | None,
    tokens_per_minute: float | None,
    provider: str | None,
    config: Path | None,
    host: str,
    port: int,
    lease_seconds: float,
) -> None:
    """Lease an account's limit to many workers, so that idle ones' shares are used.

    Prints its URL once it answers; give it to each worker as `run --coordinator URL`. GET /health
    says ok. It lets in the same user's workers on this machine, by a secret in a file, and whoever
    knows the secret in BATCHRANK_COORDINATOR_KEY, where that is set: beyond loopback it must be.

    \b
    Example:
      batchrank coordinate --workers 8 --requests-per-minute 5400
    """
    from batchrank.account.coordinator import Coordinator
    from batchrank.account.service import run
    from batchrank.config.settings import coordinator_key, load
    from batchrank.errors import ConfigInvalid

    given = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
    }
    rate = load(
        config,
        {
            "endpoint": {"provider": provider} if provider else {},
            "rate": {name: value for name, value in given.items() if value is not None},
        },
    ).rate
    if not rate.requests_per_minute and not rate.tokens_per_minute:
        raise ConfigInvalid("an account without a limit needs no coordinator.")

    def make(now: float) -> Coordinator:
        return Coordinator(
            workers,
            now,
            requests_per_minute=rate.requests_per_minute,
            tokens_per_minute=rate.tokens_per_minute,
            lease_seconds=lease_seconds,
        )

    run(make, coordinator_key(), host, port, lambda url: click.echo(url))
