"""A lack of memory is 74 with how much was wanted: never bad input, a traceback or a signal."""

import resource
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers import PROGRAM, clean, table, written

from batchrank.errors import ExitCode, InputBad, OutOfMemory
from batchrank.files.no_memory import lack_of_memory


def within(megabytes: int, *words: object) -> "subprocess.CompletedProcess[str]":
    """The command under a limit of its address space."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    return subprocess.run(
        [*PROGRAM, *map(str, words)],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=120,
        env=clean(),
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.mark.parametrize("megabytes", [300, 450, 600, 900, 1100])
def test_under_any_limit_a_run_is_done_or_says_how_much_it_wants(
    tmp_path: Path, megabytes: int
) -> None:
    rows = written(tmp_path / "in.parquet", table(20, 2, tag="room"))
    assert within(megabytes, "--version").returncode == 0
    done = within(megabytes, "run", rows, "-o", tmp_path / "out", "--provider", "local")
    assert done.returncode in (ExitCode.DONE, ExitCode.IO_FAILED), done.stderr[-300:]
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert len(done.stderr.splitlines()) == 1
        assert f"{megabytes:,} MB" in done.stderr and "1,024 MB" in done.stderr


class PanicException(BaseException):
    """As polars raises it."""


def failures() -> list[BaseException]:
    bad = InputBad("in.parquet: cannot be read")
    bad.__cause__ = pa.ArrowMemoryError("malloc of size 8589934592 failed")
    return [
        MemoryError(),
        pa.ArrowMemoryError("malloc of size 8589934592 failed"),
        np._core._exceptions._ArrayMemoryError((1 << 30,), np.dtype("f8")),  # type: ignore[attr-defined]
        RuntimeError("can't start new thread"),
        ImportError("x.so: failed to map segment from shared object"),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("std::bad_alloc"),
        PanicException("ThreadPoolBuildError { kind: IOError(...) }"),
        ExceptionGroup("tasks", [ValueError("x"), ExceptionGroup("in", [MemoryError()])]),
        bad,
    ]


@pytest.mark.parametrize("error", failures(), ids=repr)
def test_every_name_of_a_lack_of_memory_is_known(error: BaseException) -> None:
    found = lack_of_memory(error)
    assert found is not None and found.code == ExitCode.IO_FAILED


def test_what_says_it_already_is_not_said_anew() -> None:
    error = OutOfMemory("these rows cannot be measured")
    assert lack_of_memory(error) is error


def test_what_was_wanted_is_said() -> None:
    found = lack_of_memory(pa.ArrowMemoryError("malloc of size 8589934592 failed"))
    assert "8589934592" in str(found)


@pytest.mark.parametrize("error", [ValueError("of size 3"), RuntimeError("loop"), OSError(5, "x")])
def test_other_failures_stay_what_they_are(error: BaseException) -> None:
    assert lack_of_memory(error) is None
