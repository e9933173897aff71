"""The files below a folder of this machine, and what there is no input.

Nothing is left out in silence: a folder that may not be entered, a link to nothing, a pipe and a
name that cannot be read are refused. This file knows nothing of Parquet.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from batchrank.errors import InputBad, InputMissing

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def is_hidden(name: str) -> bool:
    """Whether readers of whole folders leave out what is called so. `_x=1` is a partition."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def files_below(folder: Path) -> list[Path]:
    """List every file below a folder, by path. A hidden folder is listed itself, and not entered.
    Links to folders are followed, except into a folder that is read anyway.

    Raises `InputBad` for a folder that may not be entered, or a link to a folder that holds it.
    """
    found: list[Path] = []
    roots = [folder.resolve()]
    waiting = [folder]
    while waiting:
        for path in _walk(waiting.pop()):
            if is_hidden(path.name) or not (path.is_symlink() and _is_folder(path)):
                found.append(path)
                continue
            target = path.resolve()
            if any(target != root and root.is_relative_to(target) for root in roots):
                raise InputBad(f"{path}: is a link to a folder that holds it, {target}.")
            if not any(target.is_relative_to(root) for root in roots):
                roots.append(target)
                waiting.append(path)
    return sorted(found)


def check_entered(paths: Iterable[str]) -> None:
    """Refuse folders that may not be entered, which a pattern passes over. Raises `InputBad`."""
    for path in paths:
        if os.path.isdir(path) and not os.access(path, os.R_OK | os.X_OK):
            raise InputBad(f"{path}: cannot be entered: {os.strerror(errno.EACCES)}.")


def check_file(path: Path) -> None:
    """Refuse what is not a regular file, or has a name that cannot be opened.

    Raises `InputMissing` for a link to nothing and `InputBad` for the rest.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        link = f"is a link to {os.readlink(path)}: " if path.is_symlink() else ""
        raise InputMissing(f"{path}: {link}{error.strerror}.") from error
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise InputBad(
            f"{path}: is {kind}; expected a file, which can be read more than once. Write what "
            "comes out of it into a file first."
        )
    check_name(path)


def check_name(path: Path) -> None:
    """Refuse a name that is not UTF-8: Arrow and JSON cannot hold it. Raises `InputBad`."""
    name = os.fsencode(path)
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        shown = name.decode("utf-8", "backslashreplace")
        raise InputBad(f"{shown}: this name is not UTF-8; rename it.") from None


def _walk(folder: Path) -> Iterator[Path]:
    """The files of a folder and of the real folders below it, links and hidden folders."""

    def refuse(error: OSError) -> None:
        raise InputBad(f"{error.filename}: cannot be entered: {error.strerror}.") from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        hidden = [name for name in folders if is_hidden(name)]
        folders[:] = [name for name in folders if not is_hidden(name)]
        yield from (Path(parent, name) for name in [*files, *hidden])
        yield from (path for name in folders if (path := Path(parent, name)).is_symlink())


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False
