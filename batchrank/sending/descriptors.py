"""Open files: each request in flight has a connection, and each connection a descriptor."""

import logging
import resource
from contextlib import suppress

from batchrank.errors import ConfigInvalid

_MOST_OTHERS = 128
"""Descriptors for files, locks, pipes and connections that are being opened: a run has 30."""

_log = logging.getLogger(__name__)


def fit_in_flight(wanted: int) -> int:
    """Return how many requests may be in flight, after the soft limit was raised for them as far as
    the hard one allows. Raises `ConfigInvalid` if not one may be.
    """
    limit = _raise_limit(wanted + _MOST_OTHERS)
    others = min(_MOST_OTHERS, limit // 2)
    fitting = limit - others
    if fitting >= wanted:
        return wanted
    message = f"rate.max_in_flight is {wanted:,}, and this process may open {limit:,} files"
    if fitting < _MOST_OTHERS // 4:
        raise ConfigInvalid(f"{message}; raise that limit (ulimit -n).")
    _log.warning(
        "%s: %s requests are in flight at the most; ulimit -n raises the limit",
        message,
        f"{fitting:,}",
    )
    return fitting


def _raise_limit(needed: int) -> int:
    """Raise the soft limit on open files to what is needed, if it can be; return what it is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return needed
    raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
