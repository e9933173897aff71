"""A score keeps the day that it was first given, however many nights have taken it on."""

import subprocess
import sys
from array import array
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from helpers import (
    Server,
    clean,
    dated,
    inside,
    output,
    reused,
    rows_of,
    score,
    scores_of,
    settings,
    written,
)

from batchrank.planning.text_hashes import Digests
from batchrank.records import Pairs, Row, RowScores
from batchrank.reuse.pair_files import SideFiles, begun, days_of

JOBS = Path(__file__).parents[1] / "jobs"
FIRST, SECOND = date(2026, 11, 1), date(2026, 11, 2)


def test_three_nights_keep_the_first_day_of_each_score(server: Server, tmp_path: Path) -> None:
    nights = [
        rows_of(("lift", ["wings", "bees"]), ("bread", ["yeast"])),
        rows_of(("lift", ["wings", "air"]), ("bread", ["yeast"])),
        rows_of(("lift", ["air", "wings", "steel"]), ("bread", ["yeast"])),
    ]
    for number, rows in enumerate(nights):
        out, earlier = tmp_path / f"night{number}", tmp_path / f"night{number - 1}"
        written(tmp_path / f"{number}.parquet", rows)
        score(server, tmp_path / f"{number}.parquet", out, reuse=earlier if number else None)
        dated(out, (FIRST, SECOND, date(2026, 11, 3))[number])
    assert reused(tmp_path / "night1") == [[FIRST, None], [FIRST]]
    assert reused(tmp_path / "night2") == [[SECOND, FIRST, None], [FIRST]]
    score(server, tmp_path / "2.parquet", tmp_path / "fresh")
    assert scores_of(tmp_path / "night2") == scores_of(tmp_path / "fresh")


def test_a_score_that_comes_back_after_a_night_without_it_is_sent_again(
    server: Server, tmp_path: Path
) -> None:
    """Only the night that is named is known; not those that it knew."""
    for number, texts in enumerate((["wings", "bees"], ["wings"], ["wings", "bees"])):
        written(tmp_path / f"{number}.parquet", rows_of(("lift", texts)))
        out, earlier = tmp_path / f"night{number}", tmp_path / f"night{number - 1}"
        receipt = score(
            server, tmp_path / f"{number}.parquet", out, reuse=earlier if number else None
        )
    assert (receipt.requests, receipt.pairs_reused) == (1, 1)


def test_of_two_scores_of_a_pair_the_latest_counts(server: Server, tmp_path: Path) -> None:
    """The night before holds the pair twice: taken on from an earlier one, and new."""
    written(tmp_path / "1.parquet", rows_of(("lift", ["wings"])))
    score(server, tmp_path / "1.parquet", tmp_path / "1")
    dated(tmp_path / "1", FIRST)
    digests = Digests(settings(server.base_url).scoring())
    name = digests.of(Row(0, "lift", ["wings"]))
    days = [days_of(FIRST), days_of(SECOND), days_of(SECOND)]
    rows = [
        RowScores(
            place,
            array("d", [0.1 * place]),
            "scored",
            None,
            0,
            0,
            0,
            Pairs(name.query, name.texts, array("H", [day])),
        )
        for place, day in enumerate(days)
    ]
    SideFiles(tmp_path / "1", tmp_path).publish("part-00000.parquet", rows)
    score(server, tmp_path / "1.parquet", tmp_path / "2", reuse=tmp_path / "1")
    assert scores_of(tmp_path / "2") == [{0: 0.1}]
    assert reused(tmp_path / "2") == [[SECOND]]


def test_the_day_is_that_on_which_the_run_was_begun(server: Server, tmp_path: Path) -> None:
    written(tmp_path / "1.parquet", rows_of(("lift", ["wings"])))
    score(server, tmp_path / "1.parquet", tmp_path / "1")
    told = begun(tmp_path / "1")
    assert told is not None and told.begun == datetime.now(UTC).date()
    dated(tmp_path / "1", FIRST)
    score(server, tmp_path / "1.parquet", tmp_path / "1")  # a finished run, looked at again
    told = begun(tmp_path / "1")
    assert told is not None and told.begun == FIRST


def test_the_nightly_job_takes_the_latest_finished_night(server: Server, tmp_path: Path) -> None:
    config = tmp_path / "batchrank.toml"
    config.write_text(f'[endpoint]\nbase_url = "{server.base_url}"\n')
    job = [sys.executable, JOBS / "nightly_reindex.py", tmp_path / "rows", tmp_path / "scores"]
    for day, texts in (("01", ["a"]), ("02", ["a", "b"]), ("03", ["c"]), ("04", ["a", "b", "c"])):
        written(tmp_path / "rows" / f"2026-11-{day}" / "1.parquet", rows_of(("nightly", texts)))
        command = [*map(str, job), "-c", str(config), "--date", f"2026-11-{day}", "--reuse"]
        done = subprocess.run(command, capture_output=True, text=True, env=clean(), check=False)
        assert (done.returncode, done.stderr) == (0, "")
        if day == "03":
            (tmp_path / "scores" / "2026-11-03" / "_SUCCESS").unlink()
    last = tmp_path / "scores" / "2026-11-04"
    assert [day is not None for day in reused(last)[0]] == [True, True, False]


@pytest.mark.parametrize("where", ["begun again", "another output"])
def test_a_restarted_run_begins_today(server: Server, tmp_path: Path, where: str) -> None:
    written(tmp_path / "1.parquet", rows_of(("lift", ["wings"])))
    out = tmp_path / "1"
    command = ["run", tmp_path / "1.parquet", "-o", out, "--base-url", server.base_url]
    assert inside(*command).returncode == 0
    dated(out, FIRST)
    if where == "begun again":
        assert inside(*command, "--restart", "--yes").returncode == 0
    else:
        out = tmp_path / "2"
        score(server, tmp_path / "1.parquet", out)
    told = begun(out)
    assert told is not None and told.begun == datetime.now(UTC).date()
    assert "reused_from" not in output(out).schema.names
