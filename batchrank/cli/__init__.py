"""The command line. `main` is the entry point of the `batchrank` command."""

from batchrank.cli.main import main

__all__ = ["main"]
