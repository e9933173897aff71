"""Standard output and standard error, which may be full, or have nobody who reads them any more.

Whoever stops reading has seen enough: the command goes on to its own exit code. A disk that is full
is an error (74), which comes after the work: nothing that was paid is lost by it. Where standard
error is full nobody can be told. A character that an encoding lacks is written as an escape; where
that is ASCII, UTF-8 is written, as click does, past this module otherwise.
"""

import os
import sys
from codecs import lookup
from io import TextIOWrapper

from batchrank.errors import StorageFailed


class _Stream(TextIOWrapper):
    """A stream that raises `StorageFailed` where it cannot be written, or nothing if `silent`."""

    silent = False

    def write(self, text: str) -> int:
        if text == "":  # click asks so what kind of stream this is, and takes no notice of errors
            return 0
        try:
            return super().write(text)
        except OSError as error:
            self._fail(error)
        return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        discard(self.fileno())
        if not (self.silent or isinstance(error, BrokenPipeError)):
            raise StorageFailed(f"standard output: cannot be written: {error.strerror}.") from error


def guard_streams() -> None:
    """Have both streams end as this module says. For the command's own process."""
    for name in ("stdout", "stderr"):
        found = getattr(sys, name)
        if found is None:  # closed by whoever started us
            found = open(os.devnull, "w")  # noqa: SIM115 - open until the end
        stream = _Stream(
            found.detach(),
            encoding="utf-8" if lookup(found.encoding).name == "ascii" else found.encoding,
            errors="backslashreplace",
            line_buffering=found.line_buffering,
            write_through=found.write_through,
        )
        stream.silent = name == "stderr"
        setattr(sys, name, stream)


def discard(descriptor: int) -> None:
    """Let what is left in a stream's buffer go nowhere. Python would try to write it at its end,
    and make the exit code 120.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
