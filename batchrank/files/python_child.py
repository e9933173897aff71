"""A Python of ours in a process of its own.

It imports what this process can, and nothing of the working folder: `-m` and `-c` put that folder
first on the path, where a file called random.py stands in for Python's own, and an empty entry of
PYTHONPATH does the same.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_START = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv[1]); module = sys.argv[2]; "
    "del sys.argv[1:3]; runpy.run_module(module, run_name='__main__', alter_sys=True)"
)
_PACKAGE = str(Path(__file__).parents[2])


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs this module of ours, whichever way the package is installed."""
    # Isolated (-I), Python looks at no variable and not at the working folder; the path is ours.
    options = ["-I", *(["-B"] if sys.dont_write_bytecode else [])]
    path = json.dumps([*_search_path(), _PACKAGE])
    return [sys.executable, *options, "-c", _START, path, module, *arguments]


def _search_path() -> Iterator[str]:
    """This process's own path without the working folder. Where the package itself lies there, it
    is found by the last entry, behind everything that could be mistaken for another module.
    """
    for entry in sys.path:
        is_here = not entry
        with suppress(OSError):
            is_here = is_here or os.path.samefile(entry, os.curdir)
        if not is_here:
            yield entry
