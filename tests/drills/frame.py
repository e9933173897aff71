"""What a drill is, and what several share: a job to be disturbed, its judge, and how it is judged.

The judge of money is the ledger of a server that stays up over all kills; the judge of results is
an undisturbed run, byte for byte. Any random choice comes from the drill's seed.
"""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from random import Random
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
from helpers import (
    PROGRAM,
    Server,
    clean,
    content,
    ended,
    fast,
    killed,
    part_bytes,
    serving,
    started,
    table,
    written,
)
from test_resume_after_kill import answers, settled

import batchrank

BUILD = "BATCHRANK_BUILD"
"""Names the folder of another build of the package, which is then the one under drill."""

COMMIT_WINDOW_SECONDS = 0.5
"""From an answer to its commit: one group of 50 ms behind another, and two slow syncs."""


class Drill(NamedTuple):
    """One kind of harm. `run(trials, seed, folder)` gives a line of figures, or raises
    `AssertionError` with what broke; `quick` and `long` are the trials of the two forms.
    """

    numbers: tuple[int, ...]
    name: str
    run: Callable[[int, int, Path], str]
    quick: int
    long: int


def every() -> list[Drill]:
    """The drills of all modules beside this one, in the order of their promises."""
    modules = [import_module(f"drills.{found.name}") for found in iter_modules([_HERE])]
    drills = [drill for module in modules for drill in getattr(module, "DRILLS", ())]
    return sorted(drills, key=lambda drill: (drill.numbers, drill.name))


_HERE = str(Path(__file__).parent)


# The build under drill


class Patch(NamedTuple):
    """A text of the package's file, and what takes its place."""

    file: str
    old: str
    new: str


@contextmanager
def patched(folder: Path, *patches: Patch) -> Iterator[None]:
    """Put a changed copy of the package under drill while the block runs."""
    copy = folder / "build" / "batchrank"
    shutil.copytree(Path(batchrank.__file__).parent, copy)
    for patch in patches:
        text = (copy / patch.file).read_text()
        if text.count(patch.old) != 1:
            raise LookupError(
                f"{patch.file}: not there exactly once, mend the control: {patch.old}"
            )
        (copy / patch.file).write_text(text.replace(patch.old, patch.new))
    os.environ[BUILD] = str(copy.parent)
    try:
        yield
    finally:
        del os.environ[BUILD]


def breaks(drill: Callable[[], str], *because: str) -> str:
    """What a drill says when it breaks, as it must under a build that lacks something; one of
    `because` is part of it, so that it breaks for the reason meant.
    """
    try:
        figures = drill()
    except AssertionError as error:
        known = any(one in str(error) for one in because)
        assert known, f"broke, but not because of {because}: {error}"
        return str(error)
    raise AssertionError(f"the drill does not notice what this build lacks: {figures}")


def environment() -> dict[str, str]:
    """What a child needs to run the build under drill.

    Under a limit on a file's size Python leaves half a .pyc behind, which nothing could import
    again: none is written. PYTHONSAFEPATH keeps the working folder from coming first.
    """
    folder = os.environ.get(BUILD)
    build = {"PYTHONPATH": folder, "PYTHONSAFEPATH": "1"} if folder else {}
    return {"PYTHONDONTWRITEBYTECODE": "1", **build}


def begun(
    arguments: Sequence[object], *, under: Sequence[object] = (), **variables: str
) -> "subprocess.Popen[str]":
    """The command begun, under another (strace, prlimit) if given, its output collected."""
    return subprocess.Popen(
        [*map(str, under), *PROGRAM, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean(**environment(), **variables),
    )


def last_line(stderr: str) -> str:
    """What a failed command said at the end: its message, or the error of a traceback."""
    lines = [line.strip(" |") for line in stderr.splitlines() if not line.strip().endswith("---")]
    return (lines or ["nothing"])[-1]


def needs(*tools: str) -> None:
    """Skip where a tool is missing, or the leave to use it (root)."""
    for tool in tools:
        if shutil.which(tool, path="/usr/sbin:/sbin:" + os.environ["PATH"]) is None:
            pytest.skip(f"needs {tool}")
    if os.geteuid() != 0:
        pytest.skip("needs root")


def tool(*command: object) -> None:
    """Run a system tool; its own words when it fails."""
    done = subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=clean(PATH="/usr/sbin:/sbin:" + os.environ["PATH"]),
    )
    if done.returncode:
        raise OSError(f"{command}: {done.stderr.strip()}")


# The job


class Job(NamedTuple):
    """A job to be disturbed: rows of one request each, and what it ends with undisturbed."""

    server: Server
    source: Path
    options: Sequence[object]
    contents: Sequence[str]
    """Each row's name in the ledger."""
    rows_per_part: int
    max_in_flight: int
    most_uncommitted: int
    """Requests that can be sent and not committed at any moment."""
    oracle: dict[str, bytes]
    seconds: float
    """How long it takes, undisturbed."""

    def command(self, out: Path) -> list[object]:
        return [*fast(self.server, out, self.source), *self.options]

    def safe(self, out: Path, scratch: Path) -> set[int]:
        """The rows that will not be asked for again: of published parts, or committed."""
        first = [int(path.stem[5:]) * self.rows_per_part for path in out.glob("part-*.parquet")]
        rows = {row for start in first for row in range(start, start + self.rows_per_part)}
        return (rows & set(range(len(self.contents)))) | answers(out, scratch)


@contextmanager
def job(
    folder: Path,
    *,
    rows: int,
    rows_per_part: int,
    documents: int = 3,
    max_in_flight: int = 16,
    seconds: float = 0.02,
    faults: str = "",
) -> Iterator[Job]:
    """A job against a server of its own, whose answers take `seconds` each unless `faults`."""
    data = table(rows, documents, tag="drill")
    source = written(folder / "in.parquet", data, row_group_size=max(1, rows // 4))
    config, script = folder / "batchrank.toml", folder / "faults.toml"
    config.write_text(f"[output]\nrows_per_part = {rows_per_part}\n")
    script.write_text(faults or f'[[fault]]\nkind = "slow"\nseconds = {seconds}\n')
    with serving("--faults", str(script)) as server:
        one = Job(
            server=server,
            source=source,
            options=["-c", config, "--max-in-flight", max_in_flight],
            contents=[content(row) for row in data.to_pylist()],
            rows_per_part=rows_per_part,
            max_in_flight=max_in_flight,
            most_uncommitted=max_in_flight + int(max_in_flight / seconds * COMMIT_WINDOW_SECONDS),
            oracle={},
            seconds=0,
        )
        began = time.monotonic()
        code, _, stderr = ended(started(*one.command(folder / "oracle")), 300)
        assert code == 0, f"undisturbed, the run ended with {code}: {last_line(stderr)}"
        took = time.monotonic() - began
        yield one._replace(oracle=part_bytes(folder / "oracle"), seconds=took)


def killed_within(process: "subprocess.Popen[str]", seconds: float) -> bool:
    """Kill a run after so long; whether it still ran."""
    time.sleep(seconds)
    return killed(process) == -signal.SIGKILL


# The judgement


class Cut(NamedTuple):
    """What an interrupted run leaves: rows that are safe, and what has been paid."""

    safe: set[int]
    paid: dict[str, int]
    """Times per content, over the server's life."""
    requests: int


def cut(job: Job, out: Path, scratch: Path) -> Cut:
    """Look at what is left, once the server has nothing more to do; the state is not touched."""
    ledger = settled(job.server)
    return Cut(
        job.safe(out, scratch),
        {name: times for name, (times, _) in ledger["per_content"].items()},
        ledger["requests"],
    )


def go_on(job: Job, out: Path, *cuts: Cut, before: int) -> int:
    """Take a run to its end and judge it; the number of requests that were paid twice.

    `before`: requests in the ledger when the run first began. Each cut's safe rows must not have
    been paid again by anything that came after it.
    """
    code, _, stderr = ended(begun(job.command(out)), 300)
    assert code == 0, f"the resumed run ended with {code}: {last_line(stderr)}"
    identical(job, out)
    end = cut(job, out, out.parent / "scratch")
    for one in cuts:
        again = [row for row in one.safe if _paid(end, job, row) != _paid(one, job, row)]
        assert not again, f"paid again although safe on disk: {len(again)} rows, {again[:5]}"
    twice = end.requests - before - len(job.contents)
    allowed = len(cuts) * job.most_uncommitted
    assert twice <= allowed, f"{twice} requests paid twice, {allowed} can have been in flight"
    return twice


def identical(job: Job, out: Path) -> None:
    """A finished output is the undisturbed run's, byte for byte."""
    found = part_bytes(out)
    wrong = [name for name in {*found, *job.oracle} if found.get(name) != job.oracle.get(name)]
    assert not wrong, f"not what an undisturbed run writes: {sorted(wrong)}"
    assert (out / "_SUCCESS").exists(), "no _SUCCESS"


def whole_so_far(job: Job, out: Path) -> None:
    """The parts of an unfinished output are the undisturbed run's, and it has no `_SUCCESS`."""
    found = part_bytes(out)
    wrong = [name for name in found if found[name] != job.oracle.get(name)]
    assert not wrong, f"published, but not what an undisturbed run writes: {sorted(wrong)}"
    assert not (out / "_SUCCESS").exists() or found.keys() == job.oracle.keys(), "_SUCCESS too soon"


def _paid(one: Cut, job: Job, row: int) -> int:
    return one.paid.get(job.contents[row], 0)


def instants(random: Random, count: int, start: float, stop: float) -> list[float]:
    """Random instants, one in each of `count` equal spans, so that few of them still cover all."""
    span = (stop - start) / count
    found = [start + span * (place + random.random()) for place in range(count)]
    random.shuffle(found)
    return found


class Reader:
    """Somebody who opens every part, every 5 ms, and never may see half of one."""

    def __init__(self, out: Path, parts: dict[str, bytes]) -> None:
        self.looks = self.opened = 0
        self._out, self._parts = out, parts
        self._seen: dict[str, Any] = {}
        self._problem: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, name="reader")

    def __enter__(self) -> "Reader":
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if kind is None:
            assert self._problem is None, f"a reader saw {self._problem}"
            assert self.opened, "the reader never had a part to open"

    def _read(self) -> None:
        while not self._over.wait(0.005):
            finished = (self._out / "_SUCCESS").exists()
            found = sorted(self._out.glob("*.parquet"))
            if finished and {path.name for path in found} != self._parts.keys():
                self._problem = f"_SUCCESS beside {len(found)} of {len(self._parts)} parts"
            for path in found:
                self._open(path)
            self.looks += 1

    def _open(self, path: Path) -> None:
        try:
            facts = path.stat()
            pq.ParquetFile(path).close()
            identity = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
            first = path.name not in self._seen
            if first and path.read_bytes() != self._parts.get(path.name):
                self._problem = f"{path.name}, not as an undisturbed run writes it"
        except Exception as error:
            self._problem = f"{path.name}: {error!r}"
            return
        self.opened += 1
        if self._seen.setdefault(path.name, identity) != identity:
            self._problem = f"{path.name} change"
