"""Lines that wait on disk until those of their group have come.

The file has no name: the system takes it back when the process ends, however that ends, and nobody
else can open it. It is not part of a run's state and holds nothing that must survive. It lies in
TMPDIR, by default /var/tmp, which unlike /tmp is a disk everywhere.
"""

import mmap
import os
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
import pyarrow as pa

from batchrank.errors import StorageFailed

_BUCKET_BYTES = 16 << 20
_MOST_BUCKETS = 1024
_PENDING_BYTES = 16 << 20
_LINE_BYTES = 96
"""What a line takes besides its columns while it is sorted: hash, group, place."""
Numbers = np.ndarray[Any, np.dtype[np.int64]]


def give_back() -> None:
    """Have Arrow return what it holds unused, 100 MB after two million lines (measured)."""
    pa.default_memory_pool().release_unused()


class Nameless:
    """A file that nobody else can open and that is gone with the process, or with this object."""

    def __init__(self) -> None:
        try:
            with tempfile.TemporaryFile(dir=spill_folder()) as file:
                self._descriptor = os.dup(file.fileno())
        except OSError as error:
            raise _full(error) from error
        self._end = 0
        finalize(self, os.close, self._descriptor)

    def append(self, content: bytes | pa.Buffer) -> int:
        """Write at the end, and say where that was. Raises `StorageFailed`."""
        start = self._end
        self.put(start, content)
        self._end = start + memoryview(content).nbytes
        return start

    def put(self, offset: int, content: bytes | pa.Buffer) -> None:
        """Write at a place, which may lie beyond the end. Raises `StorageFailed`."""
        left = memoryview(content)
        try:
            while len(left):
                written = os.pwrite(self._descriptor, left, offset)
                offset, left = offset + written, left[written:]
        except OSError as error:
            raise _full(error) from error

    def read(self, offset: int, size: int) -> bytes:
        """The bytes from a place on, fewer where the file ends."""
        return os.pread(self._descriptor, size, offset)

    def mapped(self, offset: int, size: int) -> memoryview:
        """These bytes as memory: only the pages that are looked at are read, and none stays once
        nobody holds the view.
        """
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        if not size:
            return memoryview(b"")
        pages = mmap.mmap(
            self._descriptor, offset - start + size, offset=start, prot=mmap.PROT_READ
        )
        return memoryview(pages)[offset - start :]


class Spill:
    """Lines of `rows` groups, in buckets of consecutive groups."""

    def __init__(self, rows: int, lines: int) -> None:
        self._rows = rows
        self._lines = lines
        self._per_bucket = 0
        self._file = Nameless()
        self._where: dict[int, list[tuple[int, int]]] = {}
        self._pending: list[tuple[Numbers, pa.RecordBatch]] = []
        self._pending_bytes = 0

    def add(self, groups: Numbers, batch: pa.RecordBatch) -> None:
        """Take lines and their groups."""
        self._pending.append((groups, batch))
        self._pending_bytes += batch.nbytes + _LINE_BYTES * batch.num_rows
        if self._pending_bytes > _PENDING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Part what has come into its buckets. Raises `StorageFailed`."""
        if not self._pending:
            return
        groups = np.concatenate([groups for groups, _ in self._pending])
        batch = pa.concat_batches([batch for _, batch in self._pending])
        self._pending, self._pending_bytes = [], 0
        if not self._per_bucket:  # the first lines say how long lines are
            size = (batch.nbytes / batch.num_rows + _LINE_BYTES) * self._lines
            buckets = max(1, min(_MOST_BUCKETS, ceil(size / _BUCKET_BYTES)))
            self._per_bucket = ceil(self._rows / buckets)
        buckets = groups // self._per_bucket
        order = np.argsort(buckets, kind="stable")
        buckets, batch = buckets[order], batch.take(pa.array(order))
        borders = np.flatnonzero(np.diff(buckets, prepend=-1, append=-1))
        for start, stop in pairwise(borders):
            self._write(int(buckets[start]), batch.slice(start, stop - start))
        give_back()

    def read(self, first: int, stop: int) -> Iterator[pa.RecordBatch]:
        """The buckets that hold the groups from `first` up to `stop`, in order, each as it came."""
        for bucket in range(first // self._per_bucket, ceil(stop / self._per_bucket)):
            batches = []
            for offset, size in self._where.get(bucket, ()):
                content = pa.py_buffer(self._file.read(offset, size))
                batches += list(pa.ipc.open_stream(content))
            if batches:
                yield pa.concat_batches(batches)
                del batches
                give_back()

    def _write(self, bucket: int, batch: pa.RecordBatch) -> None:
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_stream(sink, batch.schema, options=options) as stream:
            stream.write_batch(batch)
        content = sink.getvalue()
        self._where.setdefault(bucket, []).append((self._file.append(content), content.size))


def _full(error: OSError) -> StorageFailed:
    return StorageFailed(
        f"{spill_folder()}: cannot be written: {error.strerror}. What has to wait for the rest of "
        "the input waits there; the variable TMPDIR names another folder."
    )


def spill_folder() -> Path:
    """Where files lie that are gone with the process."""
    chosen, disk = Path(tempfile.gettempdir()), Path("/var/tmp")
    return disk if chosen == Path("/tmp") and disk.is_dir() else chosen
