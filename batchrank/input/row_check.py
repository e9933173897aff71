"""How large the rows of a packed Parquet file become, measured in a process that may fail.

A dictionary, shared prefixes (DELTA_BYTE_ARRAY) or a compressor can pack one row of gigabytes into
a kilobyte, and no footer says so. Only decoding shows it, for every encoding alike; so a child
decodes the rows first, in bounded memory. What it cannot hold is refused, and if it dies, the run
does not. The time is that of decoding: linear, about 700 MB of text a second.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from weakref import finalize

import pyarrow as pa
import pyarrow.parquet as pq

from batchrank.errors import OutOfMemory, StorageFailed
from batchrank.files.no_memory import LEAST_BYTES, address_space
from batchrank.files.paths import Place, Remote
from batchrank.files.python_child import python_command

MOST_ROW_BYTES = 64 << 20
"""The largest row that is read: Arrow holds it several times over."""

_MEMORY = 540 << 20
"""What the child may use besides itself: a row of 64 MB takes 500 (measured)."""

_ROWS = 16
_TOO_LARGE, _UNREADABLE = -1, -2


class RowChecker:
    """A child that measures rows, from the first packed file on until this object is gone."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def most_row_bytes(self, place: Place, group: int, names: Sequence[str], rows: int) -> int:
        """Return the size of the largest of a row group's first rows, in these columns; 0 where the
        rows cannot be read, and more than `MOST_ROW_BYTES` where one is too large to be held.

        Raises `StorageFailed` where no process can be started, `OutOfMemory` where a limit on this
        process leaves the child no room.
        """
        child = self._running()
        assert child.stdin is not None and child.stdout is not None
        with suppress(BrokenPipeError):
            pickle.dump((_handle(place), group, list(names), rows), child.stdin)
            child.stdin.flush()
        answer = int(child.stdout.readline() or _TOO_LARGE)  # it died: of memory, or of the file
        if answer == _TOO_LARGE:
            limit = address_space()
            if limit is not None and limit < LEAST_BYTES + _MEMORY:
                raise OutOfMemory(
                    f"{place}: its packed rows cannot be measured within {limit >> 20:,} MB of "
                    f"address space (ulimit -v); {LEAST_BYTES + _MEMORY >> 20:,} MB are wanted."
                )
            return MOST_ROW_BYTES + 1
        return 0 if answer == _UNREADABLE else answer

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._child is None or self._child.poll() is not None:
            try:
                self._child = subprocess.Popen(
                    python_command("batchrank.input.row_check"),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # a terminal's Ctrl-C is the run's to hear
                )
            except OSError as error:
                raise StorageFailed(
                    f"no process to measure packed rows in can be started: {error.strerror}."
                ) from error
            finalize(self, _end, self._child)
        return self._child


def _end(child: "subprocess.Popen[bytes]") -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def _handle(place: Place) -> tuple[Any, str]:
    """A file as another process can open it."""
    return place.handle if isinstance(place, Remote) else (None, str(place.absolute()))


def main() -> None:
    """Answer each question on standard input with a line, until there are no more."""
    _limit_memory()
    with suppress(EOFError):
        while True:
            (files, path), group, names, rows = pickle.load(sys.stdin.buffer)
            try:
                found = _most(files, path, group, names, rows)
            except MemoryError:
                found = _TOO_LARGE
            except Exception:
                found = _UNREADABLE
            print(found, flush=True)


def _most(files: Any, path: str, group: int, names: list[str], rows: int) -> int:
    """The largest row, measured some rows at a time; alone where so many are too large together."""
    with suppress(MemoryError):
        return _most_of(files, path, group, names, rows, _ROWS)
    return _most_of(files, path, group, names, rows, 1)  # what the first try held is gone by now


def _most_of(files: Any, path: str, group: int, names: list[str], rows: int, some: int) -> int:
    most = 0
    file = pa.OSFile(os.fsencode(path)) if files is None else files.open_input_file(path)
    with file, pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as parquet:
        for batch in parquet.iter_batches(
            some, row_groups=[group], columns=names, use_threads=False
        ):
            if batch.nbytes > most:
                each = (batch.slice(row, 1).nbytes for row in range(batch.num_rows))
                most = max(most, *each)
            rows -= batch.num_rows
            if most > MOST_ROW_BYTES or rows <= 0:
                break
    return most


def _limit_memory() -> None:
    """Let allocations fail beyond `_MEMORY`, where the system can do that (Linux)."""
    pa.set_memory_pool(pa.system_memory_pool())
    with suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/status") as status:
            used = next(int(line.split()[1]) for line in status if line.startswith("VmData:"))
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, ((used << 10) + _MEMORY, hard))


if __name__ == "__main__":
    main()
