"""`--reuse` given several times: the first output that has a pair gives its score."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    Server,
    dated,
    fast,
    inside,
    output,
    reused,
    rows_of,
    score,
    scores_of,
    settings,
    written,
)

import batchrank

FIRST, SECOND = date(2026, 11, 1), date(2026, 11, 2)


@pytest.fixture
def nights(server: Server, tmp_path: Path) -> list[Path]:
    """Two nights; "bees" is in both."""
    lists = {"night1": ["wings", "bees"], "night2": ["bees", "air"]}
    for (name, texts), day in zip(lists.items(), (FIRST, SECOND), strict=True):
        source = written(tmp_path / f"{name}.parquet", rows_of(("lift", texts)))
        score(server, source, tmp_path / name)
        dated(tmp_path / name, day)
    return [tmp_path / "night1", tmp_path / "night2"]


def three(folder: Path) -> Path:
    return written(folder / "3.parquet", rows_of(("lift", ["wings", "bees", "air", "steel"])))


@pytest.mark.parametrize("turned", [False, True])
def test_the_first_that_has_a_pair_wins(
    server: Server, tmp_path: Path, nights: list[Path], turned: bool
) -> None:
    if turned:
        nights.reverse()
    options = [word for night in nights for word in ("--reuse", night)]
    done = inside(*fast(server, tmp_path / "night3", three(tmp_path)), *options)
    assert done.returncode == 0
    assert reused(tmp_path / "night3") == [[FIRST, SECOND if turned else FIRST, SECOND, None]]
    assert output(tmp_path / "night3")["requests"].to_pylist() == [1]
    score(server, three(tmp_path), tmp_path / "fresh")
    assert scores_of(tmp_path / "night3") == scores_of(tmp_path / "fresh")
    again = inside(*fast(server, tmp_path / "night3", three(tmp_path)), *options, "--retry-failed")
    assert again.returncode == 0


def test_a_run_goes_on_with_the_same_outputs_in_the_same_order(
    server: Server, tmp_path: Path, nights: list[Path]
) -> None:
    command = fast(server, tmp_path / "night3", three(tmp_path))
    options = [word for night in nights for word in ("--reuse", night)]
    assert inside(*command, *options).returncode == 0
    turned = [word for night in reversed(nights) for word in ("--reuse", night)]
    for other in (turned, options[:2], []):
        done = inside(*command, *other)
        assert done.returncode == 78
        assert "--reuse" in done.stderr
    assert inside(*command, *options).returncode == 0


def test_plan_counts_what_any_of_them_has(
    server: Server, tmp_path: Path, nights: list[Path]
) -> None:
    options = [word for night in nights for word in ("--reuse", night)]
    options += ["--base-url", server.base_url]
    done = inside("plan", three(tmp_path), *options, "--summary", "json")
    assert '"pairs_reused":3' in done.stdout.replace(" ", "")


def test_whole_rows_come_from_the_first_that_has_the_row(
    server: Server, tmp_path: Path, nights: list[Path]
) -> None:
    source = written(tmp_path / "3.parquet", rows_of(("lift", ["air", "bees"]), ("lift", ["air"])))
    receipt = score(server, source, tmp_path / "3", reuse=nights, reuse_rows_only=True)
    assert (receipt.pairs_reused, receipt.rows_reused, receipt.requests) == (2, 1, 1)
    assert reused(tmp_path / "3") == [[SECOND, SECOND], [None]]


def test_a_row_that_one_output_has_whole_can_be_taken_whole_again(
    server: Server, tmp_path: Path, nights: list[Path]
) -> None:
    """A row of scores from two outputs is of no single answer; one from the second alone is."""
    source = written(tmp_path / "3.parquet", rows_of(("lift", ["bees", "air"])))
    score(server, source, tmp_path / "whole", reuse=[nights[1], nights[0]])
    score(server, source, tmp_path / "mixed", reuse=nights)
    for name, taken in (("whole", 2), ("mixed", 0)):
        receipt = score(
            server, source, tmp_path / f"after {name}", reuse=tmp_path / name, reuse_rows_only=True
        )
        assert receipt.pairs_reused == taken


def test_python_takes_one_several_or_none(
    server: Server, tmp_path: Path, nights: list[Path]
) -> None:
    config = settings(server.base_url)
    for reuse, taken in ((nights, 3), (nights[0], 2), (str(nights[1]), 2), ([], None)):
        given: Any = reuse
        frame = batchrank.rerank(str(three(tmp_path)), config=config, reuse=given, progress=False)
        if taken is None:
            assert "reused_from" not in frame.columns
        else:
            assert sum(day is not None for day in frame["reused_from"][0]) == taken
    with pytest.raises(TypeError, match="reuse is the folder of an earlier output"):
        batchrank.rerank(str(three(tmp_path)), config=config, reuse=[frame])  # type: ignore[list-item]


def test_each_of_them_must_have_scores(server: Server, tmp_path: Path, nights: list[Path]) -> None:
    command = fast(server, tmp_path / "night3", three(tmp_path))
    done = inside(*command, "--reuse", nights[0], "--reuse", tmp_path / "nowhere")
    assert done.returncode == 66
    assert not (tmp_path / "night3").exists()
