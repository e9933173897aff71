"""Files that are whole at any moment: written beside, then given their name.

A draft is always a new file, so a link that lies under its name is removed and never followed. A
target that a user names may be more than a file: a link to a file stands for that file, and what is
no regular file (a device, a pipe, a terminal) is written into: it is never replaced.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_STANDARD_STREAMS = (1, 2)
_NO_SYNC_OF_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}


@contextmanager
def replace_whole(
    path: Path, draft: Path, *, mode: int = 0o666, sync: bool = True
) -> Iterator[BinaryIO]:
    """Open a draft that takes the place of `path` after the block, whatever is there, a link
    included. With `sync` both file and name are durable then. The draft goes away on an error.
    """
    try:
        with _open_new(draft, mode) as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
    if sync:
        sync_folder(path.parent)


@contextmanager
def open_target(
    path: Path, *, mode: int = 0o666, sync: bool = True, wait: bool = True
) -> Iterator[BinaryIO]:
    """Open a target that a user named: a file that is there, whole, after the block, or a stream.
    With `wait` a pipe without a reader is waited for; otherwise it raises `OSError`.

    A link is followed by the kernel first, which refuses those that others planted in a folder that
    everybody can write to.
    """
    if is_stream(path):
        with _open_stream(path, wait=wait) as stream:
            yield stream
        return
    target = Path(os.path.realpath(path))
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    with replace_whole(target, draft, mode=mode, sync=sync) as file:
        yield file


def is_stream(path: Path) -> bool:
    """Tell whether a target is written into: no regular file, or where our own output goes."""
    there = _stat(path)
    if there is None or stat.S_ISDIR(there.st_mode):
        return False
    return not stat.S_ISREG(there.st_mode) or _standard_stream(there) is not None


def write_unsynced(path: Path, content: bytes) -> None:
    """Put a file of figures for ourselves at `path`. Not synced: figures age fast."""
    with replace_whole(path, path.with_name(path.name + ".part"), mode=0o600, sync=False) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """Make a folder's names durable, which syncing its files does not.

    CIFS and some FUSE file systems refuse it for every folder: there it cannot be had.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC_OF_FOLDERS:
            raise
    finally:
        os.close(descriptor)


def _open_new(draft: Path, mode: int) -> BinaryIO:
    """Create a draft. One that a killed process left, or a link, is removed first."""
    try:
        descriptor = os.open(draft, _NEW, mode)
    except FileExistsError:
        draft.unlink()
        descriptor = os.open(draft, _NEW, mode)
    return open(descriptor, "wb")


def _open_stream(path: Path, *, wait: bool) -> BinaryIO:
    there = os.stat(path)
    standard = _standard_stream(there)
    if standard is not None:  # opened anew, a file would be written from its start again
        return open(os.dup(standard), "wb")
    flags = os.O_WRONLY | os.O_NOCTTY | (0 if wait else os.O_NONBLOCK)
    descriptor = os.open(path, flags)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileExistsError(errno.EEXIST, "was replaced by a file just now")
    return open(descriptor, "wb")


def _standard_stream(there: os.stat_result) -> int | None:
    """Return the descriptor of our standard output or error if that is this file."""
    for number in _STANDARD_STREAMS:
        with suppress(OSError):  # closed by whoever started us
            if os.path.samestat(there, os.fstat(number)):
                return number
    return None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
