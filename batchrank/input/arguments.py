"""The files that an argument names: one, those of a folder, or those that fit a pattern.

Every one is there, is a regular file, and belongs to no table that keeps its own list (see
`tables`): nothing else is opened. A path is a pattern only if nothing has it as a name.
"""

import os
from collections.abc import Sequence
from fnmatch import fnmatch
from glob import escape, glob, has_magic
from pathlib import Path, PurePath

from batchrank.errors import InputMissing, StorageFailed
from batchrank.files.paths import Place, Remote, place
from batchrank.input.folders import check_entered, check_file, files_below, is_hidden
from batchrank.input.input_file import AGAIN
from batchrank.input.tables import check_above, check_folder, check_listed

_LONGEST = 300


def found(argument: str, suffixes: Sequence[str], marks: Sequence[str]) -> list[Place]:
    """List the files that an argument means. A folder gives those below it with these endings; one
    that holds one of `marks` is an output of ours, and no input. A pattern gives what fits, and of
    a folder that fits what is below it.

    Raises `InputMissing` where there is none, `InputBad` where there is something else.
    """
    if "://" in argument:
        return _remote_files(argument, suffixes, marks)
    path = Path(argument)
    try:
        if path.is_dir():
            return _files_of_folder(path, suffixes, marks)
        if not _is_there(path):
            if not has_magic(argument):
                raise InputMissing(f"{argument}: no such file or folder.")
            pattern = _pattern(path)
            for parent in pattern.parents:
                if has_magic(str(parent)):
                    check_entered(glob(str(parent), recursive=True))
            hits = [Path(hit) for hit in sorted(glob(str(pattern), recursive=True))]
            files = [hit for hit in hits if not hit.is_dir()]
            folders = [hit for hit in hits if hit.is_dir()]
            return _files_of_hits(argument, files, folders, suffixes, marks)
        return _checked([path])
    except OSError as error:
        if error.errno in AGAIN:
            raise StorageFailed(f"{_shown(argument)}: cannot be read: {error.strerror}.") from error
        raise InputMissing(f"{_shown(argument)}: {error.strerror}.") from error
    except ValueError as error:  # a zero byte, which no path has
        raise InputMissing(f"{argument!r}: {error}.") from error


def _pattern(path: Path) -> Path:
    """The pattern, in which the folder that is there as it is named is no pattern."""
    there = next((parent for parent in path.parents if parent.is_dir()), Path())
    return Path(escape(str(there))) / path.relative_to(there)


def _is_there(path: Path) -> bool:
    """Whether there is something of this name; `os.path.lexists` takes any error for no."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _remote_files(argument: str, suffixes: Sequence[str], marks: Sequence[str]) -> list[Place]:
    whole = place(argument)
    assert isinstance(whole, Remote)
    if whole.is_dir():
        return _files_of_folder(whole, suffixes, marks)
    if whole.exists():
        return _checked([whole])
    if not has_magic(whole.name):
        raise InputMissing(f"{whole}: no such file or folder.")
    fitting = [one for one in whole.parent.folders() if fnmatch(one.name, whole.name)]
    files = list(whole.parent.glob(whole.name))
    return _files_of_hits(str(whole), files, fitting, suffixes, marks)


def _files_of_folder(folder: Place, suffixes: Sequence[str], marks: Sequence[str]) -> list[Place]:
    files = _files_below(folder, suffixes, marks)
    if not files:
        kinds = " or ".join(f"*{suffix}" for suffix in suffixes)
        raise InputMissing(f"{folder}: no {kinds} file in this folder.")
    return files


def _files_of_hits(
    argument: str,
    files: Sequence[Place],
    folders: Sequence[Place],
    suffixes: Sequence[str],
    marks: Sequence[str],
) -> list[Place]:
    """The files that fit a pattern, and those of folders that fit it. A hidden one fits only a
    pattern that is hidden too: `*` does not mean `_SUCCESS`.
    """
    if not is_hidden(PurePath(argument).name):
        files = [file for file in files if not is_hidden(file.name)]
        folders = [folder for folder in folders if not is_hidden(folder.name)]
    below = [file for folder in folders for file in _files_below(folder, suffixes, marks)]
    wanted = {str(file): file for file in [*_checked(files), *below]}
    if not wanted:
        raise InputMissing(f"{_shown(argument)}: no file matches this pattern.")
    return [wanted[name] for name in sorted(wanted)]


def _files_below(folder: Place, suffixes: Sequence[str], marks: Sequence[str]) -> list[Place]:
    """The files of a folder that are input, which may be none."""
    below: Sequence[Place]
    below = folder.files(recursive=True) if isinstance(folder, Remote) else files_below(folder)
    check_listed(folder, below)
    check_above(folder.absolute() if isinstance(folder, Path) else folder)
    ours = {str(file.parent) for file in below if file.name in marks}
    wanted = [
        file
        for file in below
        if file.name.endswith(tuple(suffixes))
        and str(file.parent) not in ours
        and not any(map(is_hidden, file.relative_to(folder).parts))  # type: ignore[arg-type]
    ]
    for file in wanted:
        if isinstance(file, Path):
            check_file(file)
    return wanted


def _checked(files: Sequence[Place]) -> list[Place]:
    """Files that are named, or fit a pattern: each is a file, and none is a table's."""
    for file in files:
        if isinstance(file, Path):
            check_file(file)
    for folder in {str(file.parent): file.parent for file in files}.values():
        check_folder(folder.absolute() if isinstance(folder, Path) else folder)
    return list(files)


def _shown(argument: str) -> str:
    """An argument as a message has it: a path may have thousands of characters."""
    return argument if len(argument) <= _LONGEST else f"{argument[:_LONGEST]}…"
