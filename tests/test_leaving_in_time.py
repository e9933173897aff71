"""A closed terminal drains a run as SIGTERM does, and `nohup` keeps it; the quick drill has what
hangs.
"""

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from helpers import PROGRAM, Server, clean, ended, fast, output, started, table, until, written

Serve = Callable[..., Server]
SLOW = '[[fault]]\nkind = "slow"\nseconds = 0.3\n'


def test_a_closed_terminal_drains_the_run(serve: Serve, tmp_path: Path) -> None:
    own = serve(SLOW)
    source = written(tmp_path / "in.parquet", table(2000, tag="hup"))
    run = [*fast(own, tmp_path / "out", source), "--max-in-flight", 4]
    process, terminal = pty.fork()
    if process == 0:
        os.execve(PROGRAM[0], [*PROGRAM, *map(str, run)], clean(TERM="xterm"))
    deadline = time.monotonic() + 30
    while own.received < 8 and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 65536)
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 143
    receipt = json.loads((tmp_path / "out" / "_run.json").read_bytes())
    assert receipt["message"] == "stopped by SIGHUP; the same command goes on from here."
    assert (receipt["exit_code"], receipt["possibly_paid"]) == (143, 0)


def test_nohup_keeps_a_run(serve: Serve, tmp_path: Path) -> None:
    own = serve(SLOW)
    source = written(tmp_path / "in.parquet", table(60, tag="nohup"))
    run = ["nohup", *PROGRAM, *fast(own, tmp_path / "out", source), "--max-in-flight", 4]
    process = subprocess.Popen(
        [*map(str, run)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean(),
    )
    until(lambda: own.received > 4, "the run is at work")
    process.send_signal(signal.SIGHUP)
    code, _, stderr = ended(process)
    assert code == 0, stderr
    assert output(tmp_path / "out").num_rows == 60


def test_sighup_is_a_stop(serve: Serve, tmp_path: Path) -> None:
    own = serve(SLOW)
    source = written(tmp_path / "in.parquet", table(500, tag="hup"))
    process = started(*fast(own, tmp_path / "out", source), "--max-in-flight", 4)
    until(lambda: own.received > 4, "the run is at work")
    process.send_signal(signal.SIGHUP)
    code, _, stderr = ended(process)
    message = "batchrank: stopped by SIGHUP; the same command goes on from here.\n"
    assert (code, stderr) == (143, message)
