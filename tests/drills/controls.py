"""Controls: a build that lacks what a promise rests on must break the drill of that promise.

Each changes a copy of the package by replacing a text, which fails loudly when it is not there.
A control ends with the first trial that breaks. Which one does is chance (a power cut finds a
folder that is not synced in about every second), so many are allowed.
"""

from pathlib import Path

from drills.disk import power_cut
from drills.frame import Drill, Patch, breaks, patched
from drills.ownership import many_at_once, many_states

NO_FOLDER_SYNC = Patch("files/atomic.py", "        os.fsync(descriptor)\n", "        pass\n")
NO_FILE_SYNC = Patch(
    "files/atomic.py",
    "                os.fsync(file.fileno())\n",
    "                pass\n",
)
NO_LOCK = Patch(
    "state/checkpoint.py",
    "            flock(descriptor, LOCK_EX | LOCK_NB)\n",
    "            pass\n",
)
NO_LOCK_OF_OUTPUT = Patch(
    "state/output_folder.py",
    "            holding.enter_context(checkpoint.locked(home, out))\n",
    "            pass\n",
)
SHORT_LOG = Patch(
    "state/checkpoint.py",
    '    database.execute("PRAGMA synchronous=FULL")\n    return database\n',
    '    database.execute("PRAGMA synchronous=FULL")\n'
    '    database.execute("PRAGMA wal_autocheckpoint=30")\n    return database\n',
)
"""As long as SQLite's log grows, ext4 makes all names durable with it. Written over early instead
of after 1,000 pages, it no longer covers for a folder that is not synced.
"""


QUICK = 60
"""Trials at the most of those that end with the first that breaks."""


def without_folder_sync(trials: int, seed: int, folder: Path) -> str:
    """A part's name is lost, its answers are forgotten already: they are paid again."""
    sound, lacking = folder / "sound", folder / "lacking"
    sound.mkdir()
    lacking.mkdir()
    if trials > QUICK:  # the long form: the short log alone breaks nothing
        with patched(sound, SHORT_LOG):
            power_cut(trials // 15, seed, sound)
    with patched(lacking, SHORT_LOG, NO_FOLDER_SYNC):
        said = breaks(lambda: power_cut(trials, seed, lacking), "answers that were safe are lost")
    return f"power-cut breaks without the folder's sync: {said}"


def without_file_sync(trials: int, seed: int, folder: Path) -> str:
    """A part is there by name, and empty."""
    with patched(folder, NO_FILE_SYNC):
        said = breaks(lambda: power_cut(trials, seed, folder), "not what an undisturbed run writes")
    return f"power-cut breaks without the file's sync: {said}"


def without_lock(trials: int, seed: int, folder: Path) -> str:
    """Two runs work on one output."""
    with patched(folder, NO_LOCK):
        said = breaks(lambda: many_at_once(trials, seed, folder), "exit codes")
    return f"many-at-once breaks without the lock: {said}"


def without_lock_of_output(trials: int, seed: int, folder: Path) -> str:
    """Two runs with two states work on one output."""
    with patched(folder, NO_LOCK_OF_OUTPUT):
        said = breaks(lambda: many_states(trials, seed, folder), "exit codes")
    return f"many-states breaks without the lock in the output: {said}"


DRILLS = [
    Drill((4,), "control-folder-sync", without_folder_sync, QUICK, 90),
    Drill((4,), "control-file-sync", without_file_sync, QUICK, 90),
    Drill((8,), "control-lock", without_lock, 1, 3),
    Drill((37,), "control-lock-of-output", without_lock_of_output, 1, 3),
]
