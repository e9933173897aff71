"""Silent without a terminal, a bar on one, one line for an error, and never a key or a text."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers import (
    CANDIDATES,
    KEY,
    PROGRAM,
    Server,
    clean,
    ended,
    fast,
    inside,
    program,
    started,
    table,
    until,
    written,
)

Serve = Callable[..., Server]
TEXT = "canaryphrase"


def on_terminal(
    arguments: list[object],
    typed: Callable[[str], bool] = lambda shown: False,
    columns: int = 100,
) -> tuple[int, str]:
    """Run the command on a terminal; its code, and all that was shown.

    Ctrl-C is typed as soon as `typed` says so of what has been shown.
    """
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        env=clean(TERM="xterm", LANG="C.UTF-8"),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(secondary)
    shown, deadline, done = "", time.monotonic() + 30, False
    while time.monotonic() < deadline:
        if select.select([primary], [], [], 0.1)[0]:
            try:
                more = os.read(primary, 65536)
            except OSError:
                break
            if not more:
                break
            shown += more.decode("utf-8", "replace")
            if not done and typed(shown):
                os.write(primary, b"\x03")
                done = True
    os.close(primary)
    return process.wait(timeout=60), shown


def test_success_prints_nothing_without_a_terminal_and_an_environment(
    server: Server, tmp_path: Path
) -> None:
    source = written(tmp_path / "in.parquet", table(20, tag="silent"))
    done = subprocess.run(
        ["env", "-i", *PROGRAM, *map(str, fast(server, tmp_path / "out", source))],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_success_prints_nothing_with_closed_standard_streams(
    server: Server, tmp_path: Path
) -> None:
    source = written(tmp_path / "in.parquet", table(20, tag="closed"))
    command = " ".join(map(str, [*PROGRAM, *fast(server, tmp_path / "out", source)]))
    done = subprocess.run(["sh", "-c", f"{command} <&- >&- 2>&-"], env=clean(), check=False)
    assert done.returncode == 0
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_the_summary_is_one_line_of_json_and_the_last_on_standard_output(
    server: Server, tmp_path: Path
) -> None:
    source = written(tmp_path / "in.parquet", table(20, tag="summary"))
    done = program(*fast(server, tmp_path / "out", source), "--summary", "json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n") and len(done.stdout.splitlines()) == 1
    summary = json.loads(done.stdout)
    assert (summary["status"], summary["exit_code"], summary["rows"]) == ("finished", 0, 20)
    receipt = json.loads((tmp_path / "out" / "_run.json").read_bytes())
    assert summary.items() <= receipt.items()
    again = inside(*fast(server, tmp_path / "out", source), "--summary", "json")
    assert json.loads(again.stdout) == summary


def test_a_failed_run_gives_its_summary_too(serve: Serve, tmp_path: Path) -> None:
    own = serve('[[fault]]\nkind = "content_refusal"\nwhere = { marker = "row 3 " }\n')
    source = written(tmp_path / "in.parquet", table(5, tag="failed"))
    done = inside(*fast(own, tmp_path / "out", source), "--summary", "json")
    assert done.returncode == 3
    assert len(done.stdout.splitlines()) == len(done.stderr.splitlines()) == 1
    summary = json.loads(done.stdout)
    assert (summary["exit_code"], summary["rows_failed"]) == (3, 1)
    assert done.stderr == f"batchrank: {summary['message']}\n"


def test_a_summary_that_nobody_reads_any_more_is_no_traceback(
    server: Server, tmp_path: Path
) -> None:
    source = written(tmp_path / "in.parquet", table(5, tag="pipe"))
    run = [*PROGRAM, *map(str, fast(server, tmp_path / "out", source)), "--summary", "json"]
    process = subprocess.Popen(
        run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean(), text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=60)
    assert "Traceback" not in stderr and "Exception" not in stderr
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_logs_as_json_are_an_object_a_line(server: Server, tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(5, tag="logs"))
    run = [*fast(server, tmp_path / "out", source), "--log-format", "json"]
    assert program(*run).stderr == ""
    done = program("run", tmp_path / "none", "-o", tmp_path / "o", "--log-format", "json")
    assert done.returncode == 66
    line = json.loads(done.stderr)
    assert line["message"] == f"{tmp_path / 'none'}: no such file or folder."
    assert line["level"] == "error"


def test_a_terminal_shows_a_bar_and_the_figures_at_the_end(serve: Serve, tmp_path: Path) -> None:
    own = serve('[[fault]]\nkind = "slow"\nseconds = 0.2\n')
    source = written(tmp_path / "in.parquet", table(40, tag="bar"))
    out = tmp_path / "out"
    code, shown = on_terminal([*fast(own, out, source), "--max-in-flight", 4])
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert code == 0
    assert re.search(r"rows .* *\d+/40 +[\d.,]+ requests/s +[\d,]+ tokens +\$[\d.]+", plain)
    assert re.search(r"[\d.]+ s left", plain)
    lines = [line.strip() for line in plain.replace("\r", "\n").split("\n")]
    assert "rows       40: 40 scored" in lines
    assert "requests   40" in lines
    assert f"output     {out}" in lines
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h"), "the cursor is shown again"


def test_a_narrow_terminal_shows_rows_and_the_time_left(serve: Serve, tmp_path: Path) -> None:
    own = serve('[[fault]]\nkind = "slow"\nseconds = 0.2\n')
    source = written(tmp_path / "in.parquet", table(40, tag="narrow"))
    run = [*fast(own, tmp_path / "out", source), "--max-in-flight", 4]
    code, shown = on_terminal(run, columns=50)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert code == 0
    assert re.search(r"rows \S+ +\d+/40 .*[\d.]+ s left", plain)
    bars = [line for line in re.split(r"[\r\n]+", plain) if "/40" in line]
    assert bars and not any("…" in line or "tokens" in line for line in bars)


def test_ctrl_c_on_a_terminal_drains_and_says_how_to_go_on(serve: Serve, tmp_path: Path) -> None:
    own = serve('[[fault]]\nkind = "slow"\nseconds = 0.3\n')
    source = written(tmp_path / "in.parquet", table(500, tag="typed"))
    run = [*fast(own, tmp_path / "out", source), "--max-in-flight", 4]
    code, shown = on_terminal(
        run, lambda shown: re.search(r"[1-9][\d,]* tokens", shown) is not None
    )
    assert code == 130
    assert "batchrank: stopped by Ctrl-C; the same command goes on from here." in shown
    assert "Traceback" not in shown
    receipt = json.loads((tmp_path / "out" / "_run.json").read_bytes())
    assert receipt["possibly_paid"] == 0 < receipt["requests"]


def test_ctrl_c_lets_the_local_server_of_the_run_finish_what_is_in_flight(tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(3000, tag="group"))
    run = ["run", source, "-o", tmp_path / "out", "--requests-per-minute", 6000]
    code, shown = on_terminal(
        run, lambda shown: re.search(r"[1-9][\d,]* tokens", shown) is not None
    )
    assert code == 130, shown
    receipt = json.loads((tmp_path / "out" / "_run.json").read_bytes())
    assert receipt["possibly_paid"] == 0 < receipt["requests"]


def test_a_large_request_warns_of_nothing(server: Server, tmp_path: Path) -> None:
    lists = [[{"doc_id": "d", "text": "words " * 250_000}]]
    rows = pa.table({"query": ["large"], "candidates": pa.array(lists, CANDIDATES)})
    source = written(tmp_path / "in.parquet", rows)
    run = fast(server, tmp_path / "out", source)
    done = program(*run, PYTHONWARNINGS="always::ResourceWarning")
    assert done.returncode == 0
    assert "large body" not in done.stderr


# Secrets


def canary_rows() -> pa.Table:
    """Rows full of a phrase that must be seen nowhere, one of them refused for its content."""
    lists: list[Any] = [
        [{"doc_id": f"d{place}", "text": f"{TEXT} {row} {place}"} for place in range(3)]
        for row in range(30)
    ]
    lists[4][1]["text"] = f"{TEXT} poison"
    queries = [f"{TEXT} query {row}" for row in range(30)]
    return pa.table({"query": queries, "candidates": pa.array(lists, CANDIDATES)})


def everything(folder: Path) -> bytes:
    """Every byte that a run has written, file names included; the parts unpacked."""
    names = "\n".join(str(path) for path in folder.rglob("*"))
    return names.encode() + b"".join(
        path.read_bytes() for path in folder.rglob("*") if path.is_file()
    )


FAULTS = f"""
[[fault]]
kind = "content_refusal"
where = {{ marker = "poison" }}
message = "the input {TEXT} is not allowed"
[[fault]]
kind = "status"
status = 503
code = "ModelUnavailable"
message = "{TEXT} {KEY}"
where = {{ first = 1, probability = 0.2 }}
[[fault]]
kind = "string_score"
where = {{ first = 1, probability = 0.2 }}
"""


@pytest.mark.parametrize("provider", ["dashscope", "dashscope-native"])
def test_key_and_texts_are_in_no_output_state_or_receipt(
    serve: Serve, tmp_path: Path, provider: str
) -> None:
    own = serve(FAULTS, "--api-key-env", "THE_KEY", THE_KEY=KEY)
    source, out = written(tmp_path / "in.parquet", canary_rows()), tmp_path / "out"
    url = own.base_url if provider == "dashscope" else own.native_url
    config = tmp_path / "c.toml"
    config.write_text(
        f'[output]\ncompression = "none"\n[endpoint]\nheaders = {{ X = "{KEY}-2" }}\n'
    )
    done = program(
        *["run", source, "-o", out, "--provider", provider, "--base-url", url, "-c", config],
        *["--requests-per-minute", 0, "--summary", "json", "--log-level", "debug"],
        DASHSCOPE_API_KEY=KEY,
    )
    assert done.returncode == 0, done.stderr
    assert own.ledger()["faults"].keys() >= {"content_refusal", "status", "string_score"}
    assert "again in" in done.stderr
    shown = (done.stdout + done.stderr).encode() + everything(out)
    assert KEY.encode() not in shown
    assert TEXT.encode() not in shown
    inspected = [inside("status", out, "--json"), inside("verify", out), inside("status", out)]
    assert not any(word in one.stdout + one.stderr for one in inspected for word in (KEY, TEXT))


def test_a_stopped_run_keeps_no_text_and_no_key_in_its_state(serve: Serve, tmp_path: Path) -> None:
    own = serve('[[fault]]\nkind = "slow"\nseconds = 0.2\n')
    source, out = written(tmp_path / "in.parquet", canary_rows()), tmp_path / "out"
    run = [*fast(own, out, source), "--max-in-flight", 2, "--provider", "dashscope"]
    process = started(*run, "--log-level", "debug", DASHSCOPE_API_KEY=KEY)
    until(lambda: own.received > 8, "some are answered")
    command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    process.send_signal(signal.SIGTERM)
    code, stdout, stderr = ended(process)
    assert code == 143
    shown = command + (stdout + stderr).encode() + everything(out)
    assert KEY.encode() not in shown
    assert TEXT.encode() not in shown


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_the_state_is_for_its_owner_alone_under_any_umask(
    server: Server, tmp_path: Path, umask: int
) -> None:
    source = written(tmp_path / "in.parquet", table(5, tag=f"umask{umask}"))
    done = subprocess.run(
        [*PROGRAM, *map(str, fast(server, tmp_path / "out", source))],
        env=clean(),
        umask=umask,
        check=False,
    )
    assert done.returncode == 0
    state = tmp_path / "out" / "_batchrank"
    assert state.stat().st_mode & 0o777 == 0o700
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in state.iterdir()}
    assert all(int(mode, 8) & 0o077 == 0 for mode in modes.values()), modes


def test_http_to_another_machine_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", table(2))
    url = "http://192.0.2.1/compatible-api/v1"
    done = program("run", source, "-o", tmp_path / "out", "--base-url", url)
    assert done.returncode == 78
    assert done.stderr == (
        "batchrank: options: endpoint.base_url is http://, which would send texts and key "
        "unencrypted. Use https://, or pass --allow-insecure-http.\n"
    )
