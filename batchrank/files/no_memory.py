"""Whether a failure is a lack of memory, whoever ran out of it: the only list of their names.

Python, Arrow and numpy raise `MemoryError`; a thread without room for its stack cannot start; a
library does not fit when it is loaded; polars panics, and its panics are no `Exception`.
"""

import errno
import re
from contextlib import suppress

from batchrank.errors import OutOfMemory

LEAST_BYTES = 1 << 30
"""The address space that every command starts in on two cores; with 500 and 600 MB a library ends
the process itself (SIGABRT) when a thread of its own finds no stack, and 800 MB were enough.
"""

_WORDS = re.compile(
    r"can't start new thread|[Cc]annot allocate memory|failed to map segment|bad_alloc"
    r"|[Oo]ut of memory|[Mm]emory allocation|[Cc]annot allocate|failed to spawn thread"
    r"|ThreadPoolBuildError|could not create thread"
)
_WANTED = re.compile(r"(?:[Uu]nable to allocate|size|of) ([\d.]+ ?(?:bytes|[KMGT]i?B)?)")
_KINDS = (RuntimeError, ImportError, OSError, SystemError)


def lack_of_memory(error: BaseException) -> OutOfMemory | None:
    """Return what to say of an error that comes of a lack of memory, whatever it is wrapped in;
    None for every other.
    """
    found = _cause(error, set())
    if found is None or isinstance(found, OutOfMemory):
        return found
    return OutOfMemory(f"no memory is left{_wanted(found)}{_advice()}")


def _cause(error: BaseException | None, seen: set[int]) -> BaseException | None:
    if error is None or id(error) in seen:
        return None
    seen.add(id(error))
    if _is_lack(error):
        return error
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    context = None if error.__suppress_context__ else error.__context__
    for one in (*inner, error.__cause__, context):
        found = _cause(one, seen)
        if found is not None:
            return found
    return None


def _is_lack(error: BaseException) -> bool:
    if isinstance(error, MemoryError | OutOfMemory):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if not isinstance(error, _KINDS) and type(error).__name__ != "PanicException":
        return False
    return _WORDS.search(str(error)) is not None


def _wanted(error: BaseException) -> str:
    """How much was asked for, where the error says so."""
    found = _WANTED.search(str(error))
    return f": {found[1].strip()} more were wanted" if found else ""


def _advice() -> str:
    limit = address_space()
    if limit is None:
        return "; the same command goes on where there is more of it, or with less at once."
    return (
        f". The process may use {limit >> 20:,} MB of address space (ulimit -v), and "
        f"{LEAST_BYTES >> 20:,} MB are wanted at least; more for large rows."
    )


def address_space() -> int | None:
    """Return this process's limit of address space in bytes; None without one."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        return None if soft == resource.RLIM_INFINITY else soft
    return None


def check_address_space() -> None:
    """Raise `OutOfMemory` where libraries would end the process instead of raising anything."""
    limit = address_space()
    if limit is not None and limit < LEAST_BYTES:
        raise OutOfMemory(f"no memory to begin with{_advice()}")
