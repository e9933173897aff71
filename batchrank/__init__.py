"""Score millions of (query, candidates) rows through a rerank API, resumably, within its limits.

`rerank`, `run` and `finish` are in `frames`; nothing slow is imported before one is asked for.
"""

from typing import TYPE_CHECKING, Any

from batchrank.version import __version__

if TYPE_CHECKING:
    from batchrank.python_api import finish as finish
    from batchrank.python_api import rerank as rerank
    from batchrank.python_api import run as run

__all__ = ["__version__", "finish", "rerank", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'batchrank' has no attribute {name!r}")
    from batchrank import python_api as frames

    return getattr(frames, name)
