"""The files of published parts: whether each is there, and is the one that was published.

A part can be deleted, moved or replaced by others at any time. What is counted as done is therefore
looked for by name and size before an output is called finished, and whenever a finished one is met.
"""

import logging
from collections.abc import Iterable, Sequence

from batchrank.errors import OutputUnusable
from batchrank.files.paths import Place, sizes
from batchrank.output.parts import PartRecord

PATTERN = "part-*.parquet"
_SHOWN = 3
_log = logging.getLogger(__name__)


def missing_parts(out: Place, records: Iterable[PartRecord]) -> list[str]:
    """The names of published parts that are gone.

    Raises `OutputUnusable` for a part that is there with another size than it was published with.
    """
    there = sizes(out, PATTERN)
    gone = []
    for part in records:
        size = there.get(part.name)
        if size is None:
            gone.append(part.name)
        elif part.size and size != part.size:
            raise OutputUnusable(
                f"{out}: {part.name} is not the file that was published ({part.size:,} bytes, now "
                f"{size:,}). Put it back, or delete it to have its rows scored again."
            )
    return gone


def is_whole(out: Place, records: Iterable[PartRecord]) -> bool:
    """Whether all parts of a finished output are still there; says which are not.

    Raises `OutputUnusable` as `missing_parts` does.
    """
    gone = missing_parts(out, records)
    if gone:
        _log.warning("%s: was finished, but %s went away", out, shortened(gone))
    return not gone


def shortened(names: Sequence[str]) -> str:
    """Some names, for a message."""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
