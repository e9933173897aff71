"""Where files are: on this machine, or behind s3://, gs://, abfs:// or hf://.

A local place is a `pathlib.Path`; a remote one, `Remote`, answers to the same few names, through
pyarrow's own filesystems (hf:// through huggingface_hub's). Keys come from where the vendors' tools
take them, the environment or the machine's role, and never from an address. A remote file is put
whole or not at all: an object appears when its upload is completed, and nothing is ever renamed.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path, PurePosixPath

import msgspec
import pyarrow as pa
from pyarrow import fs

from batchrank.errors import ConfigInvalid, StorageFailed

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hf")


class Remote:
    """A file or folder in a bucket, with the part of pathlib's `Path` that batchrank uses.

    Raises `StorageFailed` where the store does not answer or refuses.
    """

    def __init__(self, store: "_Store", key: str) -> None:
        self._in = store
        self._store = store.files
        self._key = key.strip("/")
        self._path = f"{store.base}/{self._key}".rstrip("/")

    def __str__(self) -> str:
        return f"{self._in.shown}/{self._key}".rstrip("/")

    def __truediv__(self, name: str) -> "Remote":
        return Remote(self._in, f"{self._key}/{name}")

    @property
    def name(self) -> str:
        return self._key.rpartition("/")[2]

    @property
    def parent(self) -> "Remote":
        return Remote(self._in, self._key.rpartition("/")[0])

    def exists(self) -> bool:
        return bool(self._info().type != fs.FileType.NotFound)

    def is_dir(self) -> bool:
        return bool(self._info().type == fs.FileType.Directory)

    def open_input(self) -> pa.NativeFile:
        """The file, to be read at any place. Raises as the store does: OSError."""
        return self._store.open_input_file(self._path)

    @property
    def handle(self) -> tuple[fs.FileSystem, str]:
        """The filesystem and the path in it, from which another process can open the file."""
        return self._store, self._path

    def modified(self) -> str:
        """When the file was put, in nanoseconds; "" where the store does not say."""
        moment = self._info().mtime_ns
        return "" if moment is None else str(moment)

    def read_bytes(self) -> bytes:
        try:
            with self.open_input() as file:
                content: bytes = file.read()
            return content
        except FileNotFoundError:
            raise
        except self._in.faults as error:
            raise self._failed("cannot be read", error) from error

    def write_bytes(self, content: bytes | pa.Buffer) -> None:
        """Put the file. It appears when the store has all of it: a run that dies on the way leaves
        an upload that was never completed, which is no file.
        """
        try:
            stream = self._store.open_output_stream(self._path)
            stream.write(content)
            stream.close()
        except self._in.faults as error:
            raise self._failed("cannot be written", error) from error

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._store.delete_file(self._path)
        except FileNotFoundError:
            if not missing_ok:
                raise
        except self._in.faults as error:
            raise self._failed("cannot be deleted", error) from error

    def files(self, *, recursive: bool = False, whole: bool = False) -> list["Remote"]:
        """The files below, by name."""
        found = self._listed(recursive)
        return self._children(one for one in found if one.is_file and (one.size or not whole))

    def folders(self) -> list["Remote"]:
        """The folders in this one, by name."""
        folder = fs.FileType.Directory
        return self._children(one for one in self._listed(False) if one.type == folder)

    def sizes(self, pattern: str) -> dict[str, int]:
        """The sizes of this folder's own files whose names fit."""
        files = (one for one in self._listed(False) if one.is_file and one.size)
        return {one.base_name: one.size for one in files if fnmatch(one.base_name, pattern)}

    def iterdir(self) -> Iterator["Remote"]:
        return iter(self.files())

    def glob(self, pattern: str) -> Iterator["Remote"]:
        """Files of this folder itself whose name fits. One without a byte is none: an Azure blob
        shows so until its upload is completed.
        """
        return (file for file in self.files(whole=True) if fnmatch(file.name, pattern))

    def relative_to(self, folder: "Remote") -> PurePosixPath:
        return PurePosixPath(self._key).relative_to(folder._key)

    def _listed(self, recursive: bool) -> list[fs.FileInfo]:
        selector = fs.FileSelector(self._path, allow_not_found=True, recursive=recursive)
        try:
            found: list[fs.FileInfo] = self._store.get_file_info(selector)
        except self._in.faults as error:
            raise self._failed("cannot be listed", error) from error
        return found

    def _children(self, found: Iterable[fs.FileInfo]) -> list["Remote"]:
        paths = sorted(one.path for one in found)
        return [Remote(self._in, path.removeprefix(self._in.base)) for path in paths]

    def _info(self) -> fs.FileInfo:
        try:
            return self._store.get_file_info(self._path)
        except self._in.faults as error:
            raise self._failed("cannot be reached", error) from error

    def _failed(self, what: str, error: Exception) -> StorageFailed:
        return StorageFailed(f"{self}: {what}: {plain(error)}")


Place = Path | Remote


def place(text: str) -> Place:
    """The place of an argument. Raises `ConfigInvalid` for an address that is of no known kind."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    authority, _, path = rest.partition("/")
    path, _, query = path.partition("?")
    if not path:
        authority, _, query = authority.partition("?")
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ConfigInvalid(f"{scheme}://: no such place; batchrank knows paths, {known}.")
    if ":" in authority.rpartition("@")[0]:
        raise ConfigInvalid(
            f"{scheme}://: the address holds a key; keys come from the environment, as the "
            "vendor's own tools take them."
        )
    return Remote(_store(scheme, authority, query), path)


class _Store(msgspec.Struct, frozen=True):
    """A bucket: the filesystem, the bucket's path in it, and its address as a person writes it."""

    files: fs.FileSystem
    base: str
    shown: str
    faults: tuple[type[Exception], ...] = (OSError,)
    """What its failures are: the hub's client lets those of its HTTP library through."""


@lru_cache(maxsize=16)
def _store(scheme: str, authority: str, query: str) -> _Store:
    shown = f"{scheme}://{authority}"
    try:
        if scheme == "hf":
            from huggingface_hub import HfFileSystem

            hub = fs.PyFileSystem(fs.FSSpecHandler(HfFileSystem()))
            return _Store(hub, authority, shown, (Exception,))
        files, base = fs.FileSystem.from_uri(shown + (f"?{query}" if query else ""))
        return _Store(files, base.strip("/"), shown)
    except ImportError as error:
        raise ConfigInvalid("hf:// needs one more package: pip install 'batchrank[hf]'") from error
    except OSError as error:  # S3 is asked for the bucket's region
        raise StorageFailed(f"{shown}: cannot be reached: {plain(error)}") from error
    except (pa.ArrowException, ValueError) as error:
        raise ConfigInvalid(f"{shown}: no address of a bucket: {plain(error)}") from error


def is_same(one: Place, other: Place) -> bool:
    """Whether two places are one folder, whatever they are called."""
    if isinstance(one, Path) and isinstance(other, Path):
        return one.resolve() == other.resolve()
    return str(one) == str(other)


def sizes(folder: Place, pattern: str) -> dict[str, int]:
    """The sizes in bytes of a folder's own files whose names fit, by name."""
    if isinstance(folder, Remote):
        return folder.sizes(pattern)
    found = {}
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):
            found[path.name] = path.stat().st_size
    return found


def opened(file: Place) -> pa.NativeFile:
    """A file, to be read at any place in it. Raises OSError."""
    # As bytes: a name need not be UTF-8, and Arrow would have it so.
    return file.open_input() if isinstance(file, Remote) else pa.OSFile(os.fsencode(file))


def plain(error: Exception) -> str:
    """A message's first line: what follows may quote the data."""
    return str(error).split("\n", 1)[0][:200]
