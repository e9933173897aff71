"""A command and what it cost, from the operating system's own accounting of the whole process.

The client has the first core to itself and the server the last. CPU is user + system of everything
the command started, orphans too (we are their reaper); the peak is the process's own high-water
mark, or, where a command starts others, the largest sum of their proportional set sizes seen.
This process stays small: a child's high-water mark begins at its parent's.
"""

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread, Timer
from typing import IO, NamedTuple

ROOT = Path(__file__).parents[1]
PYTHON = str(ROOT / ".venv" / "bin" / "python")
BATCHRANK = str(ROOT / ".venv" / "bin" / "batchrank")
CORES = sorted(os.sched_getaffinity(0))
LOOK_SECONDS = 0.5
_PR_SET_CHILD_SUBREAPER = 36


class Cost(NamedTuple):
    """What a command took, and what it said."""

    code: int
    cpu_seconds: float
    wall_seconds: float
    peak_rss_mb: float
    output: str
    error: str

    @property
    def last_words(self) -> str:
        """The last line of standard error, for a table's cell."""
        lines = [line for line in self.error.splitlines() if line.strip()]
        return lines[-1][:200] if lines else f"exit code {self.code}"


def pinned(command: Sequence[object], core: int) -> list[str]:
    """The command on one core: 0 for the client, -1 for the server; anywhere if there is one."""
    words = [str(word) for word in command]
    return words if len(CORES) < 2 else ["taskset", "-c", str(CORES[core]), *words]


def measured(
    command: Sequence[object],
    *,
    timeout: float = 900,
    cwd: Path = ROOT,
    environment: Mapping[str, str] | None = None,
) -> Cost:
    """Run a command on the client's core to its end; killed when it takes too long."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    others = set(_children(os.getpid()))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        process = subprocess.Popen(
            pinned(command, 0),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
        )
        timer = Timer(timeout, process.kill)
        timer.start()
        try:
            with _watched(process.pid) as tree_peak_mb:
                _, status, used = os.wait4(process.pid, 0)
        except BaseException:  # we are being ended
            process.kill()
            raise
        finally:
            timer.cancel()
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        cpu = used.ru_utime + used.ru_stime + _orphans(others)
        peak = max(used.ru_maxrss / 1024, max(tree_peak_mb))
        return Cost(process.returncode, cpu, wall, peak, _read(out), _read(err))


@contextmanager
def _watched(pid: int) -> Iterator[list[float]]:
    """Look at the command's processes now and then; the sums of their memory, in MB."""
    ended, seen = Event(), [0.0]

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            tree = _tree(pid)
            if len(tree) > 1:
                seen.append(sum(map(_proportional_mb, tree)))

    thread = Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def _orphans(others: set[int]) -> float:
    """CPU seconds of what the command left behind; what does not end by itself is killed."""
    cpu = 0.0
    for _ in range(100):
        left = set(_children(os.getpid())) - others
        for pid in left:
            ended, _, used = os.wait4(pid, os.WNOHANG)
            cpu += (used.ru_utime + used.ru_stime) if ended else 0.0
        if not left:
            return cpu
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, 9)
    return cpu + _orphans(others)


def _tree(pid: int) -> list[int]:
    return [pid, *(below for child in _children(pid) for below in _tree(child))]


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:  # ended in the meantime
            continue
    return found


def _proportional_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
