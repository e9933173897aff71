"""The processes that we start: they import nothing of the working folder; one that dies is seen."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers import PROGRAM, clean, ended, started, table, until, written

SCRIPT = str(Path(PROGRAM[0]).with_name("batchrank"))
PLANTED = ("random.py", "json.py", "runpy.py", "sitecustomize.py", "usercustomize.py", "brotli.py")


def plant(folder: Path) -> Path:
    """Files that note that they were executed; return the note."""
    note = folder / "executed"
    for name in PLANTED:
        (folder / name).write_text(f"open({str(note)!r}, 'a').write({name!r})\nraise SystemExit(7)")
    return note


def test_the_local_server_imports_nothing_of_the_working_folder(tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(3, tag="own"))
    folder = tmp_path / "cwd"
    folder.mkdir()
    note = plant(folder)
    done = inside_folder(folder, [SCRIPT, "run", source, "-o", "out", "--provider", "local"])
    assert not note.exists(), note.read_text()
    assert done.returncode == 0, done.stderr


def test_an_empty_entry_of_the_path_is_not_handed_on(tmp_path: Path) -> None:
    """As PYTHONPATH=:/some/folder makes it; here the child alone is kept from it."""
    note = plant(tmp_path)
    start = (
        "import sys, subprocess, os\nfrom batchrank.files.python_child import python_command\n"
        "sys.path[:0] = ['', os.getcwd()]\n"
        "sys.exit(subprocess.run(python_command('batchrank', '--version')).returncode)"
    )
    done = inside_folder(tmp_path, [PROGRAM[0], "-P", "-c", start])
    assert not note.exists(), note.read_text()
    assert done.returncode == 0 and done.stdout.startswith("batchrank"), done.stderr


def inside_folder(folder: Path, words: list[object]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*map(str, words)],
        cwd=folder,
        env=clean(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_local_server_that_dies_ends_the_run_at_once(tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(20_000, 20, tag="dies"))
    process = started("run", source, "-o", tmp_path / "out", "--provider", "local")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    state = tmp_path / "out" / "_batchrank" / "live.json"
    until(lambda: state.exists() or process.poll() is not None, "the run is at work")
    os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
    code, _, stderr = ended(process, 60)
    assert code == 75 and "local server ended by signal 9" in stderr, stderr


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_local_server_that_does_not_start_ends_the_run(
    how: signal.Signals, tmp_path: Path
) -> None:
    source = written(tmp_path / "in.parquet", table(3, tag="starts"))
    process = started("run", source, "-o", tmp_path / "out", "--provider", "local")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until(lambda: bool(children.read_text().split()), "the local server is started")
    child = int(children.read_text().split()[0])
    command = Path(f"/proc/{child}/cmdline")
    until(lambda: b"serve" in command.read_bytes(), "its program has begun")
    os.kill(child, how)
    began = time.monotonic()
    code, _, stderr = ended(process, 120)  # by itself it would wait for 15 minutes
    assert code == 75 and "local server" in stderr, stderr
    assert how is signal.SIGKILL or time.monotonic() - began > 10
