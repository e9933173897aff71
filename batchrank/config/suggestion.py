"""The nearest name that exists, for a message about one that does not."""

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

_MOST_COMPARED = 1000
_MOST_LISTED = 30


def suggest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Say which known name is meant, or which ones there are where none is near."""
    return nearest(word, known, prefix) or f" Known: {listing(known, prefix)}."


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Say which known name is meant; nothing where none is near."""
    lowered = {name.casefold(): name for name in islice(known, _MOST_COMPARED)}
    near = get_close_matches(word.casefold(), lowered, n=1, cutoff=0.5)
    return f" Did you mean {prefix}{lowered[near[0]]}?" if near else ""


def listing(known: Iterable[str], prefix: str = "") -> str:
    """The known names, as far as a line holds them."""
    names = list(islice(known, _MOST_LISTED + 1))
    more = ", …" if len(names) > _MOST_LISTED else ""
    return ", ".join(prefix + name for name in names[:_MOST_LISTED]) + more
