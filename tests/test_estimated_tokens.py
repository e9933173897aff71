"""Tokens that were counted stand beside the bill; those that were guessed are called a guess."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers import Server, inside, rows_of, score, table, written

from batchrank.output.receipt import Receipt, estimate_words, summary

COUNTED: dict[str, Any] = {"rate": {"tokens_per_minute": 1e9}}


def reported(out: Path) -> str:
    return Path(inside("report", out).stdout.strip()).read_text()


def guessed(server: Server, folder: Path, **sections: Any) -> Receipt:
    """A run of texts whose tokens bytes tell badly: numbers, of which every digit is one."""
    rows = rows_of(*((f"number {row}", [f"{row}{'9' * 200}", "8" * 300]) for row in range(20)))
    return score(server, written(folder / "in.parquet", rows), folder / "out", **sections)


def test_a_guess_from_bytes_is_never_set_against_the_bill(server: Server, tmp_path: Path) -> None:
    receipt = guessed(server, tmp_path)
    assert receipt.tokens_estimated != receipt.tokens_billed
    assert not receipt.estimate_is_exact
    (line,) = re.findall("^tokens .*$", summary(receipt, "out"), re.MULTILINE)
    assert " about " in line and "from bytes" in line
    assert f"{receipt.tokens_estimated:,}" not in line
    page = reported(tmp_path / "out")
    assert "from bytes" in page and "billed beyond estimate" not in page
    assert f"{receipt.tokens_billed - receipt.tokens_estimated:+,}" not in page
    assert json.loads((tmp_path / "out" / "_run.json").read_bytes())["estimate_is_exact"] is False


def test_what_was_counted_is_shown_to_the_token(server: Server, tmp_path: Path) -> None:
    receipt = guessed(server, tmp_path, **COUNTED)
    assert receipt.estimate_is_exact
    assert f", {receipt.tokens_estimated:,} estimated\n" in summary(receipt, "out")
    beyond = receipt.tokens_billed - receipt.tokens_estimated
    assert 0 < beyond < 20 * 100, "more than the server's constant"
    assert f"{beyond:+,} (" in reported(tmp_path / "out")


@pytest.mark.parametrize("counted_first", [False, True])
def test_one_session_that_guessed_makes_the_whole_a_guess(
    server: Server, tmp_path: Path, counted_first: bool
) -> None:
    source, out = written(tmp_path / "in.parquet", table(20, tag="twice")), tmp_path / "out"
    run = ["run", source, "-o", out, "--base-url", server.base_url, "--requests-per-minute", 0]
    ways: list[list[Any]] = [["--tokens-per-minute", 10**9], ["--max-in-flight", 2]]
    first, then = ways if counted_first else ways[::-1]
    stopped = inside(*run, *first, "-c", _parts(tmp_path), "--max-cost", "0.0001")
    assert stopped.returncode == 4, stopped.stderr
    done = inside(*run, *then, "-c", _parts(tmp_path), "--summary", "json")
    receipt = json.loads(done.stdout)
    # The capped session counts by itself, whatever else is asked for.
    assert receipt["estimate_is_exact"] is (not counted_first)


def _parts(folder: Path) -> Path:
    file = folder / "parts.toml"
    file.write_text("[output]\nrows_per_part = 3\n")
    return file


def test_another_models_tokens_are_never_counted_exactly(server: Server, tmp_path: Path) -> None:
    receipt = guessed(server, tmp_path, endpoint={"model": "bge-reranker-v2-m3"}, **COUNTED)
    assert not receipt.estimate_is_exact
    assert " about " in summary(receipt, "out")


def test_a_guess_keeps_two_digits() -> None:
    assert estimate_words(3_646_957, False) == "about 3,600,000 estimated from bytes"
    assert estimate_words(7, False) == "about 7 estimated from bytes"
    assert estimate_words(3_646_957, True) == "3,646,957 estimated"
