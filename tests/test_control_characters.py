"""What a server, a file's name or a configuration says is shown, and obeyed by no terminal."""

import json
import logging
import unicodedata
from pathlib import Path

import pytest
from helpers import inside, output, program, table, written
from raw_server import Peer, http, raw_server_beside

from batchrank.cli.logs import log, log_to_stderr
from batchrank.errors import ConfigInvalid, Stopped, escape

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\u2066\u200f\u2028\u2029\x7f\r\nbatchrank: all is well"


def unseen(text: str, but: str = "\n") -> set[str]:
    """The signs of a text that a terminal would obey."""
    return {
        sign
        for sign in text
        if sign not in but
        and unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("größer, 漢字, 🙂", "größer, 漢字, 🙂"),
        ("a\u00a0b\u3000c", "a\u00a0b\u3000c"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x9b\x7f", r"\x9b\x7f"),
        ("\u202e\u2066\u061c\u200b", r"\u202e\u2066\u061c\u200b"),
        ("\u2028\u2029", r"\u2028\u2029"),
        ("\udcff\ue000", r"\udcff\ue000"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_only_what_cannot_be_seen_is_written_otherwise(text: str, shown: str) -> None:
    assert escape(text) == shown


def test_every_message_is_one_line_of_what_can_be_seen() -> None:
    assert not unseen(str(ConfigInvalid(EVIL)), but="")
    assert not unseen(str(Stopped(EVIL, 130)), but="")  # type: ignore[arg-type]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_every_line_of_the_log_is_one(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr(log_format, "debug")
    logging.getLogger("batchrank.any").warning("a file called %s", EVIL)
    log.handlers = []
    said = capsys.readouterr().err
    assert "owned" in said and said.count("\n") == 1
    assert not unseen(said)
    if log_format == "json":
        assert not unseen(json.loads(said)["message"], but="")


@pytest.mark.parametrize(
    ("status", "code"), [(401, 77), (403, 69), (404, 78), (422, 3), (503, 75), (200, 76)]
)
def test_a_server_reaches_no_terminal_log_column_or_report(
    status: int, code: int, tmp_path: Path
) -> None:
    async def serve(peer: Peer) -> None:
        while True:
            await peer.read_request()
            answer = {"code": EVIL, "message": EVIL, "error": {"type": EVIL}}
            peer.say(http({"results": [{EVIL: EVIL}]} if status == 200 else answer, status))

    config = tmp_path / "c.toml"
    config.write_text("[endpoint]\nmax_outage_seconds = 1\n")
    source, out = written(tmp_path / "in.parquet", table(30)), tmp_path / "out"
    with raw_server_beside(serve) as server:
        run = ["run", source, "-o", out, "-c", config, "--base-url", server.url]
        done = program(*run, "--requests-per-minute", 0, "--log-level", "debug")
    assert done.returncode == code
    assert not unseen(done.stderr)
    assert "\nbatchrank: all is well" not in done.stderr
    if code == 3:
        errors = [error for error in output(out)["error"].to_pylist() if error]
        assert errors and not unseen("".join(errors), but="")
    assert inside("report", out).returncode == 0
    assert not unseen((out / "_report.html").read_text(), but="\n\t")
    assert not unseen(inside("status", out).stdout)


def test_neither_do_the_names_of_files_and_keys(tmp_path: Path) -> None:
    said = [program("run", tmp_path / f"in{EVIL}.parquet", "-o", tmp_path / "out")]
    said.append(program("verify", tmp_path / f"out{EVIL[:40]}"))
    said.append(program("run", f"--no{EVIL}", "x", "-o", tmp_path / "out"))
    said.append(program("run", "x", "-o", tmp_path / "out", "--log-format", EVIL))
    config = tmp_path / f"c{EVIL[:20]}.toml"
    for text in (
        f"[rate]\n{json.dumps(EVIL)} = 1\n",
        f"[{json.dumps(EVIL)}]\n",
        f"[endpoint]\nprovider = {json.dumps(EVIL)}\n",
    ):
        config.write_text(text)
        said.append(program("run", "x", "-o", tmp_path / "out", "-c", config))
    for done in said:
        assert done.returncode in (2, 66, 73, 78), done.stderr
        assert done.stderr and not unseen(done.stderr)
        assert "\nbatchrank: all is well" not in done.stderr
