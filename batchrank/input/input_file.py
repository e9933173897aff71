"""A file of the input, and whether it is still the one that the run began with.

A run opens its files many times: for the footer, for the rows, for each band of priorities. Each
time the file must be the same one, or rows of two inputs would be mixed. So a file is compared with
what it was at first before a row of it is read, after the last one, and once more before anything
that was read of it is published. A local file is known by its size and time of modification, an
object in a bucket by its size and ETag.
"""

import errno
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import msgspec
import pyarrow as pa

from batchrank.errors import BatchrankError, InputBad, StorageFailed
from batchrank.files.no_memory import lack_of_memory
from batchrank.files.paths import Place, Remote, opened, plain

AGAIN = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EBUSY", "ENFILE", "EMFILE", "ENOMEM"),
        *("ENOTCONN", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "EHOSTDOWN", "EHOSTUNREACH"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET", "EREMOTEIO", "ENOLINK", "ECOMM", "EPROTO"),
    )
    if hasattr(errno, name)
)
"""Errors of a disk, a file server or this machine at the moment: the file itself may be sound."""


_TAIL_BYTES = 1 << 16


class Stamp(msgspec.Struct, frozen=True):
    """What changes when a file is replaced or written: its size, and when it was modified in
    nanoseconds, or the ETag of an object.

    `node` changes then as well (inode, and time of the last change to it), but it also changes when
    a backup makes a hard link, and at any time on some network mounts. Where nothing but the node
    differs, the end of the file decides: a Parquet file's footer is there.
    """

    size: int
    modified: str
    node: tuple[int, int] = (0, 0)

    def is_like(self, other: "Stamp") -> bool:
        """Whether nothing but the nodes differs."""
        return (self.size, self.modified) == (other.size, other.modified)


class InputFile:
    """A file that must stay what it is when it is first opened."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.name = place.name
        self._first: Stamp | None = None
        self._tail = b""
        self._readers = 0
        self._unchecked = False
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return str(self.place)

    @property
    def modified(self) -> str:
        """The time of modification or ETag, once the file has been opened; "" if it has none."""
        return "" if self._first is None else self._first.modified

    @contextmanager
    def read(self) -> Iterator[pa.NativeFile]:
        """Open the file, to be read at any place in it.

        Raises `InputBad` if it is not what it was, before the block or after it. Any error in the
        block is put down to such a change first, then to the file or the disk (`unreadable`).
        """
        with self._lock:
            self._readers, self._unchecked = self._readers + 1, True
        try:
            with self.explaining(), self._open() as file:
                yield file
                self.check()
        finally:
            with self._lock:
                self._readers -= 1

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Say what an error in the block means. What is read of a changed file may fail anywhere,
        in whatever way.
        """
        try:
            yield
        except StorageFailed:
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            self.check()
            raise unreadable(self.place, error) from error
        except Exception:
            self.check()
            raise

    def check(self) -> None:
        """Compare the file with what it was when it was first opened. Raises `InputBad`."""
        if self._first is None:
            return
        with self._lock:
            readers = self._readers
        self._compare(self._stamp())
        if not readers:  # what is read from now on is to be checked again
            with self._lock:
                self._unchecked = self._readers > 0

    def check_if_read(self) -> None:
        """As `check`, unless nothing was read of the file since it was checked."""
        if self._unchecked:
            self.check()

    def _open(self) -> pa.NativeFile:
        if isinstance(self.place, Remote):
            file = opened(self.place)
            self._compare(_stamp_of_object(self.place, file))
            return file
        # The name is looked up three times: what is opened in between is the file that both others
        # have seen.
        self._compare(self._stamp())
        file = opened(self.place)
        self._compare(self._stamp())
        return file

    def _compare(self, now: Stamp) -> None:
        if now == self._first:
            return
        if self._first is None:
            self._tail = self._tail_digest()
        elif not now.is_like(self._first) or self._tail_digest() != self._tail:
            raise self._changed(now)
        self._first = now

    def _stamp(self) -> Stamp:
        try:
            if isinstance(self.place, Remote):
                with opened(self.place) as file:
                    return _stamp_of_object(self.place, file)
            facts = self.place.stat()
        except FileNotFoundError as error:
            if self._first is None:
                raise
            raise self._changed(None) from error
        except OSError as error:
            raise unreadable(self.place, error) from error
        return Stamp(facts.st_size, str(facts.st_mtime_ns), (facts.st_ino, facts.st_ctime_ns))

    def _tail_digest(self) -> bytes:
        """A digest of the file's last bytes; of an object none, whose ETag says enough."""
        if isinstance(self.place, Remote):
            return b""
        with opened(self.place) as file:
            file.seek(max(0, file.size() - _TAIL_BYTES))
            return hashlib.sha256(file.read()).digest()

    def _changed(self, now: Stamp | None) -> InputBad:
        assert self._first is not None
        return InputBad(
            f"{self.place}: changed while the run was at work ({_words(self._first)}, now "
            f"{'gone' if now is None else _words(now)}). No part holds a row of the new file, and "
            "what was paid is kept: put the old file back to go on, or choose a new output."
        )


@contextmanager
def looking_at(argument: object) -> Iterator[None]:
    """Say what an error means while files are looked for and not yet opened."""
    try:
        yield
    except OSError as error:
        raise unreadable(argument, error) from error


def unreadable(place: object, error: Exception) -> BatchrankError:
    """Say whether a file that cannot be read is damaged, or out of reach for the moment."""
    if (lack := lack_of_memory(error)) is not None:
        return lack
    again = isinstance(error, OSError) and (isinstance(place, Remote) or error.errno in AGAIN)
    return (StorageFailed if again else InputBad)(f"{place}: cannot be read: {plain(error)}")


def _stamp_of_object(place: Remote, file: pa.NativeFile) -> Stamp:
    """What the store says of an object that is open."""
    said = {_text(name).lower(): _text(value) for name, value in (file.metadata() or {}).items()}
    return Stamp(file.size(), said.get("etag") or place.modified())


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _words(stamp: Stamp) -> str:
    words = f"{stamp.size:,} bytes"
    if not stamp.modified.isdecimal():
        return words
    seconds = int(stamp.modified) / 1e9
    return f"{words} of {datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S.%f}"[:-3]
