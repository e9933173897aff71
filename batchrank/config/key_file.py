"""A key that lies in a file."""

import logging
import os

from batchrank.errors import ConfigInvalid

_OTHERS = 0o007
"""The bits of a file's mode that are for everybody."""

_log = logging.getLogger(__name__)


def read_key_file(path: str) -> str:
    """Return the key in a file, and warn where everybody on the machine could do so too. Raises
    `ConfigInvalid`.
    """
    try:
        with open(path, encoding="utf-8") as file:
            mode, key = os.fstat(file.fileno()).st_mode & 0o777, file.read().strip()
    except (OSError, ValueError):
        raise ConfigInvalid(f"endpoint.api_key_file: {path} cannot be read.") from None
    if not key:
        raise ConfigInvalid(f"endpoint.api_key_file: {path} is empty.")
    if mode & _OTHERS:
        _log.warning(
            "endpoint.api_key_file: %s is open to everybody on this machine (mode %03o); "
            "chmod o-rwx closes it",
            path,
            mode,
        )
    return key
