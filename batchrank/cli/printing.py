"""The end of a run, told to whoever asked: on standard output, on a terminal, in the log."""

import json
import logging
import sys

import click
import msgspec

from batchrank.cli.logs import log
from batchrank.errors import StorageFailed
from batchrank.output.receipt import Receipt, summary


def show_receipt(receipt: Receipt, out: str, asked: str | None) -> None:
    """Print a run's figures as "text" or as "json" (one line, last on standard output).

    If nobody asked, print words where a terminal sees them. The log has them at info.
    """
    shown = msgspec.to_builtins(receipt)
    del shown["parts"], shown["input"]
    words = summary(receipt, out)
    on_terminal = asked is None and sys.stderr.isatty()
    if on_terminal:
        click.echo(words, err=True)
    elif log.isEnabledFor(logging.INFO):
        lines = (" ".join(line.split()) for line in words.splitlines())
        log.info("%s: %s", receipt.status, "; ".join(lines), extra={"figures": {"summary": shown}})
    try:
        if asked is not None:
            click.echo(words if asked == "text" else json.dumps(shown, ensure_ascii=False))
    except StorageFailed as error:
        if not receipt.exit_code:  # else how the run ended is the code
            raise
        log.error(str(error))
