"""Pictures of the results, drawn by matplotlib in an environment of its own."""

import subprocess

from bench.kept import PEERS, Unavailable, python_of
from bench.results import Results


def draw(results: Results, name: str) -> None:
    """Draw `name`.svg from the runs; a machine without matplotlib does without."""
    try:
        python = python_of("picture")
    except Unavailable as error:
        print(f"no picture: {error}")
        return
    subprocess.run([python, PEERS / "picture.py", name, results.folder], check=True)
