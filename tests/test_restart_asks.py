"""`--restart` throws nothing away that was paid for without being told to: it asks on a terminal,
and wants --yes elsewhere; what refuses names the ways first that lose nothing.
"""

import fcntl
import json
import os
import pty
import re
import select
import shutil
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    KEY,
    PROGRAM,
    Server,
    clean,
    fast,
    inside,
    part_bytes,
    program,
    started,
    table,
    until,
    written,
)

import batchrank
from batchrank.errors import OutputUnusable

Serve = Callable[..., Server]
ROWS = 25


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return written(tmp_path / "in.parquet", table(ROWS, tag=tmp_path.name))


@pytest.fixture
def run(server: Server, source: Path, tmp_path: Path) -> list[object]:
    """The command of a run that bills, with parts of 10 rows."""
    config = tmp_path / "c.toml"
    config.write_text("[output]\nrows_per_part = 10\n")
    return [*fast(server, tmp_path / "out", source), "-c", config, "--provider", "dashscope"]


@pytest.fixture(autouse=True)
def _with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", KEY)


def typed(run: list[object], answer: str) -> tuple[int, str]:
    """Run the command on a terminal, and answer its question; its code, and what was shown."""
    primary, secondary = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *map(str, run)],
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        env=clean(TERM="xterm", DASHSCOPE_API_KEY=KEY, COLUMNS="200"),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(secondary)
    shown, asked, deadline = "", False, time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([primary], [], [], 0.1)[0]:
            try:
                more = os.read(primary, 65536)
            except OSError:
                break
            if not more:
                break
            shown += more.decode("utf-8", "replace")
            if not asked and "[y/N]" in shown:
                asked = True
                os.write(primary, answer.encode())
    os.close(primary)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    return process.wait(timeout=60), plain


def everything(out: Path) -> dict[str, bytes]:
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    skipped = ("lock", "-shm", "-wal")  # SQLite's own, for as long as somebody looks
    return {str(path): path.read_bytes() for path in files if not path.name.endswith(skipped)}


def test_without_a_terminal_it_needs_yes_and_says_what_would_go(
    server: Server, run: list[object], tmp_path: Path
) -> None:
    assert inside(*run).returncode == 0
    out = tmp_path / "out"
    cost = json.loads((out / "_run.json").read_bytes())["cost_usd"]
    before, kept = server.received, everything(out)
    refused = program(*run, "--restart", DASHSCOPE_API_KEY=KEY)
    assert refused.returncode == 73
    (line,) = refused.stderr.splitlines()
    assert f"{ROWS} rows and {ROWS} requests, for which ${cost:.4f} was paid" in line
    assert "Choose a new output" in line and "--yes" in line
    assert everything(out) == kept and server.received == before
    assert inside(*run, "--restart", "--yes").returncode == 0
    assert server.received - before == ROWS
    assert set(part_bytes(out).values()) <= set(kept.values())


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 73), ("\n", 73), ("\x03", 130)])
def test_on_a_terminal_it_asks(
    server: Server, run: list[object], tmp_path: Path, answer: str, code: int
) -> None:
    assert inside(*run).returncode == 0
    before, kept = server.received, everything(tmp_path / "out")
    ended, shown = typed([*run, "--restart"], answer)
    assert ended == code, shown
    assert f"{ROWS} rows and {ROWS} requests, for which $0." in shown
    assert server.received - before == (0 if code else ROWS)
    assert (everything(tmp_path / "out") == kept) is bool(code)
    ended, shown = typed([*run, "--restart", "--yes"], "n\n")
    assert ended == 0 and "[y/N]" not in shown


def test_nothing_is_asked_where_there_is_nothing_to_lose(run: list[object], tmp_path: Path) -> None:
    ended, shown = typed([*run, "--restart"], "n\n")
    assert ended == 0 and "[y/N]" not in shown
    shutil.rmtree(tmp_path / "out")
    assert inside(*run, "--max-cost", "0").returncode == 4
    assert inside(*run, "--restart").returncode == 0


def test_answers_of_a_killed_run_count_though_no_part_is_there(
    serve: Serve, source: Path, tmp_path: Path
) -> None:
    own = serve('[[fault]]\nkind = "slow"\nseconds = 0.3\nwhere = { probability = 0.5 }\n')
    run = [*fast(own, tmp_path / "out", source), "--max-in-flight", 3, "--provider", "dashscope"]
    process = started(*run, DASHSCOPE_API_KEY=KEY)
    until(lambda: own.received > 12, "some are answered")
    time.sleep(0.3)
    process.kill()
    process.communicate()
    refused = inside(*run, "--restart")
    assert refused.returncode == 73
    found = re.search(
        r"throw away (\d+) rows and (\d+) requests, for which \$([\d.]+)", refused.stderr
    )
    assert found and 0 < int(found[1]) < ROWS and int(found[2]) >= int(found[1])
    assert float(found[3]) > 0
    assert inside(*run).returncode == 0, "and it can still go on"


def test_a_damaged_state_is_counted_by_its_parts(run: list[object], tmp_path: Path) -> None:
    assert inside(*run).returncode == 0
    (tmp_path / "out" / "_batchrank" / "checkpoint.sqlite").write_bytes(b"no database")
    refused = inside(*run, "--restart")
    assert refused.returncode == 73 and f"{ROWS} rows and {ROWS} requests" in refused.stderr
    (tmp_path / "out" / "_run.json").unlink()
    refused = inside(*run, "--restart")
    assert refused.returncode == 73
    assert f"{ROWS} rows, whose cost is not known any more" in refused.stderr
    assert inside(*run, "--restart", "--yes").returncode == 0


def test_a_rehearsal_costs_nothing_and_is_asked_about_too(source: Path, tmp_path: Path) -> None:
    run = ["run", source, "-o", tmp_path / "out", "--provider", "local"]
    assert inside(*run).returncode == 0
    refused = inside(*run, "--restart")
    assert refused.returncode == 73 and "for which nothing was paid" in refused.stderr


def test_a_shard_loses_its_own_parts_alone(run: list[object], tmp_path: Path) -> None:
    for number in range(2):
        assert inside(*run, "--shard", f"{number}/2").returncode == 0
    refused = inside(*run, "--shard", "1/2", "--restart")
    assert refused.returncode == 73 and "10 rows and 10 requests" in refused.stderr
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert inside(*run, "--shard", "1/2", "--restart", "--yes").returncode == 0


def test_a_state_elsewhere_is_counted(run: list[object], tmp_path: Path) -> None:
    elsewhere = ["--state-dir", tmp_path / "state"]
    assert inside(*run, *elsewhere).returncode == 0
    refused = inside(*run, *elsewhere, "--restart")
    assert refused.returncode == 73 and f"{ROWS} rows and {ROWS} requests" in refused.stderr
    shutil.rmtree(tmp_path / "state")
    refused = inside(*run, *elsewhere, "--restart")
    assert refused.returncode == 73 and f"{ROWS} rows and {ROWS} requests" in refused.stderr


def test_another_run_at_work_is_said_before_anything_is_asked(
    serve: Serve, source: Path, tmp_path: Path
) -> None:
    own = serve('[[fault]]\nkind = "slow"\nseconds = 0.3\n')
    run = [*fast(own, tmp_path / "out", source), "--max-in-flight", 2]
    process = started(*run)
    until(lambda: own.received > 3, "the run is at work")
    ended, shown = typed([*run, "--restart"], "y\n")
    assert ended == 75 and "[y/N]" not in shown
    process.kill()
    process.communicate()


def test_python_refuses_without_yes(server: Server, source: Path, tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "endpoint": {"base_url": server.base_url},
        "rate": {"requests_per_minute": 0},
    }
    out = tmp_path / "out"
    assert batchrank.run(config, source, out).exit_code == 0
    with pytest.raises(OutputUnusable, match=f"{ROWS} rows and {ROWS} requests.*yes=True"):
        batchrank.run(config, source, out, restart=True)
    assert (out / "_SUCCESS").exists()
    before = server.received
    assert batchrank.run(config, source, out, restart=True, yes=True).exit_code == 0
    assert server.received - before == ROWS


def test_refusals_name_what_loses_nothing_first(
    server: Server, run: list[object], source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert inside(*run).returncode == 0
    without_c = ["run", source, "-o", out, "--provider", "local"]
    refusals = [inside(*without_c), inside(*run, "--top-n", 2), inside(*run, "--model", "m")]
    written(source, table(ROWS + 1, tag="other"))
    refusals.append(inside(*run))
    shutil.rmtree(out / "_batchrank")
    (out / "_batchrank").mkdir()
    (out / "_batchrank.json").unlink()
    refusals.append(inside(*run))
    for refused in refusals:
        assert refused.returncode in (65, 73, 78)
        (line,) = refused.stderr.splitlines()
        assert "hoose a new output" in line
        assert 0 < line.find("hoose a new output") < (line.find("--restart") % 10_000), line
    assert all("-c and the options" in one.stderr for one in refusals[:3])
    assert "--reuse this one" in refusals[1].stderr, "its scores fit"
    assert "--reuse" not in refusals[2].stderr, "they do not"
    assert "--restart" not in refusals[-1].stderr
